"""The image files below a folder: which are taken, and what is left out, so that a run can say it. No torch."""

import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import InputError

EXTENSIONS = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".pjpeg", ".png", ".webp", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
)
_BESIDE = (
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".html",
    ".pdf",
    ".py",
    ".db",
    ".ini",
)
_OF_SYSTEMS = (
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "__macosx",
    "lost+found",
    "__pycache__",
)


class Listing:
    """The images below a folder of class folders: `paths`, sorted, relative, bytes (n,), so that a million cost little.

    Hidden folders and files and those of operating systems are not looked at; links are followed, but not to a folder that
    they lie in. Raises InputError for a folder that cannot be listed: a class would be missing in silence.
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        self._paths, self._classes, self._others = [], {}, Counter()
        self._links_back = 0
        self._visit(self.folder, "", [_identity(place) for place in Path(os.path.realpath(folder)).parents])
        self.paths = np.array(sorted(os.fsencode(path) for path in self._paths), dtype=bytes)

    def _visit(self, folder, below, around):
        """List a folder; below: its path as files have it; around: _identity of the folders that it is in."""
        try:
            around = [*around, _identity(folder)]
            with os.scandir(folder) as entries:
                entries = [entry for entry in entries if not _is_hidden(entry.name)]
        except OSError as error:
            raise _not_listed(folder, error) from error
        for entry in entries:
            try:
                is_folder = entry.is_dir()
                leads_back = is_folder and entry.is_symlink() and _identity(entry) in around
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise _not_listed(entry.path, error) from error
                leads_back = True  # a link to itself
            if leads_back:
                self._links_back += 1
            elif not is_folder:
                self._take(entry, below)
            else:
                if not below:
                    self._classes[entry.name] = False
                self._visit(entry.path, f"{below}{entry.name}/", around)

    def _take(self, entry, below):
        ending = os.path.splitext(entry.name)[1].lower()
        if ending in EXTENSIONS:
            if entry.is_symlink() or entry.is_file():  # a link that leads nowhere is a broken image; no pipes
                self._paths.append(below + entry.name)
                self._classes[below.partition("/")[0]] = True
        elif not below and entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(f"{entry.path}: is a link that leads nowhere. Restore what it leads to, or remove it.")
        elif ending not in _BESIDE:
            self._others[ending or entry.name] += 1

    def classes(self):
        """First folder of every path; "" for an image that is in none."""
        return [os.fsdecode(path.split(b"/")[0]) if b"/" in path else "" for path in self.paths]

    def left_out(self):
        """What was left out and why, as phrases."""
        found = []
        if empty := sorted(name for name, has_images in self._classes.items() if not has_images):
            found.append(f"{_counted(len(empty), 'class', 'classes')} without images that are read ({some(empty)})")
        if self._others:
            kinds = ", ".join(f"{n} {kind}" for kind, n in self._others.most_common(5))
            found.append(f"files of formats that are not read ({kinds}{', ...' if len(self._others) > 5 else ''})")
        if self._links_back:
            found.append(f"{_counted(self._links_back, 'link', 'links')} that lead back to where they are")
        return found


def _not_listed(place, error):
    return InputError(f"{place}: cannot be listed ({error.strerror}). Allow it (chmod -R a+rX), or move it away.")


def some(names):
    """The first of some names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_hidden(name):
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _identity(place):
    stat = os.stat(place)
    return stat.st_dev, stat.st_ino


def _counted(n, one, several):
    return f"{n} {one if n == 1 else several}"
