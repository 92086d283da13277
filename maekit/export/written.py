"""Putting an export into its folder whole or not at all, and into the run's list of exports."""

import os
import shutil
import time

from ..errors import InputError
from ..files import sha256, write_json
from ..runs.folder import RunFolder
from .card import MADE

WEIGHTS = ("model.safetensors", "checkpoint.pth")
_OURS = {*WEIGHTS, "config.json", "preprocessor_config.json", "norms.py", "README.md"}


def check(folder, overwrite):
    """Raise InputError unless an export may be written to `folder`: a new or empty one, or with `overwrite` another export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file. Name a new folder.")
    there = {entry.name for entry in folder.iterdir()}
    card = folder / "README.md"
    ours = card.is_file() and MADE in card.read_text(encoding="utf-8", errors="replace")
    if others := sorted(there if not ours else there - _OURS):
        raise InputError(f"{folder}: holds {others[0]}, which is of no export. Name a new folder.")
    if there and not overwrite:
        raise InputError(f"{folder}: holds an export. Name a new folder, or --overwrite it.")


def write(folder, files):
    """Write {name: bytes} as the folder, which appears whole and takes the place of what `check` has let pass."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        for name, data in files.items():
            with open(draft / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}). Name another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def note(trained, target, folder, pushed):
    """Note in the run's folder, for reports, that it was exported to `folder`, and to which repository it was pushed."""
    run = RunFolder(trained.folder)
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    entry = {
        "to": target,
        "folder": str(folder.resolve()),
        "file": weights.name,
        "weights": f"sha256:{sha256(weights)}",
        "ema": trained.averaged,
        "date": time.strftime("%Y-%m-%d"),
        "pushed": pushed,
    }
    try:
        write_json(run.exports, [*(e for e in run.exported() if e["folder"] != entry["folder"]), entry])
    except OSError as error:
        print(f"{run.exports}: not noted there, {error.strerror}; the export is whole.")
