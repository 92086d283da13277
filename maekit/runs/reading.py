"""Reading runs that have ended, or are on their way. No torch."""

from pathlib import Path

from ..files import Damaged
from ..settings.identities import before
from ..settings.probes import evaluation_name
from ..settings.tasks import PRETRAIN
from . import contents
from .folder import RunFolder
from .status import FINISHED


def load_runs(root):
    """All runs below a folder, sorted by path: (runs, problems).

    A run is a dict with path, config, summary or None, log, norm_layers and norm_alpha, lists of rows, the last of layers that have an alpha. One with a damaged file is
    left out and gives a line in problems.
    """
    runs, problems = [], []
    for config in sorted(Path(root).rglob("config.json")):
        try:
            run = _read_run(RunFolder(config.parent))
        except Damaged as error:
            problems.append(f"{error} Left out.")
            continue
        if run is not None:
            runs.append(run)
    return runs, problems


def _read_run(folder):
    """The run in a folder, None if its config.json is another program's. Raises Damaged."""
    config = contents.read_config(folder.config)
    if config is None:
        return None
    identity = config["identity"]
    return {
        "path": folder.path,
        "config": config,
        "summary": contents.read_summary(folder.summary, identity),
        "log": contents.read_log(folder.log, identity.get("task", PRETRAIN)),
        "norm_layers": (layers := contents.read_layers(folder.norm_alpha)),
        "norm_alpha": [row for row in layers if row["alpha"] is not None],
    }


def is_evaluation(run):
    """Whether a run of load_runs says something of an encoder that another run has trained."""
    identity = run["config"]["identity"]
    return identity.get("task", PRETRAIN) != PRETRAIN or bool(identity.get("freeze"))


def evaluation_column(run):
    """Which of measures.EVALUATION_RESULTS an evaluation gives."""
    identity = run["config"]["identity"]
    if identity.get("freeze"):
        return f"{'' if identity['init'] else 'untrained_'}decoder_mse"
    name = evaluation_name(identity["task"], identity.get("readout", before("readout", identity)))
    return f"{'' if identity['init'] else 'untrained_'}{name}_accuracy"


def evaluation_result(run):
    """The number that a finished evaluation gives, None of one that has not finished."""
    summary = run["summary"]
    if not summary or summary["status"] != FINISHED:
        return None
    return summary.get("val_mse" if run["config"]["identity"].get("freeze") else "acc1")
