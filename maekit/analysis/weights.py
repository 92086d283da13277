"""What a report says of using the weights of its runs: the commands that export them, and where they have been exported."""

from pathlib import Path

from .. import files
from ..runs import grid
from ..runs.folder import RunFolder
from ..runs.status import FINISHED
from ..settings.tasks import KNN
from . import report


def section(chosen, everything, root):
    """{"commands": [text], "exports": [{"name", "link", "text"}]} of a page in `root`, None where no run has weights to use.

    chosen: [(name, run)], of each name the first finished run is in a command; everything: runs of reading.load_runs.
    """
    first = {}
    for name, run in chosen:
        if _finished(run):
            first.setdefault(name, run)
    exports = [entry for run in everything for entry in _exports(run, root)]
    if not first and not exports:
        return None
    return {"commands": [_command(name, run) for name, run in first.items()], "exports": exports}


def _finished(run):
    ended = bool(run["summary"]) and run["summary"].get("status") == FINISHED
    return ended and run["config"]["identity"].get("task") != KNN


def _command(name, run):
    target = "huggingface" if run["config"]["identity"]["norm"] == "LayerNorm" else "timm"
    words = ["python", "-m", "maekit.export", str(run["path"]), f"exports/{name}", "--to", target]
    return grid.for_shell(words)


def _exports(run, root):
    """What was exported of a run and is still there, or was pushed."""
    for export in RunFolder(run["path"]).exported():
        weights = Path(export["folder"], export["file"])
        there = weights.is_file() and f"sha256:{files.sha256(weights)}" == export.get("weights")
        if not (there or export.get("pushed")):
            continue
        said = [f"exported for {export.get('to')}", str(export.get("date"))]
        said += ["the moving average"] if export.get("ema") else []
        said += [f"pushed to {export['pushed']}"] if export.get("pushed") else []
        yield {"name": str(run["path"]), "link": report.link(export["folder"], root), "text": ", ".join(said)}
