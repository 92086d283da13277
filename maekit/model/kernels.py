"""Norm layers' one pass each way on CUDA, as Triton kernels: norms.FUSED["cuda"] = kernels.FUSED.

Arithmetic is float32 whatever the type of the values. Sums over rows are made in a fixed order: two runs agree bitwise.
Triton compiles a kernel in less than a second when it is first used, and keeps it.
"""

import os

import torch
import triton
import triton.language as tl

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
def _tanh(u, EXACT: tl.constexpr):
    """1 - 2 / (1 + exp(2u)), within 2e-7. EXACT: relative to tanh, near 0 as well."""
    t = 1 - 2 * _reciprocal(1 + _exp2(u * 2.8853900817779268))  # 2 / ln 2
    if EXACT:  # near 0, where the difference has few digits left, the series: relative error below 1e-8 up to 1/4
        s = u * u
        near = u * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
        t = tl.where(s < 1 / 16, near, t)
    return t


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
    ERF: tl.constexpr,
    EXACT: tl.constexpr,
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
    if ERF:
        t = tl.erf(u + tl.load(shift).to(tl.float32))
    else:
        t = _tanh(u, EXACT)
    tl.store(y + at, t * w[None, :] + b[None, :], mask=inside)


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
    ERF: tl.constexpr,
    EXACT: tl.constexpr,
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
        if ERF:
            u += tl.load(shift).to(tl.float32)
            t = tl.erf(u)
            d = g * w[None, :] * tl.exp(-u * u) * 1.1283791670955126  # 2 / sqrt(pi)
            d_shift += d
        else:
            t = _tanh(u, EXACT)
            d = g * w[None, :] * (1 - t * t)
        d_alpha += d * values
        d_weight += g * t
        d_bias += g
        tl.store(dx + at, d * a, mask=inside)
    own = sums + tl.program_id(1) * 2 * width + column
    tl.store(own, tl.sum(d_weight, 0), mask=real)
    tl.store(own + width, tl.sum(d_bias, 0), mask=real)
    number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(scalars + number, tl.sum(d_alpha))
    if ERF:
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
    ERF: tl.constexpr,
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
            if ERF:
                shifts += tl.load(scalars + n_scalars + place, mask=place < n_scalars, other=0)
        tl.store(d_alpha, tl.sum(alphas))
        if ERF:
            tl.store(d_shift, tl.sum(shifts))


def _columns(width):
    """Of a tile: the most, of powers of 2, that the width is a multiple of; of an odd width a power of 2 above it."""
    fitting = width & -width
    return min(COLUMNS, fitting if fitting >= 64 else triton.next_power_of_2(width))


def _constants(rows, *others):
    return {"EXACT": torch.float32 in {t.dtype for t in (rows, *others)}, "LARGE": rows.numel() >= _LARGE}


def forward(rows, alpha, shift, weight, bias, y):
    (n, width), erf = rows.shape, shift is not None
    columns = _columns(width)
    tile = max(1, FORWARD_ROWS * COLUMNS // columns)
    _forward_kernel[(triton.cdiv(n, tile), triton.cdiv(width, columns))](  # of the second there are at most 65,535
        rows,
        alpha,
        shift if erf else alpha,
        weight,
        bias,
        y,
        n,
        width,
        ERF=erf,
        **_constants(rows, y),
        ROWS=tile,
        COLUMNS=columns,
        num_warps=FORWARD_WARPS,
    )


def backward(rows, alpha, shift, weight, bias, grad):
    """Gradients of rows, alpha, shift, weight and bias."""
    (n, width), erf = rows.shape, shift is not None
    columns = _columns(width)
    tile, blocks = max(1, BACKWARD_ROWS * COLUMNS // columns), triton.cdiv(width, columns)
    each = tile * triton.cdiv(n, tile * max(1, PROGRAMS // blocks))
    programs = triton.cdiv(n, each)
    dx = torch.empty_like(rows)
    sums = rows.new_empty(programs, 2, width, dtype=torch.float32)
    scalars = rows.new_empty(2, programs * blocks, dtype=torch.float32)
    d_alpha, d_weight, d_bias = torch.empty_like(alpha), torch.empty_like(weight), torch.empty_like(bias)
    d_shift = torch.empty_like(shift) if erf else None
    _backward_kernel[(blocks, programs)](
        rows,
        alpha,
        shift if erf else alpha,
        weight,
        grad,
        dx,
        sums,
        scalars,
        n,
        width,
        each,
        ERF=erf,
        **_constants(rows, grad),
        ROWS=tile,
        COLUMNS=columns,
        num_warps=BACKWARD_WARPS,
    )
    _finish_kernel[(triton.cdiv(2 * width, _FINISH_COLUMNS) + 1,)](
        sums,
        scalars,
        d_alpha,
        d_shift if erf else d_alpha,
        d_weight,
        d_bias,
        programs,
        programs * blocks,
        width,
        ERF=erf,
        ROWS=_FINISH_ROWS,
        COLUMNS=_FINISH_COLUMNS,
    )
    return dx, d_alpha, d_shift, d_weight, d_bias


FUSED = (forward, backward)


def try_out(device):
    """Run both once on a device. Raises what Triton raises where it does not work."""
    rows, one, channels = torch.ones(2, 8, device=device), torch.ones(1, device=device), torch.ones(8, device=device)
    forward(rows, one, None, channels, channels, torch.empty_like(rows))
    backward(rows, one, None, channels, channels, rows)
