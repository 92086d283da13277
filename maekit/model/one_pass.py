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
        y = torch.empty(x.shape, dtype=dtype, device=x.device)  # no view: what follows may write over it
        forward(rows, *parameters, y.view(rows.shape))
        return y

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


def _parts(rows, *others):
    """The rows of each, (n, C), in parts that the cache holds."""
    n_parts = round(rows.numel() / (_CACHED * torch.get_num_threads()))
    if n_parts <= 1:
        return [(rows, *others)]
    return zip(*(tensor.split(-(-len(rows) // n_parts)) for tensor in (rows, *others)))


def _sum_dtype(x):
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


# f(u) = outer h(inner u) + offset as the texts of h and of g times its derivative, inner, outer, offset. In float32 a sigmoid
# takes some CPUs a seventh of the time of tanh, which is 2 sigmoid(2 u) - 1, and no CPU much more; the difference to tanh is at
# most 2e-7, however small u is.
QUICKER = {"tanh(u)": ("sigmoid(u)", "sigmoid_backward(g, f)", 2, 2, -1)}


def _quickest(texts, dtype):
    return QUICKER[texts[0]] if texts[0] in QUICKER and dtype == torch.float32 else (*texts, 1, 1, 0)


def _places(n, x, dtype, made, out):
    """n tensors of x's shape and of dtype that may be written over: out, if it is of that dtype, and memory that is `made` once."""
    places = [out] if out.dtype == dtype else []
    while len(made) + len(places) < n:
        made.append(torch.empty_like(x, dtype=dtype))
    return places + [m[: len(x)] for m in made]


def _argument(x, alpha, shift, out):
    u = torch.mul(x, alpha, out=out)
    return u if shift is None else u.add_(shift)


# Sums of scalars are Python's: an operation on one value takes torch as long as on thousands. But a large tensor times a tensor
# of one value takes it two thirds of the time of one times a number.
def _scalars(dtype, by, *values):
    return (None if value is None else torch.full((), by * float(value), dtype=dtype) for value in values)


def _point_wise_on_cpu(texts):
    def forward(rows, alpha, shift, weight, bias, y):
        dtype = _sum_dtype(y)
        value, _, inner, outer, offset = _quickest(texts, dtype)
        values, n_others = compiled(dtype, value)
        u_by, u_plus = _scalars(dtype, inner, alpha, shift)
        weight, bias = weight.to(dtype), bias.to(dtype)
        bias = torch.add(bias, weight, alpha=offset) if offset else bias
        made = []
        for x, out in _parts(rows, y):
            place, *others = _places(1 + n_others, x, dtype, made, out)
            f = values(_argument(x.to(dtype), u_by, u_plus, place), *others)
            torch.addcmul(bias, f, weight, value=outer, out=out)

    def backward(rows, alpha, shift, weight, bias, grad):
        dtype = _sum_dtype(grad)
        value, slope, inner, outer, offset = _quickest(texts, dtype)
        values, n_others = compiled(dtype, value, slope)
        u_by, u_plus = _scalars(dtype, inner, alpha, shift)
        by = float(alpha)
        tiny = abs(by) < 1e-12  # then the gradient of u itself, of which alpha's is a sum
        by = 1.0 if tiny else by
        scaled = weight.to(dtype) * (outer * inner * by)
        dx, sums, made = torch.empty_like(rows), [], []
        for x, g, out in _parts(rows, grad, dx):
            x, g = x.to(dtype), g.to(dtype)
            place, *others = _places(1 + n_others, x, dtype, made, out)
            f, d = values(_argument(x, u_by, u_plus, place), g, *others)
            if offset:  # here and not of the sums, between which little would be left
                by_f = torch.addcmul(g, f, g, value=outer / offset, out=f)
            else:
                by_f = f.mul_(g)
            by_f = by_f.sum(0)  # before dx is written, where f may be
            d = torch.mul(d, scaled, out=out if dx.dtype == dtype else d)
            if dx.dtype != dtype:
                out.copy_(d)
            by_shift = 0.0 if shift is None else float(d.sum())
            sums.append((float(torch.dot(d.view(-1), x.view(-1))), by_shift, by_f, g.sum(0)))
        by_alpha, by_shift, d_weight, d_bias = (sum(s[1:], s[0]) for s in zip(*sums))
        if tiny:
            dx.mul_(alpha)
        d_shift = None if shift is None else torch.full_like(shift, by_shift / by)
        return dx, torch.full_like(alpha, by_alpha / by), d_shift, d_weight * (offset or 1), d_bias

    return forward, backward


def _rms_on_cpu(eps):
    def forward(rows, weight, y):
        dtype, made = _sum_dtype(y), []
        for x, out in _parts(rows, y):
            x = x.to(dtype)
            scale = (torch.linalg.vector_norm(x, dim=1, keepdim=True).square_() / x.shape[1] + eps).rsqrt_()
            (place,) = _places(1, x, dtype, made, out)
            normal = torch.mul(x, scale, out=place).mul_(weight)
            if place is not out:
                out.copy_(normal)

    def backward(rows, weight, grad):
        dtype = _sum_dtype(grad)
        dx, d_weight, made = torch.empty_like(rows), torch.zeros(rows.shape[1], dtype=dtype), []
        for x, g, out in _parts(rows, grad, dx):
            x, g = x.to(dtype), g.to(dtype)
            scale = (torch.linalg.vector_norm(x, dim=1).square_() / x.shape[1] + eps).rsqrt_()
            (place,) = _places(1, x, dtype, made, out)
            product = torch.mul(g, x, out=place)
            d_weight.addmv_(product.T, scale)
            along = (product @ weight.to(dtype)).mul_(scale**3) / x.shape[1]
            product = torch.mul(g, weight, out=place).mul_(scale[:, None]).addcmul_(x, along[:, None], value=-1)
            if place is not out:
                out.copy_(product)
        return dx, d_weight

    return forward, backward


CPU = Fused(_point_wise_on_cpu, _rms_on_cpu)
