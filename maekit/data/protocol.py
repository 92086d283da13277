"""What a set of images has to have, so that everything else works on it: the cache, crops, masks, probes, evaluations."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class ImageSet(Protocol):
    """The images of one split, by index.

    root: where they are, for messages. labels: class index per image, int64 (n,), or None where they have none.
    """

    root: str
    labels: object

    def __len__(self): ...

    def file(self, index):
        """Name of an image in messages."""

    def open(self, index):
        """The image as PIL opens it, not decoded yet. Raises OSError, or what PIL raises, for one it cannot read."""

    def is_there(self):
        """Whether the images can still be reached: False once their disk is gone."""


@runtime_checkable
class SourceImages(ImageSet, Protocol):
    """An ImageSet as a source of data gives it: it can be cached, and reduced by --max_images."""

    def signature(self):
        """Hash, in hexadecimal, that is another one when an image or a label is: a cache belongs to it."""

    def subset(self, indices):
        """The SourceImages at `indices`, int64 (m,), in that order."""
