"""The demo data: crops of ten photographs that scikit-image ships, as a small ILSVRC tree of JPEG files.

Training crops come from the left 70 % of each photograph, validation crops from the rest, so no pixel is in both.
The class of a crop is its photograph.
"""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from .. import surroundings
from ..errors import InputError
from ..files import KIT

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
RECIPE = {
    "train": 100,  # crops of a photograph
    "val": 20,
    "left": 0.7,  # share of its width that training crops come from
    "side": [128, 200],  # of a crop, in the photograph's pixels
    "stored": 96,  # side of the file
    "quality": 95,
    "seed": 0,
}


def ensure():
    """Path of the demo's ILSVRC folder, written on first use: in $MAEKIT_DATA, else in the first of data beside the scripts,
    the caches and the temporary folder that can be written."""
    key = sha256(json.dumps([PHOTOGRAPHS, RECIPE]).encode()).hexdigest()[:8]
    own = os.environ.get("MAEKIT_DATA")
    homes = [Path(own)] if own else [KIT / "data", surroundings.caches()]
    home = next((h for h in homes if (h / f"demo-{key}").is_dir() or _can_be_written(h)), None)
    home = home or (homes[0] if own else surroundings.temporary())
    folder = home / f"demo-{key}"
    if not folder.is_dir():
        print(f"demo: cutting {len(PHOTOGRAPHS)} photographs into {folder}", file=sys.stderr)
        home.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=home))
        try:
            write(draft)
            draft.chmod(0o755)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _can_be_written(folder):
    """Whether files can be made in a folder, or it in the nearest one around it that there is."""
    return os.access(
        next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), os.W_OK
    )


def write(folder):
    """Write the tree: class folders of training crops, flat validation crops and LOC_val_solution.csv."""
    rng = np.random.default_rng(RECIPE["seed"])
    images = folder / "Data" / "CLS-LOC"
    (images / "val").mkdir(parents=True)
    solution, number = ["ImageId,PredictionString"], 0
    for name in PHOTOGRAPHS:
        photo = Image.open(photograph(name)).convert("RGB")
        border = int(photo.width * RECIPE["left"])
        label = name.partition(".")[0]
        (images / "train" / label).mkdir(parents=True)
        for i in range(RECIPE["train"]):
            crop = _random_crop(rng, photo, 0, border)
            crop.save(images / "train" / label / f"{label}_{i:04d}.JPEG", quality=RECIPE["quality"])
        for _ in range(RECIPE["val"]):
            number += 1
            stem = f"ILSVRC2012_val_{number:08d}"
            crop = _random_crop(rng, photo, border, photo.width)
            crop.save(images / "val" / f"{stem}.JPEG", quality=RECIPE["quality"])
            solution.append(f"{stem},{label} 0 0 {crop.width} {crop.height}")
    (folder / "LOC_val_solution.csv").write_text("\n".join(solution) + "\n", encoding="utf-8")


def photograph(name):
    """Path of a photograph inside the installed scikit-image package."""
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise InputError(
            "--demo: scikit-image is not installed, its photographs are the data. pip install scikit-image"
        )
    file = Path(package.submodule_search_locations[0]) / "data" / name
    if not file.is_file():
        raise InputError(f"--demo: {file} is missing; reinstall scikit-image 0.24 or newer.")
    return file


def _random_crop(rng, photo, left, right):
    """A square crop of random side between the columns `left` and `right`, scaled to the stored size."""
    low, high = RECIPE["side"]
    side = int(rng.integers(low, min(high, right - left, photo.height) + 1))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, photo.height - side + 1))
    # cropped first: resize(box=...) would filter across the border between training and validation
    return photo.crop((x, y, x + side, y + side)).resize((RECIPE["stored"],) * 2, Image.LANCZOS)
