"""Trajectories: (mse, accuracies) per epoch, in the format of the original gap scripts. No torch."""

import json
from pathlib import Path

from ..files import is_text, once
from ..settings.identities import MOST_WHOLE
from . import contents
from .measures import POINT_COLUMNS, WATCHED
from .status import FINISHED


def load_trajectories(folder):
    """DataFrame of all points below a folder, a row an epoch of a run; see read_trajectories."""
    return tabulate_points(read_trajectories(folder)[0])


def tabulate_points(trajectories):
    """DataFrame with a row a point: the run's path, alpha, lr, norm, seed, model, decoder and status, then epoch, mse,
    accuracies in percent and what else probes say, nan where it was not measured."""
    import pandas as pd

    rows = [{**point, **_head(run)} for run in trajectories for point in run["trajectory"]]
    with pd.option_context("mode.string_storage", "python"):  # names of folders may be bytes that are no text
        table = pd.DataFrame(rows, columns=["run", *_HEAD, "status", "epoch", "mse", *WATCHED])
    return table.astype(dict.fromkeys(("alpha", "lr", "mse", *WATCHED), float))


def read_trajectories(folder):
    """Every trajectory.json below a folder, sorted by path: (trajectories, problems).

    A trajectory is the file's dict with `run`, its path, and what the original gap scripts did not write: lr 1.5e-4,
    norm LayerNorm, seed 0, status finished. A file that cannot be used is left out and gives a line in problems.
    """
    trajectories, problems = [], []
    for path in sorted(Path(folder).rglob("trajectory.json")):
        try:
            trajectories.append({**_ORIGINAL, **_read_trajectory(path), "run": str(path.parent)})
        except _Unusable as error:
            problems.append(f"{path}: {error}; left out.")
    return trajectories, problems


class _Unusable(Exception):
    """What is wrong with a trajectory."""


_HEAD = ("alpha", "lr", "norm", "seed", "model", "decoder")
_ORIGINAL = {"lr": 1.5e-4, "norm": "LayerNorm", "seed": 0, "model": None, "decoder": None, "status": FINISHED}


def _head(run):
    return {name: run[name] for name in ("run", *_HEAD, "status")}


def _read_trajectory(path):
    """The dict of a trajectory.json. Raises _Unusable with what is wrong with it."""

    def not_finite(name):
        raise _Unusable(f"holds {name}")

    try:
        text = path.read_text(encoding="utf-8")
        run = json.loads(text, parse_constant=not_finite, object_pairs_hook=once)
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"is no JSON, or cut off ({error})") from None
    if not isinstance(run, dict):
        raise _Unusable("is no trajectory")
    run = {name: value for name, value in run.items() if value is not None}
    _check(run, {"alpha": _NUMBER}, required=True)
    _check(run, {"lr": _NUMBER, "seed": _WHOLE, "flat_colour": _NUMBER, "smooth_colour": _NUMBER}, required=False)
    _check(run, dict.fromkeys(("norm", "model", "decoder", "status"), _TEXT), required=False)
    if not isinstance(run.get("trajectory"), list):
        raise _Unusable("lacks the key trajectory")
    before = -1
    for i, point in enumerate(run["trajectory"]):
        if not isinstance(point, dict):
            raise _Unusable(f"point {i} is no point")
        _check(point, {"epoch": _WHOLE, "mse": _NUMBER}, required=True, where=f" in point {i}")
        _check(point, dict.fromkeys(WATCHED, _NUMBER), required=False, where=f" in point {i}")
        if "accuracy" not in point:
            raise _Unusable(f"lacks the key accuracy in point {i}")
        if point["epoch"] <= before:
            raise _Unusable(f"has epoch {point['epoch']} after epoch {before} in point {i}")
        before = point["epoch"]
    if not run["trajectory"] and run.get("status", FINISHED) == FINISHED:
        raise _Unusable("has no points")
    return run


_NUMBER, _WHOLE, _TEXT = (int, float), (int,), (str,)


def _check(values, kinds, *, required, where=""):
    """Raise _Unusable unless values has, for each name in kinds, one of those kinds and finite, or is free not to."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value is None and required:
            raise _Unusable(f"lacks the key {name}{where}")
        if value is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, kind)
        if kind is _TEXT:
            wrong = wrong or not is_text(value)
        elif kind is _WHOLE:
            wrong = wrong or not 0 <= value < MOST_WHOLE
        elif kind is _NUMBER:
            wrong = wrong or contents.wrong(POINT_COLUMNS.get(name, name), value)
        if wrong:
            raise _Unusable(f"holds {value!r:.40} for {name}{where}")
