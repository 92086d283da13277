"""Where images come from: the registry of sources, and the one that a run's settings ask for. No torch."""

from dataclasses import dataclass

import numpy as np

from . import arrays, demo, folders, hub
from .protocol import SourceImages

_SUBSET = 0xDA7A  # tag of the random stream of --max_images


@dataclass
class Source:
    """Training and validation images of one data set; classes are the sorted names of its classes."""

    name: str
    train: SourceImages
    val: SourceImages
    classes: list
    fingerprint: str

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
    """The Source that DataSettings ask for, training images reduced to max_images. Raises InputError."""
    source = next(source for opened in SOURCES if (source := opened(data)) is not None)
    if data.max_images is not None and data.max_images < len(source.train):
        chosen = even_subset(source.train.labels, len(source.classes), data.max_images, seed)
        source.train = source.train.subset(chosen)
    return source


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
