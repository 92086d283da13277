"""How images become what an encoder was trained to read."""

from ..data.crops import CROPS
from ..data.pixels import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = list(IMAGENET_MEAN), list(IMAGENET_STD)


def short_side(trained):
    """What an image's shorter side is resized to before its middle is taken, in pixels."""
    return CROPS[trained.identity["crop"]].short_side(trained.side)


def class_names(trained):
    """Names of a classifier's classes, if the training folder is still where it was and has as many; else None."""
    from pathlib import Path

    folder = Path((trained.config.get("data") or {}).get("train") or "/nowhere")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    return names if names and len(names) == trained.classes else None
