"""Norm layers' one pass each way on CUDA, as Triton kernels: norms.FUSED["cuda"] = kernels.CUDA.

Arithmetic is float32 whatever the type of the values. Sums over rows are made in a fixed order: two runs agree bitwise.
Triton compiles a kernel in less than a second when it is first used, and keeps it.
"""

import hashlib
import linecache
import os
import re
from functools import cache, partial

import torch
import triton
import triton.language as tl

from .one_pass import Fused

COLUMNS = 256  # of a tile, at most
FORWARD_ROWS, FORWARD_WARPS = 8, 4
BACKWARD_ROWS, BACKWARD_WARPS = 8, 8
PROGRAMS = 528  # of the backward pass, about: each sums its rows, and what they summed is summed in turn
_FINISH_ROWS, _FINISH_COLUMNS = 128, 16  # of these sums, at a time
_LARGE = 2**31  # values, whose places 32 bits cannot count


if torch.version.hip or os.environ.get("TRITON_INTERPRET"):

    @triton.jit
    def _exp2(x):
        return tl.exp2(x)

    @triton.jit
    def _reciprocal(x):
        return 1 / x

else:  # one instruction each; what Triton makes of them cares for values below 1e-38, in five more

    @triton.jit
    def _exp2(x):
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)

    @triton.jit
    def _reciprocal(x):
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _tanh(u):
    """1 - 2 / (1 + exp(2u)), within 2e-7."""
    return 1 - 2 * _reciprocal(1 + _exp2(u * 2.8853900817779268))  # 2 / ln 2


@triton.jit
def _exact_tanh(u):
    """As _tanh, exact relative to tanh as well: near 0, where the difference has few digits left, the series, whose relative
    error is below 1e-8 up to 1/4."""
    s = u * u
    near = u * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(s < 1 / 16, near, _tanh(u))


@triton.jit
def _sign(u):
    return tl.where(u < 0, -1.0, 1.0)


@triton.jit
def _atan(u):
    """Within 2e-8. Abramowitz and Stegun, 4.4.49."""
    a = tl.abs(u)
    z = tl.where(a > 1, 1 / a, a)
    s = z * z
    p = -0.0752896400 + s * (0.0429096138 + s * (-0.0161657367 + s * 0.0028662257))
    p = z * (1 + s * (-0.3333314528 + s * (0.1999355085 + s * (-0.1420889944 + s * (0.1065626393 + s * p)))))
    return _sign(u) * tl.where(a > 1, 1.5707963267948966 - p, p)


@triton.jit
def _sin(u):
    """Of up to pi / 2 from 0, within 6e-8: all of its range that a norm asks for, for which libdevice's is long."""
    s = u * u
    return u * (1 + s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880 - s / 39916800)))))


@triton.jit
def _cos(u):
    """As _sin, within 1e-8."""
    s = u * u
    far = 1 / 40320 + s * (-1 / 3628800 + s / 479001600)
    return 1 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * far)))


@triton.jit
def _clamp(u, low, high):
    """Triton's own makes numbers of those that are none."""
    return tl.where(u < low, low, tl.where(u > high, high, u))


_OWN = {"atan": _atan, "clamp": _clamp, "cos": _cos, "sign": _sign, "sin": _sin}
_OF_TRITON = re.compile(r"\b(?=(?:abs|erf|exp|log|sqrt|where)\()")


@cache
def _functions(texts, exact):
    """(f, its derivative) of a row of norms.FUNCTIONS, for kernels to call. exact: for values in float32."""
    own = hashlib.sha256(" ".join(texts).encode()).hexdigest()[:16]  # by its name alone some versions know a function
    source = f"def value_{own}(u):\n    return {texts[0]}\n\n\ndef slope_{own}(u, f):\n    return {texts[1]}\n"
    source, name = _OF_TRITON.sub("tl.", source), f"<norm {own}>"
    linecache.cache[name] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        name,
    )  # Triton reads a function's source
    made = {"tl": tl, **_OWN, "tanh": _exact_tanh if exact else _tanh, "__name__": __name__}
    exec(compile(source, name, "exec"), made)  # noqa: S102 - texts of norms.FUNCTIONS
    return triton.jit(made[f"value_{own}"]), triton.jit(made[f"slope_{own}"])


@triton.jit
def _places(start, column, rows, width, ROWS: tl.constexpr, LARGE: tl.constexpr):
    """Where the values of a tile lie, and which of them there are. start: its first row."""
    row = start + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    if LARGE:
        row = row.to(tl.int64)
    return row[:, None] * width + column[None, :], inside


@triton.jit
def _forward_kernel(
    x,
    alpha,
    shift,
    weight,
    bias,
    y,
    rows,
    width: tl.constexpr,
    VALUE: tl.constexpr,
    SHIFTED: tl.constexpr,
    LARGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    at, inside = _places(tl.program_id(0) * ROWS, column, rows, width, ROWS, LARGE)
    u = tl.load(x + at, mask=inside, other=0).to(tl.float32) * tl.load(alpha).to(tl.float32)
    w = tl.load(weight + column, mask=real, other=0).to(tl.float32)
    b = tl.load(bias + column, mask=real, other=0).to(tl.float32)
    if SHIFTED:
        u += tl.load(shift).to(tl.float32)
    tl.store(y + at, VALUE(u) * w[None, :] + b[None, :], mask=inside)


@triton.jit
def _backward_kernel(
    x,
    alpha,
    shift,
    weight,
    grad,
    dx,
    sums,
    scalars,
    rows,
    width: tl.constexpr,
    each,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    SHIFTED: tl.constexpr,
    LARGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of `each` rows, a multiple of ROWS. sums (programs, 2, width): of weight and bias; scalars (2, all programs): of
    alpha and shift."""
    a = tl.load(alpha).to(tl.float32)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    w = tl.load(weight + column, mask=real, other=0).to(tl.float32)
    d_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_shift, d_weight, d_bias = d_alpha, d_alpha, d_alpha
    for start in range(0, each, ROWS):
        at, inside = _places(tl.program_id(1) * each + start, column, rows, width, ROWS, LARGE)
        values = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
        u = values * a
        if SHIFTED:
            u += tl.load(shift).to(tl.float32)
        t = VALUE(u)
        d = g * w[None, :] * SLOPE(u, t)
        if SHIFTED:
            d_shift += d
        d_alpha += d * values
        d_weight += g * t
        d_bias += g
        tl.store(dx + at, d * a, mask=inside)
    own = sums + tl.program_id(1) * 2 * width + column
    tl.store(own, tl.sum(d_weight, 0), mask=real)
    tl.store(own + width, tl.sum(d_bias, 0), mask=real)
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(scalars + number, tl.sum(d_alpha))
    if SHIFTED:
        tl.store(scalars + tl.num_programs(0) * tl.num_programs(1) + number, tl.sum(d_shift))


@triton.jit
def _finish_kernel(
    sums,
    scalars,
    d_alpha,
    d_shift,
    d_weight,
    d_bias,
    programs,
    n_scalars,
    width: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums of the backward kernel's sums; the last program does the scalars."""
    block = tl.program_id(0)
    if block < tl.num_programs(0) - 1:
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, programs, ROWS):
            row = start + tl.arange(0, ROWS)
            inside = (row < programs)[:, None] & (column < 2 * width)[None, :]
            total += tl.load(sums + row[:, None] * 2 * width + column[None, :], mask=inside, other=0)
        found = tl.sum(total, 0)
        tl.store(d_weight + column, found, mask=column < width)
        tl.store(d_bias + column - width, found, mask=(column >= width) & (column < 2 * width))
    else:
        alphas = tl.zeros((ROWS * COLUMNS,), tl.float32)
        shifts = alphas
        for start in range(0, n_scalars, ROWS * COLUMNS):
            place = start + tl.arange(0, ROWS * COLUMNS)
            alphas += tl.load(scalars + place, mask=place < n_scalars, other=0)
            if SHIFTED:
                shifts += tl.load(scalars + n_scalars + place, mask=place < n_scalars, other=0)
        tl.store(d_alpha, tl.sum(alphas))
        if SHIFTED:
            tl.store(d_shift, tl.sum(shifts))


def _columns(width):
    """Of a tile: the most, of powers of 2, that the width is a multiple of; of an odd width a power of 2 above it."""
    fitting = width & -width
    return min(COLUMNS, fitting if fitting >= 64 else triton.next_power_of_2(width))


def _exact(*tensors):
    return torch.float32 in {t.dtype for t in tensors}


def forward(texts, rows, alpha, shift, weight, bias, y):
    (n, width), shifted = rows.shape, shift is not None
    columns, (value, _) = _columns(width), _functions(texts, _exact(rows, y))
    tile = max(1, FORWARD_ROWS * COLUMNS // columns)
    _forward_kernel[(triton.cdiv(n, tile), triton.cdiv(width, columns))](  # of the second there are at most 65,535
        rows,
        alpha,
        shift if shifted else alpha,
        weight,
        bias,
        y,
        n,
        width,
        VALUE=value,
        SHIFTED=shifted,
        LARGE=rows.numel() >= _LARGE,
        ROWS=tile,
        COLUMNS=columns,
        num_warps=FORWARD_WARPS,
    )


def backward(texts, rows, alpha, shift, weight, bias, grad):
    """Gradients of rows, alpha, shift, weight and bias."""
    (n, width), shifted = rows.shape, shift is not None
    columns, (value, slope) = _columns(width), _functions(texts, _exact(rows, grad))
    tile, blocks = max(1, BACKWARD_ROWS * COLUMNS // columns), triton.cdiv(width, columns)
    each = tile * triton.cdiv(n, tile * max(1, PROGRAMS // blocks))
    programs = triton.cdiv(n, each)
    dx = torch.empty_like(rows)
    sums = rows.new_empty(programs, 2, width, dtype=torch.float32)
    scalars = rows.new_empty(2, programs * blocks, dtype=torch.float32)
    d_alpha, d_weight, d_bias = torch.empty_like(alpha), torch.empty_like(weight), torch.empty_like(bias)
    d_shift = torch.empty_like(shift) if shifted else None
    _backward_kernel[(blocks, programs)](
        rows,
        alpha,
        shift if shifted else alpha,
        weight,
        grad,
        dx,
        sums,
        scalars,
        n,
        width,
        each,
        VALUE=value,
        SLOPE=slope,
        SHIFTED=shifted,
        LARGE=rows.numel() >= _LARGE,
        ROWS=tile,
        COLUMNS=columns,
        num_warps=BACKWARD_WARPS,
    )
    _finish_kernel[(triton.cdiv(2 * width, _FINISH_COLUMNS) + 1,)](
        sums,
        scalars,
        d_alpha,
        d_shift if shifted else d_alpha,
        d_weight,
        d_bias,
        programs,
        programs * blocks,
        width,
        SHIFTED=shifted,
        ROWS=_FINISH_ROWS,
        COLUMNS=_FINISH_COLUMNS,
    )
    return dx, d_alpha, d_shift, d_weight, d_bias


CUDA = Fused(lambda texts: (partial(forward, texts), partial(backward, texts)))


def try_out(device):
    """Run both once on a device. Raises what Triton raises where it does not work."""
    rows, one, channels = torch.ones(2, 8, device=device), torch.ones(1, device=device), torch.ones(8, device=device)
    texts = "tanh(u)", "1 - f * f"
    forward(texts, rows, one, None, channels, channels, torch.empty_like(rows))
    backward(texts, rows, one, None, channels, channels, rows)
