"""From image files to batches on the device: crops, masks and order are decided by (seed, epoch, image), by nothing else.

A batch is a dict of CPU tensors: images uint8 (N, 3, S, S), labels int64 (N,) with -1 for none, noise float32 (N, L)
that decides the masks, index int64 (N,), broken int64 (N,) with the index of a file that could not be read, else -1.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader

from .. import distributed
from ..errors import InputError
from ..machine import available_cores
from ..settings.tasks import PRETRAIN
from . import cache, decoding, resident
from .crops import CROPS
from .datasets import AugmentedImages, TrainImages, ValImages, check_root
from .streams import ORDER, generator
from .workers import leave_to_the_run, tell_of_no_dead_worker, tell_of_one_dead_worker, with_room

# Of a batch; the rest is copied: what a worker process has made is an open file as long as it is kept.
LARGE = ("images", "noise")
BROKEN_SHARE = 0.01  # more unreadable images than this end the run


class BatchOrder:
    """The batches of an epoch as lists of (epoch, index): a seeded shuffle, cut to whole optimizer steps.

    `batch_size` images a batch, `accum_iter` batches a step; images that do not fill a step wait for another epoch.
    Of several processes each gets its part of every batch of processes x batch_size images, so that a step is of the
    same images however many processes share it. Call `set_epoch` before iterating; `first` is the batch to begin with.
    """

    def __init__(self, n_images, batch_size, accum_iter, seed):
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.steps = n_images // (batch_size * accum_iter * distributed.size())
        self.batches = self.steps * accum_iter
        self.epoch = self.first = 0

    def set_epoch(self, epoch, first=0):
        self.epoch, self.first = epoch, first

    def __len__(self):
        return self.batches

    def __iter__(self):
        order = generator(ORDER, self.seed, self.epoch).permutation(self.n_images).tolist()
        for batch in range(self.first, self.batches):
            start = (batch * distributed.size() + distributed.rank()) * self.batch_size
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
            self.say(
                f"broken image {images.file(index)}: replaced by another ({len(self)} so far){_why(images, index)}"
            )
        if len(found) > BROKEN_SHARE * len(images):
            check_root(images)
            names = ", ".join(images.file(i) for i in sorted(found)[:20])
            more = f" and {len(found) - 20} more" if len(found) > 20 else ""
            raise InputError(
                f"{images.root}: {len(found)} of {len(images)} images cannot be read, more than {BROKEN_SHARE:.0%}: "
                f"{names}{more}. Restore or remove these files{_why(images, min(found), ' (the first: ', ')')}."
            )


def _why(images, index, before=": ", behind=""):
    """What the decoder says of an unreadable image, or of one that has become readable nothing."""
    try:
        decoding.read(images, index)
    except decoding.UNREADABLE as error:
        return f"{before}{' '.join(str(error).split())[:160] or type(error).__name__}{behind}"
    return ""


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
            worker_init_fn=leave_to_the_run,
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
            tell_of_one_dead_worker()
            for batch in batches:
                self.broken.check(self.dataset.images, batch)
                yield {name: t if name in LARGE else t.clone() for name, t in batch.items()}
        except (ConnectionError, EOFError) as error:  # before the system says that the worker is dead
            tell_of_no_dead_worker()
            raise RuntimeError(f"DataLoader worker exited unexpectedly, {type(error).__name__}") from error
        except InputError as error:  # from a worker it comes with the worker's traceback before its line
            raise InputError(str(error).strip().splitlines()[-1].removeprefix("maekit.errors.InputError: ")) from None


def workers(setting, images, device):
    """How many processes decode: as set; if None, on a CPU with a cache none, since the cores train, else 4 of the cores."""
    if setting is not None:
        return setting
    stored = isinstance(images, cache.CachedImages)
    return 0 if stored and device.type == "cpu" else min(4, available_cores())


def batch_bytes(run):
    """Size of a batch, or more. run: Settings."""
    image = 3 * run.model.input_size**2 * (1 if run.task == PRETRAIN else 4)  # what is augmented may be float32
    return run.optim.batch_size * (image + 4 * run.model.patches)


def train_batches(
    images,
    model,
    optim,
    *,
    seed,
    broken,
    workers,
    pin=False,
    with_labels=False,
    crop=CROPS["resized"],
    transform=None,
    boxes_only=False,
):
    """Training batches in the order of a BatchOrder. model, optim: ModelSettings, OptimSettings.

    boxes_only: see TrainImages. The images are TrainImages or, with a transform, AugmentedImages.
    """
    if transform is None:
        dataset = TrainImages(images, model.input_size, model.patches, seed, with_labels, crop, boxes_only)
    else:
        dataset = AugmentedImages(images, transform, seed)
    order = BatchOrder(len(images), optim.batch_size, optim.accum_iter, seed)
    return Batches(dataset, broken, workers, pin, batch_sampler=order)


def val_batches(
    images,
    model,
    *,
    batch_size,
    broken,
    workers,
    pin=False,
    with_labels=False,
    keep_workers=True,
    crop=CROPS["resized"],
    only=None,
):
    """Every validation image once, in order; the last batch may be smaller. Several processes take turns by image.

    keep_workers: the worker processes stay for the next pass over the images. only: indices of images, for all of them.
    """
    dataset = ValImages(images, model.input_size, model.patches, with_labels, crop)
    own = (range(len(dataset)) if only is None else only)[distributed.rank() :: distributed.size()]
    return Batches(dataset, broken, workers, pin, keep_workers, batch_size=batch_size, sampler=own)


class OnDevice:
    """Batches whose images, labels and noise are on a device: crops are made there where `images`, ResidentImages, are."""

    def __init__(self, batches, device, images=None):
        self.batches, self.device, self.images = batches, device, images
        self.dataset, self.order = batches.dataset, batches.order

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            yield self.move(batch)

    def move(self, batch):
        """A batch with "images" uint8 (N, 3, S, S), or what a transform made, "labels" and, if there is any, "noise" there."""
        if self.images is not None:
            where = batch["index"], batch["place"], batch["mirrored"], self.dataset.input_size
            batch = {**batch, "images": self.dataset.crop.cut_resident(self.images, *where)}
        there = {name: batch[name] for name in ("images", "labels", "noise") if name in batch}
        return {**batch, **{name: tensor.to(self.device, non_blocking=True) for name, tensor in there.items()}}


class Loaders:
    """The batches of a run's images, ready on its device; how they get there is nobody else's business.

    source: Source; run: Settings; device: torch.device. `validation` are batches of the validation images, each once and in
    order; `broken` counts files that could not be read, of which `say` tells.
    """

    def __init__(self, source, run, device, with_labels, say):
        self.source, self.run, self.device = source, run, device
        self.broken = BrokenImages(say)
        self.how = {
            "broken": self.broken,
            "workers": with_room(workers(run.data.num_workers, source.train, device), batch_bytes(run), say),
            "pin": device.type == "cuda",
            "with_labels": with_labels,
            "crop": CROPS[run.data.crop],
        }
        self.images = None  # training images that live on the device
        self.validation = self._kept(val_batches(source.val, run.model, batch_size=run.optim.batch_size, **self.how))

    def training(self, box=None, transform=None):
        """Training batches of random crops, in the order that `order` has, an epoch at a time: OnDevice.

        box: of crops that are resized, another function than random_resized_crop_box; transform: instead of crops, of PIL
        images, see AugmentedImages.
        """
        crop = self.how["crop"] if box is None else self.how["crop"].with_box(box)
        if transform is None:
            self.images = resident.place(self.source.train, self.device, self.run.data.resident)
        batches = train_batches(
            self.source.train,
            self.run.model,
            self.run.optim,
            seed=self.run.seed,
            transform=transform,
            boxes_only=self.images is not None,
            **{**self.how, "crop": crop},
        )
        return OnDevice(batches, self.device, self.images)

    def whole(self):
        """Training images as validation has them: whole, once, in order."""
        images, model = self.source.train, self.run.model
        batch_size = self.run.optim.batch_size
        batches = val_batches(images, model, batch_size=batch_size, keep_workers=False, **self.how)
        return self._kept(batches, self.images)

    def some(self, n):
        """As `whole`, an even choice of n training images, or all if there are fewer; cut anew each time."""
        images, model = self.source.train, self.run.model
        chosen = np.unique(np.linspace(0, len(images) - 1, n).round().astype(np.int64)).tolist()
        batch_size = self.run.optim.batch_size
        batches = val_batches(images, model, batch_size=batch_size, keep_workers=False, only=chosen, **self.how)
        return OnDevice(batches, self.device)

    def _kept(self, batches, images=None):
        kept = resident.keep(batches, self.device, images, self.run.data.resident)
        return OnDevice(batches, self.device) if kept is batches else kept
