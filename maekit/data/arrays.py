"""Images that lie in a few files of arrays: MNIST's IDX files and CIFAR's python batches, read as they are. No torch."""

import gzip
import hashlib
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .rows import RowImages

_IDX = re.compile(r"(.*?)(train|t10k|test)-images[-.]idx3-ubyte(\.gz)?")
_MOST_BYTES = 2**32  # of a file once it is unpacked


class ArrayImages(RowImages):
    """The images of one split as an array, uint8 (n, h, w) of grey ones or (n, h, w, 3)."""

    def open(self, index):
        """The image as PIL has it."""
        return Image.fromarray(self._images[self._rows[index]])

    def signature(self):
        """Hash, in hexadecimal, of name, rows, labels and pixels."""
        digest = hashlib.sha256(self.root.encode() + b"\0" + self._rows.astype("<i8").tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self._images)
        return digest.hexdigest()


def open_splits(root):
    """(name, train, val, classes, fingerprint) of a folder with such files, None if there are none in it.

    name is IDX or CIFAR; ArrayImages twice; the fingerprint, 16 hex digits, is of pixels and labels. Raises InputError.
    """
    root = Path(root)
    for name, below, read in (("IDX", ("", "MNIST/raw", "raw"), _idx), ("CIFAR", ("", *_CIFAR_FOLDERS), _cifar)):
        for folder in (root / part for part in below):
            if folder.is_dir() and (found := read(folder)):
                *splits, classes = found
                return name, *_checked(folder, splits, classes), classes, _fingerprint(splits)
    return None


def _checked(folder, splits, classes):
    """ArrayImages of [(images, labels)] of training and validation. Raises InputError if they do not go together."""
    for which, (images, labels) in zip(("training", "validation"), splits):
        if not len(images):
            raise InputError(f"--imagenet_dir {folder}: has no {which} images. Download it again.")
        if len(images) != len(labels):
            raise InputError(
                f"--imagenet_dir {folder}: {len(images)} {which} images, but {len(labels)} labels. Download it again."
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            wrong = labels[(labels < 0) | (labels >= len(classes))][0]
            raise InputError(
                f"--imagenet_dir {folder}: a {which} image has label {wrong}, which is none of the {len(classes)} classes "
                "of the training images. Choose another set."
            )
    return [ArrayImages(f"{folder} {part}", *arrays) for part, arrays in zip(("train", "test"), splits)]


def _fingerprint(splits):
    digest = hashlib.sha256()
    for images, labels in splits:
        digest.update(f"{images.shape}".encode() + labels.astype("<i8").tobytes())
        digest.update(images)
    return digest.hexdigest()[:16]


# IDX, the format of MNIST and of those made after it


def _idx(folder):
    """(training, test, classes) of a folder of IDX files, None if it has none of images."""
    found = {}
    for file in _names(folder):
        if match := _IDX.fullmatch(file):  # a file unpacked comes before the same one packed
            found.setdefault((match[1], "train" if match[2] == "train" else "test"), folder / file)
    names = list(dict.fromkeys(name for name, _ in found))
    if not found:
        return None
    if len(names) > 1:
        raise InputError(
            f"--imagenet_dir {folder}: has the IDX files of {len(names)} sets ({', '.join(sorted(names))}). "
            "Move one of them to a folder of its own."
        )
    parts = []
    for part, example in (("train", "train-images-idx3-ubyte.gz"), ("test", "t10k-images-idx3-ubyte.gz")):
        images = found.get((names[0], part))
        if images is None:
            raise InputError(f"--imagenet_dir {folder}: has no {names[0]}{example}. Download it, too.")
        labels = _labels_beside(images)
        parts.append((_read_idx(images, 3), _read_idx(labels, 1).astype(np.int64)))
    classes = [str(label) for label in range(int(parts[0][1].max(initial=-1)) + 1)]
    return *parts, classes


def _names(folder):
    """Sorted names in a folder, none if it cannot be looked into, which others will say."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _labels_beside(images):
    """The file of labels of a file of images, packed or not."""
    stem = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    for name in (stem, f"{stem}.gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise InputError(f"--imagenet_dir {images.parent}: has {images.name} but no {stem}.gz. Download it, too.")


def _read_idx(file, dimensions):
    """uint8 array of an IDX file: two zero bytes, type, number of dimensions, their sizes, the values row by row."""
    data = _unpacked(file)
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes((0, 0, 8, dimensions)):
        raise InputError(f"{file}: is no IDX file of {dimensions} dimensions of bytes. Download it again.")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    expected = head + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise InputError(f"{file}: has {len(data)} bytes where its header says {expected}. Download it again.")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _unpacked(file):
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as f:
            data = f.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file}: cannot be read ({why}). Download it again.") from error
    return data


# CIFAR, as its page has it for Python

_CIFAR_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
_KINDS = (  # files of training and test images, and the file and key of the names of classes; the key of labels
    ([f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta", b"label_names", b"labels"),
    (["train"], "test", "meta", b"fine_label_names", b"fine_labels"),
)


def _cifar(folder):
    """(training, test, classes) of a folder of CIFAR-10's or CIFAR-100's python batches, None if it has none."""
    for training, test, meta, names, labels in _KINDS:
        files = [*training, test, meta]
        there = [name for name in files if (folder / name).is_file()]
        if len(there) < 2:  # a file called test, say, is none of a set
            continue
        missing = [name for name in files if name not in there]
        if missing:
            raise InputError(f"--imagenet_dir {folder}: has no {missing[0]}. Unpack the whole archive.")
        classes = _value(folder / meta, names)
        if not (isinstance(classes, list) and all(isinstance(name, bytes) for name in classes)):
            raise InputError(f"{folder / meta}: has no names of classes. Download it again.")
        classes = [name.decode(errors="replace") for name in classes]
        batches = [_batch(folder / name, labels) for name in training]
        together = tuple(np.concatenate(arrays) for arrays in zip(*batches))
        return together, _batch(folder / test, labels), classes
    return None


def _batch(file, labels):
    """(uint8 (n, 32, 32, 3), int64 (n,)) of a file of pickled rows, each a channel after the other."""
    rows, known = _value(file, b"data"), _value(file, labels)
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == 3072):
        raise InputError(f"{file}: has no rows of 3,072 bytes. Download it again.")
    if not (isinstance(known, list) and all(isinstance(label, int) and 0 <= label < 100 for label in known)):
        raise InputError(f"{file}: has labels that are no whole numbers from 0 to 99. Download it again.")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), np.array(known, np.int64)


def _value(file, key):
    """What a pickled dict has under a key."""
    try:
        with open(file, "rb") as f:
            found = _Plain(f, encoding="bytes").load()
        return found[key]
    except Exception as error:  # damaged, a pickle may raise anything
        why = str(error) if isinstance(error, _Refused) else type(error).__name__
        raise InputError(
            f"{file}: is no batch of CIFAR's for Python, or is damaged ({why}). Download it again."
        ) from error


class _Refused(Exception):
    """What a pickle asks for and does not get."""


class _Plain(pickle.Unpickler):
    """Arrays of numbers, and what Python writes as it is; nothing that runs code."""

    def find_class(self, module, name):
        if name in ("_reconstruct", "ndarray", "dtype") and re.fullmatch(r"numpy(\._?core\.multiarray)?", module):
            return super().find_class(module.replace("numpy.core", _CORE), name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return super().find_class(module, name)
        raise _Refused(f"its pickle asks for {module}.{name}")


_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"
