"""Reading runs that have ended, or are on their way. No torch."""

from pathlib import Path

from ..files import Damaged, read_csv, read_json
from ..settings.identities import before
from ..settings.probes import evaluation_name
from ..settings.tasks import PRETRAIN
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
        except (Damaged, UnicodeDecodeError) as error:
            text = str(error) if isinstance(error, Damaged) else f"{config.parent}: is damaged ({error})."
            problems.append(f"{text} Left out.")
            continue
        if run is not None:
            runs.append(run)
    return runs, problems


def _read_run(folder):
    """The run in a folder, None if its config.json is another program's. Raises Damaged."""
    config = read_json(folder.config)
    if not isinstance(config, dict) or "identity" not in config:
        return None
    summary = read_json(folder.summary) if folder.summary.exists() else None
    for file, part in ((folder.config, config["identity"]), (folder.summary, {} if summary is None else summary)):
        if not isinstance(part, dict):
            raise Damaged(f"{file}: is damaged (holds {part!r:.40}). Delete the run's folder, or --overwrite it.")
    return {
        "path": folder.path,
        "config": config,
        "summary": summary,
        "log": read_csv(folder.log),
        "norm_layers": (layers := read_csv(folder.norm_alpha)),
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
