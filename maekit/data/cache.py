"""Images decoded once into one file of uint8 pixels, mapped into memory and so shared by all runs and their workers.

Of a set of images there are, in the cache's folder, under a name that is a hash of their files and of the settings:

    images-<hash>.pixels       the images one after the other, rows of RGB; the shorter side at most `short` pixels
    images-<hash>.npz          their sizes, the parts' checksums, and what the pixels' file looked like when it was whole
    images-<hash>.draft, .parts, .lock    while it is made; a later process goes on with the parts that are there
"""

import json
import os
import shutil
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import files, surroundings
from ..errors import InputError
from ..locks import Lock
from ..machine import available_cores
from . import decoding
from .store import Store
from .workers import leave_to_the_run

SHORT_SIDE = 320  # of a stored image, where the model's images are of up to 224 pixels
MOST_IMAGES = 200_000  # that --cache auto makes a cache for
SHARE_OF_DISK = 0.8  # of what is free, that --cache auto fills at most
VERSION = 2
_PART = 64  # images that are decoded and written together
_IN_PROCESS = 4  # parts, up to which starting other processes takes longer than decoding


class CachedImages:
    """An image set, the pixels of its images from a cache; a protocol.ImageSet."""

    def __init__(self, images, store):
        self.images, self.store, self.root = images, store, images.root

    def __len__(self):
        return len(self.images)

    @property
    def labels(self):
        """Class index per image, int64 (n,), or None."""
        return self.images.labels

    def file(self, index):
        """Path of an image."""
        return self.images.file(index)

    def open(self, index):
        """The image's own file as PIL opens it. Raises what PIL raises."""
        return self.images.open(index)

    def is_there(self):
        """Whether the files still are."""
        return self.images.is_there()


def read(images, index, whole=False, stored=False):
    """Picture of an image of a set, from its cache if it has one. Raises what PIL raises for one it cannot read.

    whole: not a reduction. stored: not one that was unreadable when the cache was made, though it may be readable by now.
    """
    if not isinstance(images, CachedImages):
        return decoding.read(images, index)
    picture = images.store.picture(index)
    if stored and picture is None:
        raise UnidentifiedImageError(images.file(index))
    if picture is None or (whole and not picture.is_whole()):
        return decoding.read(images, index)
    return picture


def home(setting):
    """Folder of --cache DIR or auto."""
    return surroundings.caches() if setting == "auto" else Path(os.path.expanduser(setting))


def short_side(input_size):
    """Shorter side of stored images for images of `input_size` pixels: the largest crops are resized from at least that."""
    return max(SHORT_SIDE, round(input_size * SHORT_SIDE / 224))


def cached(source, setting, input_size, say):
    """The Source with images from a cache, which is made if need be; as it is where there is to be none.

    setting: auto, off or a folder. say: called with a line for the user. auto that cannot have a cache says so and goes
    without; a folder that cannot raises InputError.
    """
    if setting == "off":
        return source
    folder, sets = home(setting), (source.train, source.val)
    count = sum(len(images) for images in sets)
    if setting == "auto" and count > MOST_IMAGES:
        say(f"cache: none for {count} images, more than {MOST_IMAGES}. --cache DIR makes one in any case.")
        return source
    try:
        folder.mkdir(parents=True, exist_ok=True)
        makers = [_Maker(folder, images, short_side(input_size), say) for images in sets]
        _check_room(folder, sum(maker.bytes_to_write() for maker in makers), SHARE_OF_DISK if setting == "auto" else 1)
        train, val = (CachedImages(maker.images, maker.store()) for maker in makers)
    except OSError as error:
        why = f"{folder}: {error.strerror or error}"
        if setting != "auto":
            raise InputError(f"--cache {why}. Choose another folder, or --cache off.") from error
        say(f"cache: none, {why}; images are decoded anew in every epoch. --cache DIR names another folder.")
        return source
    return replace(source, train=train, val=val)


def pixels(source):
    """What the pixels of a Source are: whole, or reduced to a shorter side of so many pixels."""
    stores = [images.store for images in (source.train, source.val) if isinstance(images, CachedImages)]
    if all(store.is_whole() for store in stores):
        return "whole"
    return f"reduced to {max(int(store.stored.min(axis=1).max()) for store in stores if not store.is_whole())}"


def _check_room(folder, needed, share):
    free = shutil.disk_usage(folder).free
    if needed > share * free:
        raise OSError(f"the decoded images take {_size(needed)}, {_size(free)} are free")


def _size(n_bytes):
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


class _Damaged(Exception):
    """What is wrong with a cache; `parts` are its checksums {part: crc} as the index has them, None if it has none."""

    parts = None


class _Maker:
    """The cache of an image set: looked up, else made. Raises OSError if it cannot be written."""

    def __init__(self, folder, images, short, say):
        self.images, self.short, self.say = images, short, say
        key = sha256(f"{VERSION} {short} {_PART} {images.signature()}".encode()).hexdigest()[:16]
        self.pixels, self.index, self.draft, self.parts, self.lock = (
            folder / f"images-{key}.{kind}" for kind in ("pixels", "npz", "draft", "parts", "lock")
        )
        self.opened, self.original = None, None
        try:
            self.opened = self._open()
        except _Damaged:
            pass  # told and mended under the lock

    def bytes_to_write(self):
        """Room that it will take on the disk, beyond what it has."""
        if self.opened:
            return 0
        _, offsets = self._layout()
        there = sum(getattr(os.stat(file), "st_blocks", 0) * 512 for file in (self.draft, self.pixels) if file.exists())
        return max(0, int(offsets[-1]) - there)

    def store(self):
        """The Store, made by this process unless another one is at it, which is waited for."""
        if self.opened:
            return self.opened
        lock, waiting = Lock(self.lock), False
        while not lock.acquire():
            if not waiting:
                self.say(f"cache: waiting for {lock.holder()}, which decodes the same images")
            waiting = True
            time.sleep(0.2)
        try:
            try:
                store = self._open()
            except _Damaged as damage:
                self.say(f"cache {self.pixels}: is damaged ({damage}); what is wrong in it is decoded anew")
                self._salvage(damage.parts)
                store = None
            return store or self._make()
        finally:
            lock.release()

    def _layout(self):
        """Sizes of the stored images, int32 (n, 2), and where they begin and the last one ends, int64 (n + 1,)."""
        if self.original is None:
            with ThreadPoolExecutor(16) as pool:  # waits for the disk more than for the processor
                self.original = list(pool.map(self._size_in_header, range(len(self.images))))
        stored = [decoding.reduced_size(*size, self.short) if size[0] else size for size in self.original]
        stored = np.array(stored, np.int32).reshape(-1, 2)
        return stored, np.concatenate([[0], np.cumsum(stored.astype(np.int64).prod(axis=1) * 3)])

    def _size_in_header(self, index):
        try:
            with self.images.open(index) as image:
                decoding.check_size(image)
                return image.height, image.width
        except decoding.UNREADABLE:
            return 0, 0

    def _open(self):
        """The Store, None if there is none. Raises _Damaged."""
        if not (self.index.exists() and self.pixels.exists()):
            return None
        try:
            with np.load(self.index) as arrays:
                index = dict(arrays)
            stored, original, offsets = (index[name] for name in ("stored", "original", "offsets"))
            checksums, looked = index["checksums"].tolist(), index["looked"].tolist()
        except Exception as error:
            raise _Damaged(f"{self.index.name} cannot be read: {type(error).__name__}") from error
        if len(stored) != len(self.images):
            raise _Damaged(f"{len(stored)} images of {len(self.images)}")
        if _looks(self.pixels) != looked:  # written to since, or copied: each part is compared with its checksum
            good = _whole_parts(self.pixels, offsets, dict(enumerate(checksums)))
            if len(good) < len(checksums) or os.path.getsize(self.pixels) != offsets[-1]:
                damage = _Damaged(f"{len(checksums) - len(good)} of {len(checksums)} parts")
                damage.parts = {part: checksums[part] for part in good}
                raise damage
            try:
                files.write_arrays(self.index, {**index, "looked": _looks(self.pixels)})
            except OSError:
                pass  # not ours; looked at again the next time
        return Store(self.pixels, stored, original, offsets)

    def _salvage(self, parts):
        """Make a draft of what is whole of a damaged cache. parts: {part: checksum}, None if nothing is known."""
        if parts is None:
            self.draft.unlink(missing_ok=True)
        else:
            with np.load(self.index) as arrays:
                broken = np.flatnonzero((arrays["stored"] == 0).any(axis=1))
            lines = [(part, crc, broken[broken // _PART == part].tolist()) for part, crc in parts.items()]
            with files.atomic_write(self.parts) as f:
                f.writelines(json.dumps(line).encode() + b"\n" for line in lines)
            os.replace(self.pixels, self.draft)
        self.pixels.unlink(missing_ok=True)
        self.index.unlink()

    def _make(self):
        """Decode what the draft lacks, then give it its name."""
        stored, offsets = self._layout()
        done = self._finished_parts(offsets)
        n_parts = -(-len(stored) // _PART)
        todo = [part for part in range(n_parts) if part not in done]
        if not done:
            self.say(f"cache: decoding {len(stored)} images into {self.pixels} ({_size(offsets[-1])})")
        elif todo:
            self.say(f"cache: going on with {self.draft}, {len(done)} of {n_parts} parts are there")
        with open(self.draft, "ab") as f:
            f.truncate(offsets[-1])
        workers = 0 if len(todo) <= _IN_PROCESS else min(available_cores(), len(todo))
        loader = DataLoader(
            _Parts(self.images, self.draft, self.short, stored, offsets, todo),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=leave_to_the_run,
            generator=torch.Generator(),  # the loader's own draws stay out of the global stream
        )
        ready = len(stored) - sum(len(_images_of(part, len(stored))) for part in todo)
        with (
            open(self.parts, "a", encoding="utf-8") as journal,
            tqdm(
                desc="cache",
                unit="img",
                total=len(stored),
                initial=ready,
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 60,
                file=sys.stderr,
                disable=not todo,
            ) as bar,
        ):
            for part, crc, broken, problem in loader:
                if problem:
                    raise OSError(problem, os.strerror(problem), str(self.draft))
                done[part] = crc, broken
                journal.write(json.dumps([part, crc, broken]) + "\n")
                journal.flush()
                bar.update(len(_images_of(part, len(stored))))
        for _, broken in done.values():
            stored[broken] = 0
        original = np.where(stored > 0, np.array(self.original, np.int32).reshape(-1, 2), 0)
        arrays = {
            "stored": stored,
            "original": original,
            "offsets": offsets,
            "looked": _looks(self.draft),
            "checksums": np.array([done[part][0] for part in range(n_parts)], np.int64),
        }
        files.write_arrays(self.index, arrays)
        os.replace(self.draft, self.pixels)
        self.parts.unlink(missing_ok=True)
        return Store(self.pixels, stored, original, offsets)

    def _finished_parts(self, offsets):
        """{part: (checksum, broken images)} of an earlier process's draft, those that are whole."""
        if not (self.draft.exists() and self.parts.exists()):
            self.parts.unlink(missing_ok=True)
            return {}
        parts, n_images = {}, len(offsets) - 1
        for line in self.parts.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                part, crc, broken = json.loads(line)
                if not 0 <= part < -(-n_images // _PART) or not set(broken) <= set(_images_of(part, n_images)):
                    continue
            except (ValueError, TypeError, RecursionError):
                continue  # the last one, cut off, or one that is damaged
            parts[part] = crc, broken
        good = _whole_parts(self.draft, offsets, {part: crc for part, (crc, _) in parts.items()})
        parts = {part: parts[part] for part in good}
        with files.atomic_write(self.parts) as f:
            f.writelines(json.dumps([part, *rest]).encode() + b"\n" for part, rest in parts.items())
        return parts


class _Parts(Dataset):
    """Decodes and writes a part when it is asked for: (part, checksum, its broken images, errno if it cannot be written)."""

    def __init__(self, images, draft, short, stored, offsets, todo):
        self.images, self.draft, self.short = images, draft, short
        self.stored, self.offsets, self.todo = stored, offsets, todo

    def __len__(self):
        return len(self.todo)

    def __getitem__(self, number):
        part, broken, whole = self.todo[number], [], []
        for index in _images_of(part, len(self.stored)):
            height, width = self.stored[index].tolist()
            try:
                pixels = decoding.reduce(decoding.read(self.images, index).pixels, self.short)
                if pixels.shape[:2] != (height, width):
                    raise ValueError("not of the size that its header says")
            except decoding.UNREADABLE:
                broken.append(index)
                pixels = np.zeros((height, width, 3), np.uint8)
            whole.append(pixels.tobytes())
        whole = b"".join(whole)
        try:
            with open(self.draft, "r+b") as f:
                f.seek(int(self.offsets[part * _PART]))
                f.write(whole)
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            return part, 0, broken, error.errno
        return part, zlib.crc32(whole), broken, 0


def _images_of(part, n_images):
    return range(part * _PART, min((part + 1) * _PART, n_images))


def _looks(file):
    """Size, time and number of a file: as they were, if nobody wrote to it since."""
    stat = os.stat(file)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _whole_parts(file, offsets, checksums):
    """Those of the parts of a file whose pixels have their checksum, {part: crc}."""
    good, n_images = [], len(offsets) - 1
    with open(file, "rb") as f:
        for part, crc in checksums.items():
            images = _images_of(part, n_images)
            start, end = int(offsets[images.start]), int(offsets[images.stop])
            f.seek(start)
            data = f.read(end - start)
            if zlib.crc32(data) == crc:
                good.append(part)
    return good
