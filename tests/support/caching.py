"""Caches of images, and their files."""

import os

from maekit.data import cache
from tests.support.batches import open_folder, write_folders


def cached(source, folder, said=None, side=224):
    """The source with a cache in `folder`; what is said goes to the list `said`."""
    return cache.cached(source, str(folder), side, ([] if said is None else said).append)


def small_source(folder, **images):
    return open_folder(write_folders(folder, **images))


def cut(file):
    os.truncate(file, file.stat().st_size - 1000)
