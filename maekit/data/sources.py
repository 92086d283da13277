"""Where images come from: the registry of sources, and the one that a run's settings ask for. No torch."""

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from . import arrays, demo, folders, hub
from .protocol import SourceImages

_SUBSET, _HELD, _WATCHED = 0xDA7A, 0x4E1D, 0x7A1D  # tags of random streams: --max_images, --val_share, --max_val_images


@dataclass
class Source:
    """Training and validation images of one data set; classes are the sorted names of its classes.

    left_out: what the data set has that is not among them, as phrases. val_images: how many there are for validation, if some
    are left out, else None.
    """

    name: str
    train: SourceImages
    val: SourceImages
    classes: list
    fingerprint: str
    left_out: list = field(default_factory=list)
    val_images: int | None = None

    def describe(self):
        """What config.json keeps."""
        return {
            "source": self.name,
            "train": self.train.root,
            "val": self.val.root,
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "val_images": len(self.val),
            "classes": len(self.classes),
        }


def _hub(data):
    if data.hf_dataset is None:
        return None
    return Source(data.hf_dataset, *hub.open_splits(data.hf_dataset, data.hf_config))


def _folder(data):
    folder = data.imagenet_dir
    return None if folder is None else Source(*(arrays.open_splits(folder) or folders.open_splits(folder)))


def _demo(data):
    return Source("demo", *folders.open_splits(demo.ensure())[1:])


SOURCES = (
    _hub,
    _folder,
    _demo,
)  # each makes a Source of DataSettings, None if they do not ask for it; the first one counts


def open_source(data, seed):
    """The Source that DataSettings ask for, with a val_share where it has no validation, training images reduced to
    max_images, those for validation to max_val_images. Raises InputError."""
    source = next(source for opened in SOURCES if (source := opened(data)) is not None)
    _see_to_validation(source, data.val_share)
    if data.max_images is not None and data.max_images < len(source.train):
        chosen = even_subset(source.train.labels, len(source.classes), data.max_images, seed)
        source.train = source.train.subset(chosen)
    if data.max_val_images is not None and data.max_val_images < len(source.val):
        source.val_images = len(source.val)
        source.val = source.val.subset(spread(len(source.val), data.max_val_images))
    return source


def _see_to_validation(source, share):
    """Validation images for a Source that has none: a share of every class's training images, the same for every run."""
    if source.val is not None:
        if share is not None:
            raise InputError(f"--val_share {share:g}: the validation images are {source.val.root}. Leave it out.")
        return
    if share is None:
        besides = f" (it has {'; '.join(source.left_out)})" if source.left_out else ""
        raise InputError(
            f"{source.train.root}: there is no val/, and no split validation or test, beside it{besides}. --val_share 0.1 takes "
            "a tenth of the training images for validation. See docs/data.md."
        )
    held = share_of_every_class(source.train.labels, len(source.classes), share)
    if not len(held):
        raise InputError(
            f"--val_share {share:g}: of {len(source.train)} training images none are left for validation: "
            "every class needs 2 or more."
        )
    source.val = source.train.subset(held)
    source.train = source.train.subset(np.setdiff1d(np.arange(len(source.train)), held))


def share_of_every_class(labels, n_classes, share):
    """Sorted indices of a share of the images of every class, drawn; one at least where a class has two or more."""
    rng, chosen = np.random.default_rng(_HELD), []
    for label in range(n_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        n = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen.append(members[: max(n, 0)])
    return np.sort(np.concatenate(chosen))


def spread(n, n_chosen):
    """Sorted indices of n_chosen of n images, one drawn from each of n_chosen equal parts of their order, always the same.

    Where images are in the order of their classes, as those of folders are, classes have their shares; it takes no labels.
    """
    rng, edges = np.random.default_rng(_WATCHED), np.arange(n_chosen + 1) * n // n_chosen
    return rng.integers(edges[:-1], edges[1:])


def even_subset(labels, n_classes, n_images, seed):
    """Sorted indices of n_images of the labelled images, an even, seeded share of every class.

    With fewer images than classes: one image each of n_images seeded classes. A class with too few images gives all
    it has and the others fill up.
    """
    rng = np.random.default_rng([_SUBSET, seed])
    room = np.bincount(labels, minlength=n_classes)
    share = np.zeros(n_classes, dtype=int)
    order = rng.permutation(n_classes)  # who gets one more where it does not divide
    while (left := n_images - share.sum()) > 0:
        open_classes = order[share[order] < room[order]]
        each = left // len(open_classes)
        if each == 0:
            share[open_classes[:left]] += 1
        else:
            share[open_classes] = np.minimum(share[open_classes] + each, room[open_classes])
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(room)[:-1])
    chosen = [rng.permutation(members)[:count] for members, count in zip(by_class, share)]
    return np.sort(np.concatenate(chosen))
