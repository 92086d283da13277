"""Crops of images in a GPU's memory as Triton kernels: each value from the few pixels under its filter, two launches a batch."""

import torch
import triton
import triton.language as tl

PLACES = 128  # values of a row or column that a program makes


@triton.jit
def _cubic(x):
    """The filter of PIL's bicubic, a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tl.where(x < 1, near, tl.where(x < 2, far, 0.0))


@triton.jit
def _filter(out, start, length, side):
    """First pixel under the filter of output places `out`, its centre, and how much wider it is where a box is reduced."""
    step = length / side
    wide = tl.maximum(step, 1.0)
    centre = start + (out + 0.5) * step
    return tl.floor(centre - 2 * wide).to(tl.int32), centre, wide


@triton.jit
def _level(value):
    """Rounded to a whole level, halves to even as torch does, in 0 ... 255."""
    value = (value + 12582912.0) - 12582912.0  # 1.5 x 2^23: nothing behind the point is left
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.uint8)


@triton.jit
def _across_kernel(pixels, whole, exact, half, rows, side, taps, PLACES: tl.constexpr):
    """Rows of the boxes resampled: half (n, rows, 3, side). whole (n, 6): start, width, first row and column, last row and
    column (not included); exact (n, 5): top and left within the first pixel, height, width, whether it is mirrored."""
    image, row = tl.program_id(0), tl.program_id(1)
    known, box = whole + image * 6, exact + image * 5
    start, width = tl.load(known), tl.load(known + 1)
    first_row, first, last_row, last = tl.load(known + 2), tl.load(known + 3), tl.load(known + 4), tl.load(known + 5)
    if first_row + row < last_row:
        out = tl.program_id(2) * PLACES + tl.arange(0, PLACES)
        mirrored = tl.load(box + 4) > 0
        low, centre, wide = _filter(tl.where(mirrored, side - 1 - out, out), tl.load(box + 1), tl.load(box + 3), side)
        total = tl.zeros((PLACES,), tl.float32)
        red, green, blue = total, total, total
        origin = pixels + (start + (first_row + row) * width + first) * 3
        for tap in range(taps):
            place = low + tap
            real = (place >= 0) & (place < last - first) & (out < side)
            weight = tl.where(real, _cubic(tl.abs(place + 0.5 - centre) / wide), 0.0)
            total += weight
            red += weight * tl.load(origin + place * 3, mask=real, other=0).to(tl.float32)
            green += weight * tl.load(origin + place * 3 + 1, mask=real, other=0).to(tl.float32)
            blue += weight * tl.load(origin + place * 3 + 2, mask=real, other=0).to(tl.float32)
        into = half + ((image.to(tl.int64) * rows + row) * 3) * side + out
        tl.store(into, _level(red / total), mask=out < side)
        tl.store(into + side, _level(green / total), mask=out < side)
        tl.store(into + 2 * side, _level(blue / total), mask=out < side)


@triton.jit
def _down_kernel(half, whole, exact, crops, rows, side, taps, PLACES: tl.constexpr):
    """Columns of what _across_kernel made resampled: crops (n, 3, side, side)."""
    image, out = tl.program_id(0), tl.program_id(1)
    known, box = whole + image * 6, exact + image * 5
    length = (tl.load(known + 4) - tl.load(known + 2)).to(tl.int32)
    low, centre, wide = _filter(out, tl.load(box), tl.load(box + 2), side)
    value = tl.program_id(2) * PLACES + tl.arange(0, PLACES)  # of a row of all three channels
    total, found = 0.0, tl.zeros((PLACES,), tl.float32)
    origin = half + image.to(tl.int64) * rows * 3 * side + value
    for tap in range(taps):
        place = low + tap
        real = (place >= 0) & (place < length)
        weight = tl.where(real, _cubic(tl.abs(place + 0.5 - centre) / wide), 0.0)
        total += weight
        row = tl.where(real, place, 0)  # of one that does not count, any that is there
        found += weight * tl.load(origin + row * 3 * side, mask=value < 3 * side, other=0).to(tl.float32)
    channel, column = value // side, value % side
    into = crops + ((image.to(tl.int64) * 3 + channel) * side + out) * side + column
    tl.store(into, _level(found / total), mask=value < 3 * side)


def crops(pixels, whole, exact, rows, taps, side):
    """uint8 (n, 3, side, side) of boxes in pixels (P, 3).

    whole: int64 (n, 6) start, width, first row, first column, last row, last column (not included); exact: float32 (n, 5) top
    and left within the first pixel, height, width, whether mirrored. rows: of the highest box, in pixels; taps: (across, down),
    pixels that the widest filter touches.
    """
    n = len(whole)
    half = torch.empty(n, rows, 3, side, dtype=torch.uint8, device=pixels.device)
    found = torch.empty(n, 3, side, side, dtype=torch.uint8, device=pixels.device)
    _across_kernel[(n, rows, triton.cdiv(side, PLACES))](pixels, whole, exact, half, rows, side, taps[0], PLACES=PLACES)
    _down_kernel[(n, side, triton.cdiv(3 * side, PLACES))](
        half, whole, exact, found, rows, side, taps[1], PLACES=PLACES
    )
    return found
