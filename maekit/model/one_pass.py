"""Norm layers in one pass each way that keeps its input alone. Eager torch makes four passes or more and keeps two tensors.

On a CPU in parts that its cache holds, here; on CUDA by the kernels of `kernels`. norms.FUSED["cpu"] = one_pass.CPU.
"""

import torch
import torch.nn.functional as F

from .formulas import compiled


class OnePass(torch.autograd.Function):
    """formula(x, *parameters) by a forward and a backward function, as values of a dtype.

    forward(rows (n, C), *parameters, y) fills y, of their shape; backward(rows, *parameters, gradient of y) returns the
    gradients of rows and of each parameter.
    """

    @staticmethod
    def forward(ctx, formula, forward, backward, dtype, x, *parameters):
        ctx.save_for_backward(x, *parameters)
        ctx.formula, ctx.backward_of_rows = formula, backward
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty_like(rows, dtype=dtype)
        forward(rows, *parameters, y)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x, *parameters = saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated in turn
            y, needed = ctx.formula(*saved), ctx.needs_input_grad[4:]
            wanted = [t for t, n in zip(saved, needed) if n]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return None, None, None, None, *(next(found) if n else None for n in needed)
        rows, grad = (t.reshape(-1, x.shape[-1]).contiguous() for t in (x, grad))
        dx, *sums = ctx.backward_of_rows(rows, *parameters, grad)
        sums = (None if p is None else d.to(p.dtype).view(p.shape) for p, d in zip(parameters, sums))
        return None, None, None, None, dx.view(x.shape), *sums


def can_fuse(x, weight):
    """Whether OnePass takes x; a compiler fuses the formula by itself."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.is_floating_point()
        and (x.dtype != torch.float64 or x.device.type == "cpu")
        and x.numel() > 0
        and weight.dim() == 1
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


class Fused:
    """What norms.FUSED has for a type of device.

    point_wise: function of a function's texts, as norms.FUNCTIONS has them, and a dtype that returns OnePass's forward and
    backward of rows, alpha, shift or None, weight and bias. rms: those of rows and weight for an eps, None for torch's own.
    """

    def __init__(self, point_wise, rms=None):
        self.point_wise, self.rms = point_wise, rms

    def squash(self, texts, formula, written, x, alpha, shift, weight, bias):
        """f(alpha x + shift) * weight + bias; written: dtype of x's result, a function; formula: of the last five, as autograd
        can read it."""
        values = x, alpha, shift, weight, bias
        if not can_fuse(x, weight):
            return formula(*values)
        return OnePass.apply(formula, *self.point_wise(texts), written(x), *values)

    def rescale(self, written, x, weight, eps):
        """x / rms(x) * weight over the dimensions that the weight has; written: as of squash."""

        def formula(x, weight):
            return F.rms_norm(x, weight.shape, weight, eps)

        if self.rms is None or not can_fuse(x, weight) or x.dtype != weight.dtype:
            return formula(x, weight)
        return OnePass.apply(formula, *self.rms(eps), written(x), x, weight)


_CACHED = 131072  # values of a part for each thread: half a megabyte in float32


def _parts(rows):
    n = max(1, _CACHED * torch.get_num_threads() // rows.shape[1])
    return [slice(start, start + n) for start in range(0, len(rows), n)]


def _sum_dtype(x):
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


# f(u) = outer h(inner u) + offset as the texts of h and of g times its derivative, inner, outer, offset. In float32 a sigmoid
# takes a CPU a seventh of the time of tanh, which is 2 sigmoid(2 u) - 1; the difference to tanh is at most 1e-7, however small
# u is.
QUICKER = {"tanh(u)": ("sigmoid(u)", "sigmoid_backward(g, f)", 2, 2, -1)}


def _quickest(texts, dtype):
    return QUICKER[texts[0]] if texts[0] in QUICKER and dtype == torch.float32 else (*texts, 1, 1, 0)


def _argument(x, alpha, shift, out):
    u = torch.mul(x, alpha, out=out)
    return u if shift is None else u.add_(shift)


def _point_wise_on_cpu(texts):
    def forward(rows, alpha, shift, weight, bias, y):
        dtype, parts = _sum_dtype(y), _parts(rows)
        value, _, inner, outer, offset = _quickest(texts, dtype)
        values, n_others = compiled(dtype, value)
        weight, bias = weight.to(dtype), bias.to(dtype)
        bias, weight = bias + offset * weight if offset else bias, weight * outer
        alpha, shift = (p if p is None else p.to(dtype) * inner for p in (alpha, shift))
        memory = rows.new_empty(1 + n_others, *rows[parts[0]].shape, dtype=dtype)
        for part in parts:
            x = rows[part].to(dtype)
            place, *others = memory[:, : len(x)]
            f = values(_argument(x, alpha, shift, place), *others)
            torch.addcmul(bias, f, weight, out=y[part])

    def backward(rows, alpha, shift, weight, bias, grad):
        dtype, parts = _sum_dtype(grad), _parts(rows)
        value, slope, inner, outer, offset = _quickest(texts, dtype)
        values, n_others = compiled(dtype, value, slope)
        alpha, shift = (p if p is None else p.to(dtype) * inner for p in (alpha, shift))
        by = float(alpha)
        tiny = abs(by) < 1e-12  # then the gradient of u itself, of which alpha's is a sum
        by = 1.0 if tiny else by
        scaled = weight.to(dtype) * (outer * by)
        d_weight, d_bias = torch.zeros(2, rows.shape[1], dtype=dtype)
        d_alpha, d_shift = torch.zeros(2, dtype=torch.float64)
        dx, memory = torch.empty_like(rows), rows.new_empty(1 + n_others, *rows[parts[0]].shape, dtype=dtype)
        ones = torch.ones(len(memory[0]), dtype=dtype)
        for part in parts:
            x, g = rows[part].to(dtype), grad[part].to(dtype)
            one, (place, *others) = ones[: len(x)], memory[:, : len(x)]
            f, d = values(_argument(x, alpha, shift, place), g, *others)
            d = torch.mul(d, scaled, out=dx[part] if dx.dtype == dtype else d)
            if dx.dtype != dtype:
                dx[part] = d
            if offset:  # here and not of the sums, between which little would be left
                torch.addcmul(g, f, g, value=outer / offset, out=f)
            else:
                f.mul_(g)
            d_weight.addmv_(f.T, one, alpha=offset or 1)
            d_bias.addmv_(g.T, one)
            d_alpha += torch.dot(d.view(-1), x.view(-1))
            if shift is not None:
                d_shift += d.sum()
        if tiny:
            dx.mul_(alpha)
        by /= inner
        return dx, d_alpha / by, None if shift is None else d_shift / by, d_weight, d_bias

    return forward, backward


def _rms_on_cpu(eps):
    def forward(rows, weight, y):
        for part in _parts(rows):
            x = rows[part].to(_sum_dtype(y))
            scale = (torch.linalg.vector_norm(x, dim=1, keepdim=True).square_() / x.shape[1] + eps).rsqrt_()
            y[part] = (x * scale).mul_(weight)

    def backward(rows, weight, grad):
        dtype = _sum_dtype(grad)
        dx, d_weight = torch.empty_like(rows), torch.zeros(rows.shape[1], dtype=dtype)
        for part in _parts(rows):
            x, g = rows[part].to(dtype), grad[part].to(dtype)
            scale = (torch.linalg.vector_norm(x, dim=1).square_() / x.shape[1] + eps).rsqrt_()
            product = g * x
            d_weight.addmv_(product.T, scale)
            along = (product @ weight.to(dtype)).mul_(scale**3) / x.shape[1]
            torch.mul(g, weight, out=product).mul_(scale[:, None])
            dx[part] = product.addcmul_(x, along[:, None], value=-1)
        return dx, d_weight

    return forward, backward


CPU = Fused(_point_wise_on_cpu, _rms_on_cpu)
