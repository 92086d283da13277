"""Norm layers' one pass each way on CUDA, as Triton kernels: norms.FUSED["cuda"] = kernels.FUSED.

Arithmetic is float32 whatever the type of the values. Sums over rows are made in a fixed order: two runs agree bitwise.
Triton compiles a kernel in less than a second when it is first used, and keeps it.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _tanh(u):
    e = tl.exp(-2 * tl.abs(u))
    far = tl.where(u < 0, e - 1, 1 - e) / (1 + e)
    s = u * u  # near 0, where 1 - e has few digits left, the series: relative error below 1e-8 up to 1/4
    near = u * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(s < 1 / 16, near, far)


@triton.jit
def _forward_kernel(x, alpha, shift, weight, bias, y, n, width, ERF: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    column = at % width
    u = tl.load(x + at, mask=inside, other=0).to(tl.float32) * tl.load(alpha).to(tl.float32)
    if ERF:
        t = tl.erf(u + tl.load(shift).to(tl.float32))
    else:
        t = _tanh(u)
    w, b = tl.load(weight + column).to(tl.float32), tl.load(bias + column).to(tl.float32)
    tl.store(y + at, t * w + b, mask=inside)


@triton.jit
def _backward_kernel(
    x, alpha, shift, weight, grad, dx, sums, rows, width, each,
    ERF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of `each` rows, a multiple of ROWS. sums (4, programs, width): of alpha, shift, weight, bias."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    a, w = tl.load(alpha).to(tl.float32), tl.load(weight + column, mask=real, other=0).to(tl.float32)
    d_alpha = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_shift, d_weight, d_bias = d_alpha, d_alpha, d_alpha
    for start in range(0, each, ROWS):
        row = tl.program_id(0) * each + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & real[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        values = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
        u = values * a
        if ERF:
            u += tl.load(shift).to(tl.float32)
            t = tl.erf(u)
            d = g * w[None, :] * tl.exp(-u * u) * 1.1283791670955126  # 2 / sqrt(pi)
            d_shift += d
        else:
            t = _tanh(u)
            d = g * w[None, :] * (1 - t * t)
        d_alpha += d * values
        d_weight += g * t
        d_bias += g
        tl.store(dx + at, d * a, mask=inside)
    here, apart = sums + tl.program_id(0) * width + column, tl.num_programs(0) * width
    tl.store(here, tl.sum(d_alpha, 0), mask=real)
    tl.store(here + apart, tl.sum(d_shift, 0), mask=real)
    tl.store(here + 2 * apart, tl.sum(d_weight, 0), mask=real)
    tl.store(here + 3 * apart, tl.sum(d_bias, 0), mask=real)


def forward(rows, alpha, shift, weight, bias, y):
    n, erf = rows.numel(), shift is not None
    _forward_kernel[(triton.cdiv(n, 2048),)](
        rows, alpha, shift if erf else alpha, weight, bias, y, n, rows.shape[1], ERF=erf, BLOCK=2048
    )


def backward(rows, alpha, shift, weight, bias, grad):
    """Gradients of rows, alpha, shift, weight and bias."""
    (n, width), erf = rows.shape, shift is not None
    each = 8 * triton.cdiv(n, 8 * 512)  # at most 512 programs side by side
    programs = triton.cdiv(n, each)
    dx, sums = torch.empty_like(rows), rows.new_empty(4, programs, width, dtype=torch.float32)
    _backward_kernel[(programs, triton.cdiv(width, 256))](
        rows, alpha, shift if erf else alpha, weight, grad, dx, sums, n, width, each, ERF=erf, ROWS=8, COLUMNS=256
    )
    d_alpha, d_shift, d_weight, d_bias = sums.sum(1)
    return dx, d_alpha.sum(), d_shift.sum() if erf else None, d_weight, d_bias


FUSED = (forward, backward)


def try_out(device):
    """Run both once on a device. Raises what Triton raises where it does not work."""
    rows, one, channels = torch.ones(2, 8, device=device), torch.ones(1, device=device), torch.ones(8, device=device)
    forward(rows, one, None, channels, channels, torch.empty_like(rows))
    backward(rows, one, None, channels, channels, rows)
