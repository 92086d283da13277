"""Images that are rows of a table in memory or mapped into it, not files of their own."""

import numpy as np


class RowImages:
    """Base of a protocol.SourceImages whose images are rows of `images`; a kind defines `open` and `signature`.

    root names the data set and the split. labels: int64 (n,) or None. rows: which rows of `images` these are, int64 (n,), or
    None for all.
    """

    def __init__(self, root, images, labels, rows=None):
        self.root, self.labels = root, labels
        self._images = images
        self._rows = np.arange(len(images)) if rows is None else rows

    def __len__(self):
        return len(self._rows)

    def is_there(self):
        """A table that is open does not go away."""
        return True

    def file(self, index):
        """Name of an image in messages: data set, split, row."""
        return f"{self.root}[{self._rows[index]}]"

    def subset(self, indices):
        """The images at `indices`, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return type(self)(self.root, self._images, labels, self._rows[indices])
