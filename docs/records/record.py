"""One record: what is in its folder."""

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from maekit import files
from maekit.errors import InputError

KIT = Path(__file__).resolve().parent.parent.parent
RESULTS = KIT / "docs" / "results"


@dataclass(frozen=True)
class Record:
    """A record as record.toml has it.

    name: its folder's. commands: as typed in the kit's folder, run one after the other. data: a key of records.toml's data.
    runs: the folder that the commands put the runs in. analysis: where their tables and figures are, `runs` if None. copied:
    files of the analysis that are committed beside the runs. by_epoch: columns of log.csv that are kept of every epoch.
    stated: numbers in its text that are settings or published, and in no command. figures: {file of docs/: file of the
    analysis}. tolerance: {measure: how far the mean over seeds of any one setting may be off when the record is run again}; tolerance_below_0: at a negative
    alpha, where ends hang on roundings more, `tolerance` if None.
    by_chance: {method: why its numbers are not compared}.
    """

    name: str
    title: str
    commands: tuple
    data: str
    runs: str
    tolerance: dict
    tolerance_below_0: dict | None = None
    analysis: str | None = None
    copied: tuple = ()
    by_epoch: tuple = ()
    stated: tuple = ()
    figures: dict = field(default_factory=dict)
    by_chance: dict = field(default_factory=dict)
    results: Path = RESULTS

    @property
    def folder(self):
        """Where its files are."""
        return self.results / self.name

    @property
    def taken(self):
        """Whether its numbers have been taken from runs."""
        return (self.folder / "about.json").is_file()

    @cached_property
    def rows(self):
        """Rows of runs.csv."""
        return files.read_csv(self.folder / "runs.csv")

    @cached_property
    def epochs(self):
        """Rows of epochs.csv."""
        return files.read_csv(self.folder / "epochs.csv")

    @cached_property
    def about(self):
        """What about.json says, see collect.about."""
        return files.read_json(self.folder / "about.json")

    @cached_property
    def measured_on(self):
        """What records.toml says of its data: {"folder", "what", "get"}."""
        return data(self.results)[self.data]

    def file(self, name):
        """A committed file of the analysis: rows of a .csv, values of a .json."""
        path = self.folder / name
        return files.read_csv(path) if path.suffix == ".csv" else files.read_json(path)


def data(results=RESULTS):
    """{name: {"folder": where commands look for it, "what": in words, "get": the command that brings it}}."""
    return _listed(results)["data"]


def read(name, results=RESULTS):
    """The record of a name. Raises InputError if there is none."""
    file = results / name / "record.toml"
    if not file.is_file():
        raise InputError(f"{name}: no such record. There are {', '.join(names(results))}.")
    known = tomllib.loads(file.read_text(encoding="utf-8"))
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    return Record(name=name, results=results, **made)


def names(results=RESULTS):
    """Names of all records, in the order of the page."""
    return tuple(_listed(results)["records"])


def _listed(results):
    return tomllib.loads((results / "records.toml").read_text(encoding="utf-8"))
