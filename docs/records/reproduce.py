"""Running the commands of a record, and comparing what came out with its committed numbers."""

import math
import re
import shlex
import signal
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from maekit.errors import InputError
from maekit.runs import measures
from maekit.runs.status import DIVERGED

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
    """A measure of one setting: committed and new mean over its seeds, None where no run of it has one."""

    setting: str
    measure: str
    committed: float | None
    new: float | None
    tolerance: float

    @property
    def apart(self):
        """Distance of the two, infinite where only one of them is there."""
        if self.committed is None or self.new is None:
            return 0.0 if self.committed is self.new else math.inf
        return abs(self.new - self.committed)

    @property
    def held(self):
        """Whether they are within the tolerance."""
        return self.apart <= self.tolerance


def check(of, kit=record.KIT):
    """Compare the runs that are there with the committed ones: (lines to print, whether all of it held).

    Raises InputError if there are no runs.
    """
    if not of.taken:
        raise InputError(
            f"{of.name}: no numbers are committed yet. python docs/results.py --take {of.name} takes them."
        )
    rows = collect.read(of, kit, [name for name in collect.SETTINGS if name in of.rows[0]])[0]
    new, committed = _by_setting(rows), _by_setting(of.rows)
    missing = [_spell(key) for key in committed if len(new.get(key, ())) < len(committed[key])]
    compared = [c for key in committed if key in new for c in _compare(of, key, committed[key], new[key])]
    wrong = [c for c in compared if not c.held]
    held = not wrong and not missing and any(c.measure in of.tolerance for c in compared)
    lines = [*_table(compared), *(f"{setting}: not run" for setting in missing)]
    lines += [f"{method}: not compared, {why}" for method, why in of.by_chance.items()]
    if any(c.measure in OF_DATA for c in wrong):
        lines.append(f"Other images than the committed ones: their baselines differ. {of.measured_on['get']}.")
    equal = len(_without_time(rows) & _without_time(of.rows))
    lines.append(f"{equal} of {len(of.rows)} runs are equal in seven digits; tolerated: {tolerated(of)}.")
    lines += [f"OFF {c.setting}, {c.measure}: {_digits(c.new)}, committed {_digits(c.committed)}" for c in wrong]
    return [*lines, f"{of.name}: {'holds' if held else 'DOES NOT HOLD'}"], held


def _compare(of, key, committed, new):
    """Compared of all measures of one setting, of one that is not compared those of the data alone."""
    tolerances = dict.fromkeys(OF_DATA, DATA_TOLERANCE)
    if key[0][1] not in of.by_chance:
        below = dict(key).get("alpha", 0) < 0
        tolerances |= {"diverged": 0, **((of.tolerance_below_0 if below else None) or of.tolerance)}
    for name, tolerance in tolerances.items():
        yield Compared(_spell(key), name, _mean(committed, name), _mean(new, name), tolerance)


def tolerated(of):
    """What a check tolerates, in words."""
    said = [f"means over seeds of {_each(of.tolerance)}"]
    if of.tolerance_below_0:
        said.append(f"at α < 0 of {_each(of.tolerance_below_0)}")
    return "; ".join([*said, *(f"{method} is not compared ({why})" for method, why in of.by_chance.items())])


def _each(tolerances):
    return numbers.listed(f"{_named(name)} within {value:g}" for name, value in tolerances.items())


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
    """Mean of a measure over rows that have it, None without one; of "diverged" the number of runs that did."""
    if name == "diverged":
        return sum(row.get("status") == DIVERGED for row in rows)
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.mean(values) if values else None


def _without_time(rows):
    """Rows as a set of what they say but for how long they took; what a run has no value of does not count."""
    return {tuple(sorted((k, v) for k, v in row.items() if k != "total_time" and v is not None)) for row in rows}


def _digits(value):
    return "none" if value is None else f"{value:.6g}"


def _table(compared):
    """A line a measure: in how many settings it was compared, the largest distance, what is tolerated."""
    for name, tolerance in dict.fromkeys((c.measure, c.tolerance) for c in compared):
        of = [c for c in compared if (c.measure, c.tolerance) == (name, tolerance)]
        far, called = (
            max(of, key=lambda c: c.apart),
            "runs that diverged" if name == "diverged" else measures.MEASURES[name].label,
        )
        yield (
            f"{called}: {len(of)} settings, at most {far.apart:.2g} apart ({far.setting}), {tolerance:g} tolerated: "
            f"{'ok' if all(c.held for c in of) else 'OFF'}"
        )
