"""From the folders of runs to the files of a record.

runs.csv has a row a run: method, the settings in which the runs differ, status, what summary.json and the evaluations say.
epochs.csv has a row an epoch of a run, with the columns of log.csv that the record names. Numbers have seven digits. Folders'
names stay out: they are of one machine.
"""

import math
import shutil

from maekit import files
from maekit.analysis import comparison, provenance
from maekit.errors import InputError
from maekit.runs.reading import is_evaluation

OF_THE_MACHINE = ("path", "epoch_time_s", "avg_epoch_time", "images_per_s", "peak_memory_mb", "broken_images")
LEFT_OUT = (*OF_THE_MACHINE, "epoch", "lr", "task", "train_loss", "min_loss", "min_loss_epoch", "quality_images")
SETTINGS = ("lr", "min_lr", "epochs", "max_images", "alpha")  # columns where runs differ in them


def read(record, kit, settings=None):
    """(rows of runs.csv, rows of epochs.csv, about) of the runs of a record that have ended. Raises InputError if there are none.

    settings: those of SETTINGS that are columns, by default those in which any two of the runs differ.
    """
    everything = _load(record, kit)
    found = [run for run in everything if run["summary"] and not is_evaluation(run)]
    evaluations = [run for run in everything if run["summary"] and is_evaluation(run)]
    if not found:
        raise InputError(f"{record.name}: no runs in {record.runs}. Run docs/reproduce.sh {record.name} first.")
    named = settings_of(found, differing(found) if settings is None else settings)
    return rows_of(named, found, evaluations), epochs_of(named, found, record.by_epoch), about(found, evaluations)


def _load(record, kit):
    root = kit / record.runs
    everything, problems = comparison.load(root) if root.is_dir() else ([], [])
    if problems:
        raise InputError(f"{record.name}: {problems[0]}")
    return everything


def differing(found):
    """Those of SETTINGS in which any two runs differ."""
    return [name for name in SETTINGS if len({run["config"]["identity"].get(name) for run in found}) > 1]


def settings_of(found, names):
    """[{"method", settings of these names, "seed"}] of runs."""
    every = [run["config"]["identity"] for run in found]
    return [
        {"method": run["method"], **{name: identity.get(name) for name in names}, "seed": identity["seed"]}
        for run, identity in zip(found, every)
    ]


def rows_of(named, found, evaluations):
    """Rows of runs.csv, in the order of methods, settings and seeds. named: of settings_of."""
    import pandas as pd

    table = comparison.tabulate(found, evaluations).drop(columns=["model", "seed", "alpha"], errors="ignore")
    table.insert(0, "train_images", [run["config"]["data"]["train_images"] for run in found])
    last = pd.DataFrame([_last(run) for run in found])
    table = table.join(last[[name for name in last if name not in table]]).drop(columns=list(LEFT_OUT), errors="ignore")
    rows = [{**of, **_plain(row)} for of, row in zip(named, table.to_dict("records"))]
    return _filled(rows)


def _last(run):
    """The last value of every column of log.csv that has one: what is measured every few epochs has no value in some."""
    known = {}
    for row in run["log"]:
        known |= {name: value for name, value in row.items() if value is not None}
    return known


def epochs_of(named, found, columns):
    """Rows of epochs.csv, with these columns of log.csv."""
    rows = [
        {**of, "epoch": row["epoch"], **_plain({name: row.get(name) for name in columns})}
        for of, run in zip(named, found)
        for row in run["log"]
    ]
    return _filled(rows)


def _plain(row):
    """A row with seven digits for each number, None where there is none."""
    return {name: _short(value) for name, value in row.items()}


def _short(value):
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.7g}")
    return value


def _filled(rows):
    """The rows without columns that are empty in all of them."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    return [{name: row.get(name) for name in names} for row in rows]


def about(found, evaluations):
    """How the runs were made: numbers of runs, evaluations and diverged ones, seeds, commits, machines, versions, fingerprints of
    data, how many ran at a time, the seconds of all of them divided by that, and values of what they are of."""
    configs = [run["config"] for run in (*found, *evaluations)]
    summaries = [run["summary"] or {} for run in (*found, *evaluations)]
    together = max(config.get("runs_at_a_time", 1) for config in configs)
    return {
        "runs": len(found),
        "evaluations": len(evaluations),
        "diverged": sum(summary.get("status") == "diverged" for summary in summaries),
        "seeds": sorted({run["config"]["identity"]["seed"] for run in found}),
        "commits": _each(configs, lambda config: (config.get("git_commit") or "unknown")[:7]),
        "machines": _each(configs, lambda config: f"{config.get('device')}: {config.get('hardware')}"),
        "versions": _each(configs, provenance.versions),
        "data": _each(configs, lambda config: config["data"]["fingerprint"]),
        "at_a_time": together,
        "seconds": round(sum(summary.get("total_time", 0) for summary in summaries) / together),
        "parameters": sorted({run["config"]["parameters"] for run in found}),
        "train_images": sorted({run["config"]["data"]["train_images"] for run in found}),
        "val_images": sorted({run["config"]["data"]["val_images"] for run in found}),
        "classes": max(run["config"]["data"]["classes"] for run in found),
        "batch": sorted({run["config"]["effective_batch"] for run in found}),
    }


def _each(configs, read_one):
    return sorted({read_one(config) for config in configs})


def write(record, kit):
    """Write a record's data files from its runs, and copy the analysis' tables and figures that it names. Raises InputError."""
    for run in _load(record, kit):
        if not run["summary"]:
            raise InputError(f"{record.name}: {run['path']} has not ended. Run docs/reproduce.sh {record.name} again.")
    rows, epochs, known = read(record, kit)
    analysis = kit / (record.analysis or record.runs)
    for name in (*record.copied, *record.figures.values()):
        if not (analysis / name).is_file():
            raise InputError(f"{record.name}: no {name} in {analysis}. Run docs/reproduce.sh {record.name} first.")
    for name, of in {"runs.csv": rows, **({"epochs.csv": epochs} if record.by_epoch else {})}.items():
        files.write_csv(record.folder / name, list(of[0]), of)
    files.write_json(record.folder / "about.json", known)
    for name in record.copied:
        shutil.copyfile(analysis / name, record.folder / name)
    for name, source in record.figures.items():
        shutil.copyfile(analysis / source, kit / "docs" / name)
