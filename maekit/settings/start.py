"""What a run starts from, as --init has it: a run's folder, a checkpoint, what others publish, or random weights. No torch."""

import os
from pathlib import Path

from .. import files
from ..errors import InputError, NothingToDo
from . import identities, published
from .flags import UNTRAINED
from .tasks import PRETRAIN

CHECKPOINT = "checkpoint.pth"
_FOLDERS = ("checkpoint_dir", "output_dir")


def opened(typed, task, names):
    """(checkpoint or None, settings of the run it is of, by the names of the flags) of --init as typed, None if it was not.

    `names` are what is taken over from it; of an evaluation what says which network it is: the norm with its options, the model,
    the input size.
    Raises InputError for what cannot be started from; NothingToDo for a run that diverged before it had weights to keep.
    """
    if typed is None and task != PRETRAIN:
        raise InputError(f"--task {task}: needs --init: a run's folder, a checkpoint, or untrained for random weights.")
    if typed in (None, UNTRAINED):
        return None, {}
    path = published.downloaded(typed) if typed.startswith(published.HUB) else Path(typed)
    if path.is_dir() and (saved := published.weights_in(path, typed)):
        return str(saved[0]), {name: value for name, value in saved[1].items() if name in names}
    run = path.parent if path.name == CHECKPOINT else path
    if not (run / "config.json").is_file():
        if path.is_file():
            return str(path), {}
        what = "no run in it (no config.json)" if path.is_dir() else "no such file or folder"
        raise InputError(
            f"--init {typed}: {what}. Use a run's folder, a checkpoint, a folder or {published.HUB}owner/name of Hugging Face, or "
            f"{UNTRAINED}."
        )
    config = _config(run)
    known = {**identities.SINCE, **config["identity"]}
    network = {name: known[name] for name in names if name in known}
    places = [path] if run != path else checkpoints_of(run, config)
    checkpoint = next((place for place in places if place.is_file()), None)
    if checkpoint is None:
        raise _missing(typed, run, places)
    if path == run and not (run / "summary.json").is_file():
        inside = checkpoint.parent.samefile(run)
        away = (
            ""
            if inside
            else "".join(f" {identities.spell(*item)}" for item in network.items() if item[1] not in (None, False))
        )
        raise InputError(
            f"--init {typed}: the run has not ended. Finish it, or take it as it is: --init {checkpoint}{away}."
        )
    return str(checkpoint), network


def checkpoints_of(run, config):
    """Where the checkpoint of the run in a folder can be, likeliest first, by what its config.json says.

    config.json has both folders as they were typed, perhaps in another working directory or on another machine. Moved with
    the run, the checkpoint is where it was as seen from there.
    """
    settings = config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    kept, folder = (value if isinstance(value := settings.get(name), str) else None for name in _FOLDERS)
    places = [Path(run, CHECKPOINT)]
    if kept:
        places.append(Path(kept, CHECKPOINT))
        if moved := _as_seen_from(run, kept, folder):
            places.insert(0, Path(kept if Path(kept).resolve() == moved.resolve() else moved, CHECKPOINT))
    return list(dict.fromkeys(places))


def _as_seen_from(run, kept, folder):
    """Where `kept` is now that `folder` is `run`, if all were moved together; None if that cannot be told."""
    if not folder or os.path.isabs(kept) != os.path.isabs(folder):
        return None
    try:
        way = os.path.relpath(kept, folder)
    except ValueError:  # two drives of Windows
        return None
    return Path(os.path.normpath(os.path.join(os.path.abspath(run), way)))


def resumed(typed):
    """--resume as typed, or if that is a run's folder, its checkpoint. Raises InputError for another folder."""
    run = Path(typed)
    if typed in ("auto", "never") or not run.is_dir():
        return typed
    if not (run / "config.json").is_file():
        raise InputError(
            f"--resume {typed}: no run in it (no config.json). Use auto, never, a run's folder, or a checkpoint."
        )
    places = checkpoints_of(run, _config(run))
    return str(next((place for place in places if place.is_file()), places[0]))


def _config(run):
    """What config.json of a run's folder has. Raises InputError if it is none of a run."""
    way = "Name another run's folder, or a checkpoint."
    config = files.read_json(run / "config.json", way=way)
    if not isinstance(config, dict) or not isinstance(config.get("identity"), dict):
        raise InputError(f"{run / 'config.json'}: is not of a run. {way}")
    for name, value in config["identity"].items():
        if wrong := identities.wrong(name, value):
            raise files.damaged(run / "config.json", wrong, way)
    return config


def _missing(typed, run, places):
    """The error, or what there is to say, where a run's checkpoint is in none of the places."""
    summary = run / "summary.json"
    told = files.read_json(summary) if summary.is_file() else {}
    status = told.get("status") if isinstance(told, dict) else None
    if status == "diverged":
        return NothingToDo(f"{run}: has diverged in its first epoch, there is nothing to evaluate.")
    if status is None and len(places) == 1:
        return InputError(f"--init {typed}: the run has no checkpoint yet, {places[0]} is not there. Train it first.")
    looked = " nor ".join(map(str, places))
    return InputError(
        f"--init {typed}: the run's checkpoint is not there, not {looked}. Copy it to {run / CHECKPOINT}"
        + (", or train the run first." if status is None else ".")
    )
