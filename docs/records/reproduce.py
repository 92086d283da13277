"""Running the commands of a record, and comparing what came out with its committed numbers."""

import re
import shlex
import signal
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from maekit.errors import InputError
from maekit.runs import measures

from . import collect, numbers, record

OF_DATA = ("flat_colour", "smooth_colour")  # need no learning: equal wherever the images are
DATA_TOLERANCE = 1e-3


def listing(folder=record.RESULTS):
    """A line a record: name, time it took, what it needs, its title."""
    lines = [("name", "time", "data", "what")]
    for of in (record.read(name, folder) for name in record.names(folder)):
        lines.append((of.name, took(of), of.data, of.title))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in lines)


def took(of):
    """How long it took, in words."""
    return numbers.span(of.about["seconds"]) if of.taken else "not known"


def commands(of, data=None):
    """Its commands as the shell takes them, with the folder of data that was named in place of its own.

    Raises InputError if the folder is not there.
    """
    known = of.measured_on
    if not known["folder"]:
        if data:
            raise InputError(f"--data {data}: {of.name} is of {known['what']}. Leave it out.")
        return of.commands
    folder = Path(data).resolve() if data else Path(known["folder"])
    if not (record.KIT / folder).is_dir():
        what = f"--data {data}: no such folder" if data else f"{of.name} needs {folder}, which is not there"
        raise InputError(f"{what}. It is {known['what']}. {known['get']}, or name it: --data DIR.")
    there = re.compile(rf"(?<=--imagenet_dir ){re.escape(known['folder'])}(?=\s)")
    return tuple(there.sub(lambda _: shlex.quote(str(folder)), line) for line in of.commands)


def run(of, data=None):
    """Run its commands one after the other, and return the first exit status that is not 0, else 0. What was done before is
    not done again: so do the drivers."""
    for line in commands(of, data):
        print(f"+ {line.strip()}", flush=True)
        if code := _called(line):
            return code
    print(f"docs/reproduce.sh {of.name} --check compares these runs with the committed numbers.")
    return 0


def _called(line):
    """Exit status of a command; an interrupt from the keyboard is its own to answer, and not this process's."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(["bash", "-c", line], cwd=record.KIT, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Compared:
    """A measure of one setting: committed and new mean over its seeds."""

    setting: str
    measure: str
    committed: float
    new: float
    tolerance: float

    @property
    def held(self):
        return abs(self.new - self.committed) <= self.tolerance


def check(of, kit=record.KIT):
    """Compare the runs that are there with the committed ones: (lines to print, whether all of it held).

    Raises InputError if there are no runs.
    """
    if not of.taken:
        raise InputError(
            f"{of.name}: no numbers are committed yet. python docs/results.py --take {of.name} takes them."
        )
    rows = collect.read(of, kit)[0]
    new, committed = _by_setting(rows), _by_setting(of.rows)
    missing = [f"{_spell(key)}: not run" for key in committed if len(new.get(key, ())) < len(committed[key])]
    compared = [
        Compared(_spell(key), name, _mean(committed[key], name), _mean(new[key], name), tolerance)
        for key in committed
        if key in new and key[0][1] not in of.by_chance
        for name, tolerance in {**dict.fromkeys(OF_DATA, DATA_TOLERANCE), **of.tolerance}.items()
        if _mean(committed[key], name) is not None and _mean(new[key], name) is not None
    ]
    lines = [*_table(compared), *missing]
    for method, why in of.by_chance.items():
        lines.append(f"{method}: not compared, {why}")
    wrong = [c for c in compared if not c.held]
    if any(c.measure in OF_DATA for c in wrong):
        lines.append(f"Other images than the committed ones: their baselines differ. {of.measured_on['get']}.")
    equal = sum(row in of.rows for row in rows)
    lines.append(f"{equal} of {len(of.rows)} runs are equal in seven digits; tolerated: {tolerated(of)}.")
    lines += [f"OFF {c.setting}, {c.measure}: {c.new:.6g}, committed {c.committed:.6g}" for c in wrong]
    held = not wrong and not missing and bool(compared)
    return [*lines, f"{of.name}: {'holds' if held else 'DOES NOT HOLD'}"], held


def tolerated(of):
    """What a check tolerates, in words."""
    each = [f"{_named(name)} within {value:g}" for name, value in of.tolerance.items()]
    left = [f"{method} is not compared ({why})" for method, why in of.by_chance.items()]
    return "; ".join([f"means over seeds of {numbers.listed(each)}", *left])


def _named(measure):
    known = measures.MEASURES[measure]
    return f"`{measure}`" if measure == "val_mse" else known.label


def _by_setting(rows):
    """{(("method", its name), other settings than the seed): rows}."""
    found = {}
    for row in rows:
        key = tuple((name, row[name]) for name in ("method", *collect.SETTINGS) if name in row)
        found.setdefault(key, []).append(row)
    return found


def _spell(key):
    return ", ".join(str(value) if name == "method" else f"{name} {value}" for name, value in key)


def _mean(rows, name):
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.mean(values) if values else None


def _table(compared):
    """A line a measure: in how many settings it was compared, the largest distance, what is tolerated."""
    for name in dict.fromkeys(c.measure for c in compared):
        of = [c for c in compared if c.measure == name]
        far = max(of, key=lambda c: abs(c.new - c.committed))
        yield (
            f"{measures.MEASURES[name].label}: {len(of)} settings, at most {abs(far.new - far.committed):.2g} apart "
            f"({far.setting}), {far.tolerance:g} tolerated: {'ok' if all(c.held for c in of) else 'OFF'}"
        )
