"""How training and validation images are cut from pictures: --crop resized, shifted or whole."""

import math

import numpy as np
import torch


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


class ResizedCrops:
    """A random box of the image resized to the input, mirrored every second time; validation images are the middles of
    images resized to 256 / 224 of the input. As upstream.

    box: random_resized_crop_box or another function of its kind.
    """

    def __init__(self, box=random_resized_crop_box):
        self.box = box

    def with_box(self, box):
        """The same with boxes of another function, where there are boxes."""
        return ResizedCrops(box)

    def draw(self, rng, picture, side):
        """(place, mirrored) of a crop of a decoding.Picture: whatever of `rng` decides it."""
        return self.box(rng, picture.height, picture.width), rng.random() < 0.5

    def cut(self, picture, place, mirrored, side):
        """uint8 (3, side, side) of the Picture."""
        return picture.crop(*place, side, flip=mirrored)

    def stored(self, picture, place):
        """The place in the coordinates of the pixels that are stored."""
        return picture.stored_box(*place)

    def cut_resident(self, images, index, places, mirrored, side):
        """uint8 (N, 3, side, side) of the resident.ResidentImages `index` (N,), on their device."""
        return images.crop(index, places, mirrored, side)

    def short_side(self, side):
        """What a validation image's shorter side is resized to before its middle is taken."""
        return round(side * 256 / 224)


class ShiftedImages:
    """The whole image, moved by up to an eighth of its side and mirrored every second time, as is usual for CIFAR's 32 pixels;
    what comes in at an edge is the image mirrored there. Validation images are whole.

    An image whose sides are the input's keeps its pixels as they are; of others the middle is resized.
    """

    def with_box(self, box):
        return self

    def draw(self, rng, picture, side):
        most = side // 8
        return tuple(rng.integers(-most, most + 1, 2).tolist()), rng.random() < 0.5

    def cut(self, picture, place, mirrored, side):
        rows, columns = (_seen(np.arange(side) + moved, side) for moved in place)
        columns = columns[::-1] if mirrored else columns
        return torch.from_numpy(picture.center_crop(side, side).numpy()[:, rows[:, None], columns])

    def stored(self, picture, place):
        return place  # of the input, not of the picture

    def cut_resident(self, images, index, places, mirrored, side):
        middles = images.center_crop(index, side, side)
        return shift(middles, places.to(middles.device), mirrored.to(middles.device))

    def short_side(self, side):
        return side


class WholeImages(ShiftedImages):
    """The whole image as it is, in training as in validation: no augmentation."""

    def draw(self, rng, picture, side):
        return (0, 0), False

    def cut(self, picture, place, mirrored, side):
        return picture.center_crop(side, side)


CROPS = {"resized": ResizedCrops(), "shifted": ShiftedImages(), "whole": WholeImages()}  # by the values of --crop


def _seen(at, side):
    """The pixels of a row or column of `side` that places `at` show, beyond whose edges it is mirrored."""
    return (side - 1) - abs((side - 1) - abs(at))


def shift(images, places, mirrored):
    """Images (N, C, S, S) seen from (down, right) pixels `places` (N, 2) away, then mirrored left to right where `mirrored` (N,)
    is; beyond an edge lies the image's mirror image."""
    side = images.shape[-1]
    seen = _seen(torch.arange(side, device=images.device) + places[:, :, None], side)  # (N, 2, S)
    rows, columns = seen[:, 0], torch.where(mirrored[:, None], seen[:, 1].flip(1), seen[:, 1])
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    return images.gather(3, columns[:, None, None, :].expand_as(images))
