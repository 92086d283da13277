"""The records of docs/results.md: experiments with their commands, and the committed numbers that every sentence is from.

docs/results/<name>/ is a record:

record.toml   title, commands, data, where the runs lie, tolerances of a check
text.md       its text, a Jinja template: the first paragraph is the claim; no number of a result is typed, see `numbers`
about.json    how many runs of which commit, machine, versions; how long they took
runs.csv      a row a run
epochs.csv    a row an epoch of a run
and some of the analysis' own files

`collect` makes the data files from the folders of runs, `page` the page from all of it, `reproduce` runs and checks a record.
"""
