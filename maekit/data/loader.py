"""From image files to batches: crops, masks and order are decided by (seed, epoch, image), by nothing else.

A batch is a dict of CPU tensors: images uint8 (N, 3, S, S), labels int64 (N,) with -1 for none, noise float32 (N, L)
that decides the masks, index int64 (N,), broken int64 (N,) with the index of a file that could not be read, else -1.
"""

import torch
from torch.utils.data import DataLoader

from .. import distributed
from ..errors import InputError
from ..machine import available_cores
from . import cache
from .datasets import AugmentedImages, TrainImages, ValImages, check_root
from .streams import ORDER, generator
from .workers import leave_to_the_run, tell_of_no_dead_worker, tell_of_one_dead_worker

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
            self.say(f"broken image {images.file(index)}: replaced by another ({len(self)} so far)")
        if len(found) > BROKEN_SHARE * len(images):
            check_root(images)
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
                yield batch
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
    own = range(distributed.rank(), len(dataset), distributed.size())
    return Batches(dataset, broken, workers, pin, keep_workers, batch_size=batch_size, sampler=own)


def whole_batches(images, run, loading):
    """Training images as validation has them: whole, once, in order; for one pass."""
    return val_batches(images, run.model, batch_size=run.optim.batch_size, keep_workers=False, **loading)
