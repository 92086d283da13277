"""Images and their labels in folders: ILSVRC, or class folders below train/ and val/. No torch, so errors come at once."""

import csv
import hashlib
import os
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import InputError
from .listing import Listing, some


class FolderImages:
    """The images of one split: a folder, paths below it, and a class index per image, where there are labels.

    paths: bytes array (n,), so that a million names cost little and worker processes share them. `read_labels` is
    called when labels are first asked for: for a flat validation folder that means reading 50,000 annotations.
    """

    def __init__(self, root, paths, read_labels):
        self.root = str(root)
        self.paths = paths
        self._read_labels = read_labels

    def __len__(self):
        return len(self.paths)

    def __getstate__(self):
        """For worker processes that are not forked: all but the function that reads labels, which belongs to this one."""
        return {**self.__dict__, "_read_labels": None}

    @cached_property
    def labels(self):
        """Class index per image, int64 (n,), or None where the images have no labels."""
        return self._read_labels()

    def file(self, index):
        """Path of an image."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def open(self, index):
        """The image as PIL opens it, not decoded yet. Raises what PIL raises for a file it cannot read."""
        return Image.open(self.file(index))

    def is_there(self):
        """Whether the folder still is."""
        return os.path.isdir(self.root)

    def signature(self):
        """Hash, in hexadecimal, of the folder and of path, size and time of every file."""
        digest = hashlib.sha256(
            os.fsencode(os.path.realpath(self.root)) + b"\0" + b"\n".join(self.paths.tolist()) + b"\0"
        )
        digest.update(np.array([_size_and_time(self.file(i)) for i in range(len(self))], "<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices):
        """The images at `indices`, in that order."""
        return FolderImages(self.root, self.paths[indices], lambda: self.labels[indices])


def open_splits(root):
    """(name, train, val, classes, fingerprint, left out) of a folder: FolderImages twice, the second None where there are none.

    name is ILSVRC or folders; classes are the names of the training folders; the fingerprint, 16 hex digits, is of the paths of
    all images; what was left out are phrases. Raises InputError.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"--imagenet_dir {root}: no such folder. Point it at ILSVRC (with Data/CLS-LOC/train in it), or try --demo."
        )
    ilsvrc = root / "Data" / "CLS-LOC"
    base, name = (ilsvrc, "ILSVRC") if (ilsvrc / "train").is_dir() else (root, "folders")
    if not (base / "train").is_dir():
        raise InputError(
            f"--imagenet_dir {root}: no Data/CLS-LOC/train and no train/ in it. Try --demo, or see docs/data.md."
        )
    train, classes, left_out = _training(root, base / "train")
    val_folder = next((base / n for n in ("val", "validation", "test") if (base / n).is_dir()), None)
    if val_folder is None:
        return name, train, None, classes, _fingerprint(train.paths), left_out
    listing = Listing(val_folder)
    left_out += _left_out(listing)
    if not len(listing.paths):
        raise InputError(
            f"--imagenet_dir {root}: {val_folder} has no images in it{_besides(listing)}. See docs/data.md."
        )
    unused = [n for n in ("val", "validation", "test") if n != val_folder.name and (base / n).is_dir()]
    left_out += [f"split{'s' if unused[1:] else ''} {', '.join(unused)}"] if unused else []
    homes = (root, root.parent.parent) if base == root else (root,)
    val = _validation(listing, train, classes, homes, left_out)
    return name, train, val, classes, _fingerprint(train.paths, val.paths), left_out


def _training(root, folder):
    """(FolderImages, names of classes, what was left out) of a folder of class folders."""
    listing = Listing(folder)
    of_images = listing.classes()
    classes = sorted(set(of_images) - {""})
    if not classes:
        what = "images directly in it but no class folders" if len(listing.paths) else "no images in it"
        raise InputError(f"--imagenet_dir {root}: {folder} has {what}{_besides(listing)}. See docs/data.md.")
    _check_strays(listing, of_images)
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[c] for c in of_images])
    return FolderImages(folder, listing.paths, lambda: labels), classes, _left_out(listing)


def _validation(listing, train, classes, homes, left_out):
    """FolderImages of validation, labelled by a table, by their folders, or by what lies in one of the folders `homes`."""
    folder, paths, of_images = Path(listing.folder), listing.paths, listing.classes()
    index = {name: i for i, name in enumerate(classes)}
    table = folder / "val_annotations.txt"  # Tiny-ImageNet's, whose images lie in val/images
    if table.is_file():
        return FolderImages(folder, paths, lambda: _listed_labels(table, paths, index))
    unknown = sorted(set(of_images) - {""} - set(classes))
    if unknown:
        besides = f"; left out {'; '.join(left_out)}" if left_out else ""
        raise InputError(
            f"{folder / unknown[0]}: {train.root} has no class of that name (it has {some(classes)}{besides}). "
            "Rename the folders so that train and val agree."
        )
    if set(of_images) == {""}:
        return FolderImages(folder, paths, lambda: _flat_val_labels(homes, paths, index))
    _check_strays(listing, of_images)
    return FolderImages(folder, paths, lambda: np.array([index[c] for c in of_images]))


def _check_strays(listing, of_images):
    if "" in of_images:
        stray = os.path.join(listing.folder, os.fsdecode(listing.paths[of_images.index("")]))
        raise InputError(f"{stray}: an image outside the class folders. Move it away.")


def _left_out(listing):
    return [f"in {os.path.basename(listing.folder)}: {what}" for what in listing.left_out()]


def _besides(listing):
    return f" ({'; '.join(listing.left_out())})" if listing.left_out() else ""


def _flat_val_labels(homes, paths, index):
    """Labels of flat validation images by LOC_val_solution.csv, else by the XML annotations, else None."""
    stems = [os.path.splitext(os.path.basename(os.fsdecode(p)))[0] for p in paths]
    for home in homes:
        table, folder = home / "LOC_val_solution.csv", home / "Annotations" / "CLS-LOC" / "val"
        if table.is_file():
            return _lookup(stems, _solution(table), index, table)
        if folder.is_dir():
            return _lookup(stems, {stem: _annotated_class(folder / f"{stem}.xml") for stem in stems}, index, folder)
    return None


def _listed_labels(table, paths, index):
    """Labels of validation images by lines of name, tab, wnid, and more, with or without folders of classes."""
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    wnids = dict(line.split("\t")[:2] for line in lines if line.count("\t"))
    return _lookup([os.path.basename(os.fsdecode(path)) for path in paths], wnids, index, table)


def _solution(table):
    """{image: wnid} of a LOC_val_solution.csv: lines of ImageId,PredictionString, where the first word is the wnid."""
    try:
        with open(table, newline="", encoding="utf-8") as f:
            rows = csv.DictReader(f)
            if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
                raise InputError(
                    f"{table}: has no columns ImageId and PredictionString. Take Kaggle's file, or remove it."
                )
            return {row["ImageId"]: _first_word(row["PredictionString"]) for row in rows}
    except (csv.Error, ValueError, OSError) as error:
        raise InputError(f"{table}: is damaged ({error}). Take Kaggle's file, or remove it.") from error


def _first_word(text):
    words = (text or "").split(maxsplit=1)
    return words[0] if words else None


def _annotated_class(file):
    """wnid of the first object in an annotation; None if there is no file."""
    if not file.is_file():
        return None
    try:
        return ElementTree.parse(file).findtext("object/name")
    except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise InputError(f"{file}: is damaged ({error}). Restore it, or remove Annotations to go without.") from error


def _lookup(stems, wnids, index, where):
    labels = []
    for stem in stems:
        wnid = wnids.get(stem)
        if wnid not in index:
            what = f"has class {wnid}, which is no training folder ({some(list(index))})" if wnid else "has no class"
            raise InputError(f"{where}: {stem} {what}. Restore what is wrong there.")
        labels.append(index[wnid])
    return np.array(labels)


def _size_and_time(file):
    """Bytes and nanoseconds, -1 of a file that is not there."""
    try:
        stat = os.stat(file)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _fingerprint(*lists):
    digest = hashlib.sha256()
    for paths in lists:
        digest.update(b"\n".join(paths.tolist()) + b"\0")
    return digest.hexdigest()[:16]
