"""Pixels of an image file, and crops of them: uint8 from the file to the batch."""

import math
import os
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated in 0.29: without it PIL decodes, to the same pixels
    decode_jpeg = None

# what a file that is no image, or not whole, makes PIL raise: of damaged headers whatever its readers stumble over
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError),
)
warnings.filterwarnings("ignore", module="PIL")  # a line for each damaged file; those that cannot be read are named

MOST_ELONGATED = 100  # times its shorter side that an image's longer one may be; it is resized by the shorter one
_PIL_SIDE = 128
_SHIFTS = 8  # how many output pixels before a box the resampling may begin, see _grid


class Picture:
    """An image in memory: pixels, uint8 (h, w, 3), of an original of `height` x `width`, of which they may be a reduction.

    Boxes are in the original's coordinates. They are resized bicubic and antialiased: to sides of up to _PIL_SIDE pixels by
    PIL, to larger ones by torch, which is three times faster and rounds differently, by 0.04 levels of 255 in the mean.
    """

    def __init__(self, pixels, height=None, width=None):
        self.pixels = pixels
        self.height, self.width = height or pixels.shape[0], width or pixels.shape[1]

    def is_whole(self):
        """Whether the pixels are the original's."""
        return self.pixels.shape[:2] == (self.height, self.width)

    def image(self):
        """The pixels as a PIL image."""
        return _as_image(self.pixels)

    def crop(self, top, left, height, width, side, flip=False):
        """uint8 (3, side, side): a box resized, and mirrored left to right if `flip`."""
        if self.is_whole() and side <= _PIL_SIDE:
            box = _as_image(self.pixels[top : top + height, left : left + width])
            resized = np.asarray(box.resize((side, side), Image.BICUBIC)).transpose(2, 0, 1)
            return torch.from_numpy(np.array(resized[..., ::-1] if flip else resized, order="C"))
        resized = resample(self.pixels, *self.stored_box(top, left, height, width), side)
        return resized.flip(2) if flip else resized

    def stored_box(self, top, left, height, width):
        """A box in the coordinates of the pixels, which may lie between them."""
        down, across = self.pixels.shape[0] / self.height, self.pixels.shape[1] / self.width
        return top * down, left * across, height * down, width * across

    def center_crop(self, short, side):
        """uint8 (3, side, side): the middle of the image with its shorter side resized to `short`."""
        if short == side and self.pixels.shape == (side, side, 3) and self.is_whole():
            return torch.from_numpy(np.array(self.pixels.transpose(2, 0, 1), order="C"))  # as it is
        if side <= _PIL_SIDE and self.is_whole():
            image = TF.resize(self.image(), short, InterpolationMode.BICUBIC)
            return TF.pil_to_tensor(TF.center_crop(image, [side, side]))
        height, width = (short * s // min(self.height, self.width) for s in (self.height, self.width))
        top, left = round((height - side) / 2), round((width - side) / 2)
        return _resize(self.pixels, height, width)[:, top : top + side, left : left + side].contiguous()


def read(images, index):
    """Picture of an image of a set, decoded from its file. Raises what PIL raises for what it cannot read, UNREADABLE."""
    with images.open(index) as image:
        return Picture(decode(image))


def decode(image):
    """uint8 (h, w, 3), RGB, of an image that PIL has opened. Raises what PIL raises.

    torchvision gives JPEGs the pixels that PIL gives them, and sooner. What it refuses is left to PIL. Grey values of 16 bits
    are scaled from 0 to 65535, floats from 0 to 1; ValueError for others, which PIL would make all white or black. A tag that
    says how the camera was held (EXIF) turns no image, as in upstream.
    """
    check_size(image)
    with _silent:
        return _decoded(image)


def check_size(image):
    """Raise ValueError for a PIL image so elongated, as its header has it, that its middle would take gigabytes to cut."""
    shorter, longer = sorted(image.size)
    if not 0 < longer <= MOST_ELONGATED * shorter:
        raise ValueError(f"{image.width} x {image.height} pixels, where up to 1 : {MOST_ELONGATED} are read")


class _Silence:
    """What libjpeg and libtiff print of a damaged file goes nowhere: they write to the process's stderr, each time.

    The first of several threads in it takes stderr away, the last one gives it back.
    """

    def __init__(self):
        self.lock, self.inside, self.stderr = threading.Lock(), 0, None

    def __enter__(self):
        with self.lock:
            if not self.inside and sys.__stderr__ is not None:  # else 2 may be any file
                self.stderr = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            self.inside += 1

    def __exit__(self, *_):
        with self.lock:
            self.inside -= 1
            if not self.inside and self.stderr is not None:
                os.dup2(self.stderr, 2)
                os.close(self.stderr)
                self.stderr = None


_silent = _Silence()


def _decoded(image):
    if decode_jpeg and image.format == "JPEG" and image.mode in ("RGB", "L"):
        start = image.fp.tell()
        image.fp.seek(0)
        data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        image.fp.seek(start)
        try:
            return decode_jpeg(data, ImageReadMode.RGB).permute(1, 2, 0).numpy()
        except RuntimeError:
            pass
    return np.array((_eight_bits(image) if image.mode[0] in "IF" else image).convert("RGB"))


def _eight_bits(image):
    """A grey PIL image with 8 bits a pixel of one with more."""
    if not (image.mode == "F" or image.mode.startswith("I;16") or image.format in ("PNG", "PPM")):
        raise ValueError("whole numbers of 32 bits, where 8 and 16 are read")
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"floats from {values.min():g} to {values.max():g}, where 0 to 1 are read")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def reduce(pixels, short):
    """Pixels (h, w, 3) with the shorter side at most `short`: themselves, or resized in their aspect.

    Lanczos: of PIL's filters the one whose reductions give crops nearest to the original's.
    """
    height, width = reduced_size(*pixels.shape[:2], short)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.array(_as_image(pixels).resize((width, height), Image.LANCZOS))


def reduced_size(height, width, short):
    """(height, width) of what `reduce` gives."""
    scale = short / min(height, width)
    return (height, width) if scale >= 1 else (round(height * scale), round(width * scale))


def resample(pixels, top, left, height, width, side):
    """uint8 (3, side, side) of a box of pixels (h, w, 3), whose corners may lie between them: bicubic, antialiased.

    The middle is where the box has it; its edges are 0.04 pixels off at the median of random crops of reduced ImageNet, 0.27
    at the 95th percentile, see _grid.
    """
    y, bottom, extra_rows, down = _grid(top, height, side, pixels.shape[0])
    x, right, extra_columns, across = _grid(left, width, side, pixels.shape[1])
    size = (side + extra_rows, side + extra_columns)
    return _resize(pixels[y:bottom, x:right], *size, 1 / down, 1 / across)[:, extra_rows:, extra_columns:]


def _resize(pixels, height, width, *scales):
    """uint8 (3, height, width) of pixels (h, w, 3). scales: of the axes, where they are not those of the sizes."""
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    # what F.interpolate calls; that takes either sizes or scales
    return torch.ops.aten._upsample_bicubic2d_aa(source, [height, width], False, *(scales or (None, None)))[0]


def _grid(start, length, side, limit):
    """Where to resample one axis of a box, for a resampling that starts at whole pixels only.

    It may begin up to _SHIFTS output pixels before the box; of these places the one nearest to a whole pixel is taken,
    and what remains is balanced about the middle of the box. Returns first and last pixel (not included) of the input,
    the number of output pixels to drop, and the step of an output pixel.
    """
    step = length / side
    extra = min(
        range(min(_SHIFTS, int(start / step)) + 1), key=lambda n: abs(start - n * step - round(start - n * step))
    )
    first = min(round(start - extra * step), limit - 1)
    step = (start - first + length / 2) / (extra + side / 2)
    return first, min(limit, math.ceil(start + length)), extra, step


def _as_image(pixels):
    """PIL image of pixels (h, w, 3), rows in their order, which may lie apart: copied once."""
    height, width = pixels.shape[:2]
    stride = pixels.strides[0]
    flat = np.lib.stride_tricks.as_strided(pixels, ((height - 1) * stride + width * 3,), (1,))
    return Image.frombuffer("RGB", (width, height), flat, "raw", "RGB", stride, 1)
