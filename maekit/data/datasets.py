"""Samples: training crops, augmented images, validation middles, and what takes the place of an unreadable file."""

import torch
from torch.utils.data import Dataset

from ..errors import InputError
from . import cache, decoding, masks
from .crops import CROPS
from .streams import AUGMENTATION, CROP, REPLACEMENT, generator, seeded


class TrainImages(Dataset):
    """Random crop, flip and mask noise of (epoch, index): the same ones in any process, at any time.

    crop: one of CROPS or of their kind. boxes_only: the samples have, instead of the image, the `place` of its crop in stored
    pixels and whether it is `mirrored`, for resident.ResidentImages to crop.
    """

    def __init__(self, images, input_size, patches, seed, with_labels=False, crop=CROPS["resized"], boxes_only=False):
        self.images, self.input_size, self.patches, self.seed = images, input_size, patches, seed
        self.labels = images.labels if with_labels else None
        self.crop, self.boxes_only = crop, boxes_only

    def __getitem__(self, key):
        epoch, index = key
        others = _others(self.images, self.seed, epoch, index)
        picture, used, broken = _read(self.images, index, others, stored=self.boxes_only)
        rng = generator(CROP, self.seed, epoch, index)
        place, mirrored = self.crop.draw(rng, picture, self.input_size)
        image = None if self.boxes_only else self.crop.cut(picture, place, mirrored, self.input_size)
        noise = masks.training_noise(rng, self.patches)
        sample = _sample(image, self.labels, used, noise, broken)
        if self.boxes_only:
            del sample["images"]
            sample |= {"place": torch.tensor(self.crop.stored(picture, place)), "mirrored": mirrored}
        return sample


class AugmentedImages(Dataset):
    """Labelled images through a transform to float tensors that draws from the global random streams, as timm's do.

    Here those are seeded by (epoch, index), so that an image is augmented alike in any process, at any time.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed, self.labels = images, transform, seed, images.labels

    def __getitem__(self, key):
        epoch, index = key
        picture, used, broken = _read(self.images, index, _others(self.images, self.seed, epoch, index), whole=True)
        with seeded(AUGMENTATION, self.seed, epoch, index):
            image = self.transform(picture.image())
        return {"images": image, "labels": int(self.labels[used]), "index": used, "broken": broken}


class ValImages(Dataset):
    """Center crop and the fixed mask noise of an image, the same for every run, epoch and seed. crop: as TrainImages'."""

    def __init__(self, images, input_size, patches, with_labels=False, crop=CROPS["resized"]):
        self.images, self.input_size, self.patches, self.crop = images, input_size, patches, crop
        self.labels = images.labels if with_labels else None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        n = len(self.images)
        following = (other % n for other in range(index + 1, index + n))
        picture, used, broken = _read(self.images, index, following)
        image = picture.center_crop(self.short_side, self.input_size)
        return _sample(image, self.labels, used, self.noise(index), broken)

    def noise(self, index):
        """What decides the mask of an image, float32 (L,)."""
        return masks.validation_noise(index, self.patches)

    @property
    def short_side(self):
        """What an image's shorter side is resized to before its middle is taken."""
        return self.crop.short_side(self.input_size)


def _others(images, seed, epoch, index):
    """Random images to try in place of a broken one."""
    rng = generator(REPLACEMENT, seed, epoch, index)
    while True:
        yield int(rng.integers(len(images)))


def _read(images, index, others, **how):
    """Picture at `index`, else at the first readable one of `others`: (picture, index used, index if broken else -1).

    how: as cache.read has it, which pictures will do.
    """
    broken, used = -1, index
    for _ in range(32):
        try:
            return cache.read(images, used, **how), used, broken
        except decoding.UNREADABLE:
            broken = index
        try:
            used = next(others)
        except StopIteration:
            break
    check_root(images)
    raise InputError(
        f"{images.file(index)}: cannot be read, nor can the others tried in its place. Restore these files."
    )


def check_root(images):
    """Raise InputError if the folder of the images has gone."""
    if not images.is_there():
        raise InputError(
            f"{images.root}: is not there any more. Mount it again; the same command goes on from the last checkpoint."
        )


def _sample(image, labels, index, noise, broken):
    return {
        "images": image,
        "labels": -1 if labels is None else int(labels[index]),
        "noise": torch.from_numpy(noise),
        "index": index,
        "broken": broken,
    }
