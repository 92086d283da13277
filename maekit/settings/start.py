"""What a run starts from, as --init has it: a run's folder, a checkpoint, or random weights. No torch."""

from pathlib import Path

from .. import files
from ..errors import InputError, NothingToDo
from .flags import UNTRAINED
from .tasks import PRETRAIN


def opened(typed, task, names):
    """(checkpoint or None, settings of the run it is of, by the names of the flags) of --init as typed, None if it was not.

    An evaluation takes over what says which network it is: `names`, the norm with its options, the model, the input size.
    Raises InputError for what cannot be started from; NothingToDo for a run that diverged before it had weights to keep.
    """
    if typed is None and task != PRETRAIN:
        raise InputError(f"--task {task}: needs --init: a run's folder, a checkpoint, or untrained for random weights.")
    if typed in (None, UNTRAINED):
        return None, {}
    path = Path(typed)
    run = path.parent if path.name == "checkpoint.pth" else path
    if not (run / "config.json").is_file():
        if path.is_file():
            return str(path), {}
        what = "no run in it (no config.json)" if path.is_dir() else "no such file or folder"
        raise InputError(f"--init {typed}: {what}. Use a run's folder, a checkpoint, or {UNTRAINED}.")
    config = files.read_json(run / "config.json")
    identity = config.get("identity", {})
    network = {name: identity[name] for name in names if name in identity}
    checkpoint = (
        path if run != path else Path(config.get("settings", {}).get("checkpoint_dir") or run, "checkpoint.pth")
    )
    if not checkpoint.is_file():
        summary = run / "summary.json"
        if summary.is_file() and files.read_json(summary).get("status") == "diverged":
            raise NothingToDo(f"{run}: has diverged in its first epoch, there is nothing to evaluate.")
        raise InputError(f"--init {typed}: the run has no checkpoint yet, {checkpoint} is not there. Train it first.")
    if path == run and not (run / "summary.json").is_file():
        away = "" if checkpoint.parent == run else "".join(f" --{name} {value}" for name, value in network.items())
        raise InputError(
            f"--init {typed}: the run has not ended. Finish it, or take it as it is: --init {checkpoint}{away}."
        )
    return str(checkpoint), {} if task == PRETRAIN else network
