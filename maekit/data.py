"""From image files to batches: crops, masks and order are decided by (seed, epoch, image), by nothing else.

A batch is a dict of CPU tensors: images uint8 (N, 3, S, S), labels int64 (N,) with -1 for none, noise float32 (N, L)
that decides the masks, index int64 (N,), broken int64 (N,) with the index of a file that could not be read, else -1.
"""

import math
import random
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import cache, decoding, faults, parallel, stopping
from .errors import InputError
from .settings import available_cores

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BROKEN_SHARE = 0.01  # more unreadable images than this end the run

# Independent random streams; the tag comes first, because numpy fills short keys up with zeros.
_ORDER, _CROP, _VAL_MASK, _REPLACEMENT, _AUGMENTATION, MIXING, DROPPING = range(1, 8)


def _generator(stream, *key):
    return np.random.default_rng((stream, *key))


def seed_of(stream, *key):
    """A 32-bit seed for what takes nothing else; `stream`: MIXING or DROPPING."""
    return int(np.random.SeedSequence((stream, *key)).generate_state(1)[0])


@contextmanager
def seeded(stream, *key):
    """Python's, numpy's and torch's global random streams (the CPU's) from a seed; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(stream, *key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class TrainImages(Dataset):
    """Random crop, flip and mask noise of (epoch, index): the same ones in any process, at any time.

    crop_box: random_resized_crop_box or another function of its kind. boxes_only: the samples have, instead of the image,
    its `box` in stored pixels and `flip`, for resident.ResidentImages to crop.
    """

    def __init__(self, images, input_size, patches, seed, with_labels=False, crop_box=None, boxes_only=False):
        self.images, self.input_size, self.patches, self.seed = images, input_size, patches, seed
        self.labels = images.labels if with_labels else None
        self.crop_box, self.boxes_only = crop_box or random_resized_crop_box, boxes_only

    def __getitem__(self, key):
        epoch, index = key
        others = _others(self.images, self.seed, epoch, index)
        picture, used, broken = _read(self.images, index, others, stored=self.boxes_only)
        rng = _generator(_CROP, self.seed, epoch, index)
        box = self.crop_box(rng, picture.height, picture.width)
        flip = rng.random() < 0.5
        image = None if self.boxes_only else picture.crop(*box, self.input_size, flip=flip)
        noise = rng.random(self.patches, dtype=np.float32)
        sample = _sample(image, self.labels, used, noise, broken)
        if self.boxes_only:
            del sample["images"]
            sample |= {"box": torch.tensor(picture.stored_box(*box)), "flip": flip}
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
        with seeded(_AUGMENTATION, self.seed, epoch, index):
            image = self.transform(picture.image())
        return {"images": image, "labels": int(self.labels[used]), "index": used, "broken": broken}


class ValImages(Dataset):
    """Center crop and the fixed mask noise of an image, the same for every run, epoch and seed."""

    def __init__(self, images, input_size, patches, with_labels=False):
        self.images, self.input_size, self.patches = images, input_size, patches
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
        return _generator(_VAL_MASK, index).random(self.patches, dtype=np.float32)

    @property
    def short_side(self):
        """What an image's shorter side is resized to before its middle is taken."""
        return round(self.input_size * 256 / 224)


class BatchOrder:
    """The batches of an epoch as lists of (epoch, index): a seeded shuffle, cut to whole optimizer steps.

    `batch_size` images a batch, `accum_iter` batches a step; images that do not fill a step wait for another epoch.
    Of several processes each gets its part of every batch of processes x batch_size images, so that a step is of the
    same images however many processes share it. Call `set_epoch` before iterating; `first` is the batch to begin with.
    """

    def __init__(self, n_images, batch_size, accum_iter, seed):
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.steps = n_images // (batch_size * accum_iter * parallel.size())
        self.batches = self.steps * accum_iter
        self.epoch = self.first = 0

    def set_epoch(self, epoch, first=0):
        self.epoch, self.first = epoch, first

    def __len__(self):
        return self.batches

    def __iter__(self):
        order = _generator(_ORDER, self.seed, self.epoch).permutation(self.n_images).tolist()
        for batch in range(self.first, self.batches):
            start = (batch * parallel.size() + parallel.rank()) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class BrokenImages:
    """Names every unreadable image once and counts them; raises InputError when more than 1 % of a set are broken."""

    def __init__(self, say):
        self.say = say
        self.found = {}

    def __len__(self):
        return sum(len(indices) for indices in self.found.values())

    def check(self, images, batch):
        """Look at the `broken` column of a batch of `images`."""
        indices = batch["broken"]
        if (indices < 0).all():
            return
        found = self.found.setdefault(id(images), set())
        for index in set(indices[indices >= 0].tolist()) - found:
            found.add(index)
            self.say(f"broken image {images.file(index)}: replaced by another ({len(self)} so far)")
        if len(found) > BROKEN_SHARE * len(images):
            _check_root(images)
            names = ", ".join(images.file(i) for i in sorted(found)[:20])
            more = f" and {len(found) - 20} more" if len(found) > 20 else ""
            raise InputError(
                f"{images.root}: {len(found)} of {len(images)} images cannot be read, more than {BROKEN_SHARE:.0%}: "
                f"{names}{more}. Restore or remove these files."
            )


class Batches:
    """Iterable of the batches of a data set, each looked at for broken images; `order` is its BatchOrder, if any."""

    def __init__(self, dataset, broken, workers, pin, keep_workers=True, **batching):
        self.dataset, self.broken = dataset, broken
        self.order = batching.get("batch_sampler")
        self.loader = DataLoader(
            dataset,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=keep_workers and workers > 0,
            worker_init_fn=stopping.leave_to_the_run,
            generator=torch.Generator(),  # the loader's own draws stay out of the global stream
            **batching,
        )

    def __len__(self):
        return len(self.loader)

    def end_workers(self):
        """End the processes that decode; another pass starts new ones."""
        self.loader._iterator = None

    def __iter__(self):
        try:
            batches = iter(self.loader)
            faults.tell_of_one_dead_worker()
            for batch in batches:
                self.broken.check(self.dataset.images, batch)
                yield batch
        except (ConnectionError, EOFError) as error:  # before the system says that the worker is dead
            faults.tell_of_no_dead_worker()
            raise RuntimeError(f"DataLoader worker exited unexpectedly, {type(error).__name__}") from error
        except InputError as error:  # from a worker it comes with the worker's traceback before its line
            raise InputError(str(error).strip().splitlines()[-1].removeprefix("maekit.errors.InputError: ")) from None


def workers(setting, images, device):
    """How many processes decode: as set; if None, on a CPU with a cache none, since the cores train, else 4 of the cores."""
    if setting is not None:
        return setting
    stored = isinstance(images, cache.CachedImages)
    return 0 if stored and device.type == "cpu" else min(4, available_cores())


def train_batches(
    images, model, optim, *, seed, broken, workers, pin=False, with_labels=False, crop_box=None, transform=None,
    boxes_only=False,
):  # fmt: skip
    """Training batches in the order of a BatchOrder. model, optim: ModelSettings, OptimSettings.

    boxes_only: see TrainImages. The images are TrainImages or, with a transform, AugmentedImages.
    """
    if transform is None:
        dataset = TrainImages(images, model.input_size, model.patches, seed, with_labels, crop_box, boxes_only)
    else:
        dataset = AugmentedImages(images, transform, seed)
    order = BatchOrder(len(images), optim.batch_size, optim.accum_iter, seed)
    return Batches(dataset, broken, workers, pin, batch_sampler=order)


def val_batches(images, model, *, batch_size, broken, workers, pin=False, with_labels=False, keep_workers=True):
    """Every validation image once, in order; the last batch may be smaller. Several processes take turns by image.

    keep_workers: the worker processes stay for the next pass over the images.
    """
    dataset = ValImages(images, model.input_size, model.patches, with_labels)
    own = range(parallel.rank(), len(dataset), parallel.size())
    return Batches(dataset, broken, workers, pin, keep_workers, batch_size=batch_size, sampler=own)


def whole_batches(images, run, loading):
    """Training images as validation has them: whole, once, in order; for one pass."""
    return val_batches(images, run.model, batch_size=run.optim.batch_size, keep_workers=False, **loading)


class Pixels:
    """Between uint8 images and the normalised ones of the model, on the device. Shapes (N, 3, H, W)."""

    def __init__(self, device):
        self.device = device
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def normalize(self, images):
        """uint8 in 0..255, anywhere -> float32 on the device, ImageNet mean and deviation removed."""
        return (images.to(self.device, non_blocking=True).float() / 255 - self.mean) / self.std

    def to_uint8(self, images):
        """The inverse, rounded and clipped to 0..255, on the CPU."""
        return ((images.float() * self.std + self.mean) * 255).round().clamp(0, 255).byte().cpu()


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


def _others(images, seed, epoch, index):
    """Random images to try in place of a broken one."""
    rng = _generator(_REPLACEMENT, seed, epoch, index)
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
    _check_root(images)
    raise InputError(f"{images.file(index)}: cannot be read, nor can the others tried in its place.")


def _check_root(images):
    """Raise InputError if the folder of the images has gone."""
    if not images.is_there():
        raise InputError(f"{images.root}: is not there any more. Mount it again; the same command goes on from the last "
                         "checkpoint.")  # fmt: skip


def _sample(image, labels, index, noise, broken):
    return {
        "images": image,
        "labels": -1 if labels is None else int(labels[index]),
        "noise": torch.from_numpy(noise),
        "index": index,
        "broken": broken,
    }
