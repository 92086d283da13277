"""Decoded images one after the other in a file, mapped into memory."""

import numpy as np

from . import decoding


class Store:
    """A whole cache: sizes of the images, stored and original, int32 (n, 2), (0, 0) where an image was unreadable."""

    def __init__(self, path, stored, original, offsets):
        self.path, self.stored, self.original, self.offsets = path, stored, original, offsets
        self._pixels = None

    def __getstate__(self):
        return {**self.__dict__, "_pixels": None}  # every process maps the file itself

    def is_whole(self):
        """Whether no image is reduced."""
        return bool((self.stored == self.original).all())

    def picture(self, index):
        """decoding.Picture of an image, None if it was unreadable."""
        height, width = self.stored[index].tolist()
        if height == 0:
            return None
        if self._pixels is None:  # private: nobody writes, but torch warns of memory that it could not write to
            self._pixels = np.asarray(np.memmap(self.path, np.uint8, "c"))
        start = int(self.offsets[index])
        pixels = self._pixels[start : start + height * width * 3].reshape(height, width, 3)
        return decoding.Picture(pixels, *self.original[index].tolist())
