"""Reading runs that have ended, or are on their way. No torch."""

from pathlib import Path

from ..files import read_csv, read_json
from ..settings.tasks import PRETRAIN
from .folder import RunFolder


def load_runs(root):
    """All runs below a folder, sorted by path: a list of dicts with path, config, summary or None, log rows, alphas."""
    runs = []
    for config in sorted(Path(root).rglob("config.json")):
        folder = RunFolder(config.parent)
        settings = read_json(config)
        if "identity" not in settings:
            continue
        runs.append(
            {
                "path": folder.path,
                "config": settings,
                "summary": read_json(folder.summary) if folder.summary.exists() else None,
                "log": read_csv(folder.log),
                "norm_alpha": read_csv(folder.norm_alpha),
            }
        )
    return runs


def is_evaluation(run):
    """Whether a run of load_runs is no pre-training."""
    return run["config"]["identity"].get("task", PRETRAIN) != PRETRAIN


def evaluation_column(run):
    """Which of EVALUATION_ACCURACIES an evaluation gives."""
    identity = run["config"]["identity"]
    return f"{'' if identity['init'] else 'untrained_'}{identity['task']}_accuracy"
