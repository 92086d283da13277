#!/usr/bin/env python3
"""DIR N_TRAIN N_VAL: JPEGs of 427 x 320 pixels in DIR/train and DIR/val, ten classes, cut from the demo's photographs.

    python benchmarks/photos.py photos 9469 3925

As many as the 320-pixel edition of Imagenette has, and as large, for timings where that is not at hand.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from common import KIT  # noqa: F401 - the kit's folder on the path
from PIL import Image

from maekit.data import demo

PART = 200  # images that a process makes at a time


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("n_train", type=int)
    p.add_argument("n_val", type=int)
    args = p.parse_args()
    parts = []
    for split, n in (("train", args.n_train), ("val", args.n_val)):
        for label in range(len(demo.PHOTOGRAPHS)):
            own = range(label, n, len(demo.PHOTOGRAPHS))
            parts += [(args.folder, split, label, own[start : start + PART]) for start in range(0, len(own), PART)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(make, parts))


def make(part):
    """Write some images of a class: (folder, split, label, their numbers)."""
    folder, split, label, numbers = part
    photograph = Image.open(demo.photograph(demo.PHOTOGRAPHS[label])).convert("RGB")
    folder = folder / split / f"class{label}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng((split == "val", number))
        size = (427, 320) if rng.random() > 0.2 else (320, 427)
        scale = rng.uniform(0.5, 1) * min(photograph.width / size[0], photograph.height / size[1])
        width, height = (int(side * scale) for side in size)
        left, top = int(rng.integers(photograph.width - width + 1)), int(rng.integers(photograph.height - height + 1))
        box = photograph.crop((left, top, left + width, top + height))
        box.resize(size, Image.BILINEAR).save(folder / f"{number:05d}.jpeg", quality=90)


if __name__ == "__main__":
    main()
