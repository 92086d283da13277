"""Boxes of random crops."""

import math


def random_resized_crop_box(rng, height, width, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    """(top, left, height, width) of a crop: area uniform in `scale`, aspect log-uniform in `ratio`.

    The distribution of torchvision's RandomResizedCrop, ten tries and the central fall-back included, drawn from a
    numpy generator.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def single_try_crop_box(rng, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """random_resized_crop_box as BYOL's code and upstream's linear probing (util/crop.py) have it: one try, cut to fit."""
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = min(round(math.sqrt(area * aspect)), width), min(round(math.sqrt(area / aspect)), height)
    w, h = max(w, 1), max(h, 1)  # upstream's would be empty for images of few pixels
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
