"""Normalisation layers for transformers, their registry, and conversion of a model from LayerNorm to any of them.

    LayerNorm            (x - mean) / std * weight + bias          what transformers have
    RMSNorm              x / rms(x) * weight
    DynamicTanh          tanh(a x) * weight + bias                 no statistics: a, a scalar, is learned
    DynamicErf           erf(a x + s) * weight + bias              a and s learned
    AdaptiveDynamicTanh  tanh(a(t) x) * weight + bias              a(t) follows the layer's own gradient norm

    model = convert_norms(model, "DynamicTanh")                 # every nn.LayerNorm replaced
    model = convert_norms(model, "adyt", lam=0.1, smooth=0.9)   # aliases work
    loss.backward(); update_adaptive(model); optimizer.step()   # AdaptiveDynamicTanh: one line per optimizer step

This file needs torch only and nothing of the kit around it: copy it into your project.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class _AffineNorm(nn.Module):
    """What the layers below share: per-channel weight and bias; normalized_shape, affine and bias as nn.LayerNorm has them.

    channels_first: the input is (N, C, H, W) and C has the weight (timm's LayerNorm2d), else channels come last.
    before_linear: set it where linear layers alone read the result: under autocast it is then written in their type.
    """

    before_linear = False

    def __init__(self, normalized_shape, *, affine=True, bias=True, channels_first=False):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.channels_first = channels_first
        self.weight = nn.Parameter(torch.empty(shape)) if affine else None
        self.bias = nn.Parameter(torch.empty(shape)) if affine and bias else None
        _AffineNorm.reset_parameters(self)

    def reset_parameters(self):
        """The initial values again, as nn.LayerNorm's."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def written(self, x):
        """Type that is written of x (N, ..., C): the larger one of x and weight, or what a linear layer would make of it."""
        if self.before_linear and torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return torch.result_type(x, self.weight)

    def squash(self, x, alpha, shift=None):
        """tanh(alpha x) * weight + bias; with a shift erf(alpha x + shift) * weight + bias."""
        weight, bias = self.weight, self.bias
        if bias is not None and not self.channels_first and _can_fuse(x, weight, FUSED):
            return _OnePass.apply(_formula, *FUSED[x.device.type], self.written(x), x, alpha, shift, weight, bias)
        if self.channels_first:  # (C,) -> (C, 1, 1)
            weight, bias = (p if p is None else p[:, None, None] for p in (weight, bias))
        return _formula(x, alpha, shift, weight, bias)

    def extra_repr(self):
        return f"{self.normalized_shape}, channels_first={self.channels_first}"


class RMSNorm(_AffineNorm):
    """x / rms(x) * weight, rms over the channels. arXiv 1910.07467."""

    def __init__(self, normalized_shape, *, eps=1e-6, affine=True, bias=False, channels_first=False):
        super().__init__(normalized_shape, affine=affine, bias=False, channels_first=channels_first)
        self.eps = eps

    def forward(self, x):
        return self.rescale(x.movedim(1, -1)).movedim(-1, 1) if self.channels_first else self.rescale(x)

    def rescale(self, x):
        fuse = self.weight is not None and _can_fuse(x, self.weight, ("cpu",))  # on CUDA torch has it in one pass
        if not fuse or x.dtype != self.weight.dtype:
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        of_eps = (partial(f, eps=self.eps) for f in (_rms_formula, _rms_forward_on_cpu, _rms_backward_on_cpu))
        return _OnePass.apply(*of_eps, self.written(x), x, self.weight)

    def extra_repr(self):
        return f"{super().extra_repr()}, eps={self.eps}"


class DynamicTanh(_AffineNorm):
    """tanh(alpha x) * weight + bias with one learned scalar alpha. arXiv 2503.10622; state-dict names are the paper's."""

    def __init__(self, normalized_shape, *, alpha_init=0.5, affine=True, bias=True, channels_first=False):
        super().__init__(normalized_shape, affine=affine, bias=bias, channels_first=channels_first)
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x):
        return self.squash(x, self.alpha)

    def extra_repr(self):
        return f"{super().extra_repr()}, alpha_init={self.alpha_init}"


class DynamicErf(_AffineNorm):
    """erf(alpha x + shift) * weight + bias with learned scalars alpha and shift. arXiv 2512.10938."""

    def __init__(
        self, normalized_shape, *, alpha_init=0.5, shift_init=0.0, affine=True, bias=True, channels_first=False
    ):
        super().__init__(normalized_shape, affine=affine, bias=bias, channels_first=channels_first)
        self.alpha_init, self.shift_init = alpha_init, shift_init
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.shift = nn.Parameter(torch.full((1,), float(shift_init)))

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)
        nn.init.constant_(self.shift, self.shift_init)

    def forward(self, x):
        return self.squash(x, self.alpha, self.shift)

    def extra_repr(self):
        return f"{super().extra_repr()}, alpha_init={self.alpha_init}, shift_init={self.shift_init}"


class AdaptiveDynamicTanh(_AffineNorm):
    """DynamicTanh whose scalar grows where this layer's gradients are small.

    tanh(a(t) x) * weight + bias,  a(t) = clip(alpha_base (1 + lam / (eps + G)), alpha_min, alpha_max),
    G = smooth G + (1 - smooth) |gradient of alpha_base, weight and bias|_2, G = 1 at the start.

    G is a buffer and moves only when `update_adaptive` is called, once per optimizer step, so training, evaluation and
    a reloaded checkpoint compute the same function. While a(t) is clipped, alpha_base gets no gradient.
    State-dict names are those of the original scripts: alpha_base, weight, bias, grad_norm_smoothed.
    """

    def __init__(
        self,
        normalized_shape,
        *,
        alpha_init=0.5,
        lam=0.1,
        smooth=0.9,
        alpha_min=0.1,
        alpha_max=2.0,
        eps=1e-6,
        affine=True,
        bias=True,
        channels_first=False,
    ):
        super().__init__(normalized_shape, affine=affine, bias=bias, channels_first=channels_first)
        self.alpha_init, self.lam, self.smooth, self.eps = alpha_init, lam, smooth, eps
        self.alpha_min, self.alpha_max = alpha_min, alpha_max
        self.alpha_base = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.register_buffer("grad_norm_smoothed", torch.ones(1))

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.constant_(self.alpha_base, self.alpha_init)
        nn.init.ones_(self.grad_norm_smoothed)

    @property
    def alpha(self):
        """a(t), shape (1,)."""
        unclipped = self.alpha_base * (1 + self.lam / (self.eps + self.grad_norm_smoothed))
        return unclipped.clamp(self.alpha_min, self.alpha_max)

    def forward(self, x):
        return self.squash(x, self.alpha)

    def extra_repr(self):
        bounds = f"range=({self.alpha_min}, {self.alpha_max})"
        return f"{super().extra_repr()}, alpha_init={self.alpha_init}, lam={self.lam}, smooth={self.smooth}, {bounds}"


NORMS = {
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": RMSNorm,
    "DynamicTanh": DynamicTanh,
    "AdaptiveDynamicTanh": AdaptiveDynamicTanh,
    "DynamicErf": DynamicErf,
}
ALIASES = {
    "ln": "LayerNorm",
    "rms": "RMSNorm",
    "dyt": "DynamicTanh",
    "adyt": "AdaptiveDynamicTanh",
    "derf": "DynamicErf",
}


def convert_norms(model, name, **options):
    """Replace every nn.LayerNorm of `model`, subclasses too, by a fresh layer of the norm `name`; returns the model.

    `options` go to the layer's constructor (alpha_init, lam, ...). Device, dtype, training mode, affine or not, and
    channels-first layers (timm's and torchvision's LayerNorm2d) are kept; no random number is drawn. "LayerNorm"
    leaves the model as it is. Raises KeyError for an unknown name, TypeError for an option the layer does not have.
    """
    layer_class = NORMS[ALIASES.get(name, name)]
    if layer_class is nn.LayerNorm:
        if options:
            raise TypeError(f"LayerNorm takes no options, got {', '.join(options)}")
        return model
    around = next((p for p in model.parameters() if p.is_floating_point()), None)
    if isinstance(model, nn.LayerNorm):
        return _like(model, layer_class, options, around)
    new = {}  # a layer that is used in several places stays one layer
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():  # named_children() would name a shared layer once
            if isinstance(child, nn.LayerNorm):
                if child not in new:
                    new[child] = _like(child, layer_class, options, around)
                setattr(parent, child_name, new[child])
    return model


def _like(norm, layer_class, options, around):
    """A layer of `layer_class` for the place of the LayerNorm `norm`; `around`: a parameter of the model, or None."""
    affine = {"affine": norm.weight is not None, "bias": norm.bias is not None}
    first = "2d" in type(norm).__name__  # this file knows neither timm nor torchvision, whose classes both end so
    new = layer_class(norm.normalized_shape, channels_first=first, **affine, **options)
    like = around if norm.weight is None else norm.weight
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    return new.train(norm.training)


@torch.no_grad()
def update_adaptive(model):
    """Move G of every AdaptiveDynamicTanh in `model` that is trained by the gradients it has now, if there are any.

    Call once per optimizer step, with gradients accumulated, reduced over processes and unscaled, before clipping.
    If one of these gradients is not finite, as in a step that a GradScaler skips, no layer moves. Nothing synchronises.
    """
    layers = [m for m in model.modules() if isinstance(m, AdaptiveDynamicTanh) and m.alpha_base.requires_grad]
    if all(p.grad is None for m in layers for p in m.parameters(recurse=False)):
        return
    buffers = [m.grad_norm_smoothed for m in layers]
    zero = buffers[0].new_zeros(1)
    parameters = [p for m in layers for p in (m.alpha_base, m.weight, m.bias)]
    gradients = [zero if p is None or p.grad is None else p.grad for p in parameters]
    norms = torch.stack(torch._foreach_norm(gradients)).view(len(layers), 3).norm(dim=1)
    moved = torch._foreach_mul(buffers, [m.smooth for m in layers])
    torch._foreach_add_(moved, torch._foreach_mul(list(norms.split(1)), [1 - m.smooth for m in layers]))
    moved = torch.where(norms.isfinite().all(), torch.cat(moved), torch.cat(buffers))
    torch._foreach_copy_(buffers, list(moved.split(1)))


@torch.no_grad()
def norm_alphas(model):
    """The scalar in front of x of every layer that has one, as the next forward pass uses it.

    Returns a list of (module name, alpha, saturated) in the order of `model.modules()`; `saturated` tells that an
    AdaptiveDynamicTanh sits at a bound of its range and is None for layers without a range.
    """
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, _AffineNorm) and hasattr(m, "alpha")]
    if not named:
        return []
    values = torch.cat([m.alpha.float() for _, m in named]).tolist()  # one transfer for all layers
    rows = []
    for (name, m), value in zip(named, values):
        bounds = (m.alpha_min, m.alpha_max) if isinstance(m, AdaptiveDynamicTanh) else None
        saturated = None if bounds is None else not (bounds[0] * (1 + 1e-6) < value < bounds[1] * (1 - 1e-6))
        rows.append((name, value, saturated))
    return rows


# A norm in one pass each way that keeps x alone. Eager torch makes four passes or more and keeps two tensors or three.


def _formula(x, alpha, shift, weight, bias):
    x = torch.tanh(alpha * x) if shift is None else torch.erf(alpha * x + shift)
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _can_fuse(x, weight, devices):
    """Whether _OnePass takes x; a compiler fuses the formula by itself."""
    return (
        x.device.type in devices
        and type(x) in (torch.Tensor, nn.Parameter)
        and x.is_floating_point()
        and (x.dtype != torch.float64 or x.device.type == "cpu")
        and x.numel() > 0
        and weight.dim() == 1
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


class _OnePass(torch.autograd.Function):
    """formula(x, *parameters) by a forward and a backward function, see FUSED, as values of a dtype."""

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


_CACHED = 131072  # values of a part: half a megabyte in float32


def _parts(rows):
    n = max(1, _CACHED // rows.shape[1])
    return [slice(start, start + n) for start in range(0, len(rows), n)]


def _sum_dtype(x):
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _forward_on_cpu(rows, alpha, shift, weight, bias, y):
    parts = _parts(rows)
    buffer = torch.empty_like(rows[parts[0]], dtype=_sum_dtype(y))
    for part in parts:
        x = rows[part]
        t = torch.mul(x, alpha, out=buffer[: len(x)])
        t = t.tanh_() if shift is None else t.add_(shift).erf_()
        torch.addcmul(bias, t, weight, out=y[part])


def _backward_on_cpu(rows, alpha, shift, weight, bias, grad):
    parts, dtype = _parts(rows), _sum_dtype(grad)
    dx, buffers = torch.empty_like(rows), torch.empty(2, *rows[parts[0]].shape, dtype=dtype)
    d_weight, d_bias = torch.zeros(2, rows.shape[1], dtype=dtype)
    d_alpha, d_shift = torch.zeros(2, dtype=torch.float64)
    ones = torch.ones(len(rows[parts[0]]), dtype=dtype)
    for part in parts:
        x, g = rows[part].to(dtype), grad[part].to(dtype)
        (t, d), one = (buffer[: len(x)] for buffer in buffers), ones[: len(x)]
        u = torch.mul(x, alpha, out=t)
        if shift is None:
            torch.mul(g, u.tanh_(), out=d)
            d_weight.addmv_(d.T, one)
            torch.addcmul(g, d, t, value=-1, out=d)  # tanh' = 1 - tanh^2
        else:
            torch.erf(u.add_(shift), out=d)
            d_weight.addmv_(d.mul_(g).T, one)
            torch.mul(u, u, out=d).neg_().exp_().mul_(2 / math.sqrt(math.pi)).mul_(g)  # erf' = 2 / sqrt(pi) exp(-u^2)
        d_bias.addmv_(g.T, one)
        d.mul_(weight)
        d_alpha += torch.dot(d.view(-1), x.view(-1))
        if shift is not None:
            d_shift += d.sum()
        torch.mul(d, alpha, out=dx[part])
    return dx, d_alpha, None if shift is None else d_shift, d_weight, d_bias


def _rms_formula(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


def _rms_forward_on_cpu(rows, weight, y, eps):
    for part in _parts(rows):
        x = rows[part].to(_sum_dtype(y))
        scale = (torch.linalg.vector_norm(x, dim=1, keepdim=True).square_() / x.shape[1] + eps).rsqrt_()
        y[part] = (x * scale).mul_(weight)


def _rms_backward_on_cpu(rows, weight, grad, eps):
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


# tanh or erf, scale and shift, by device type: functions of rows (n, C), the last argument of their shape,
# forward(rows, alpha, shift or None, weight, bias, y), which fills y, and
# backward(rows, alpha, shift or None, weight, bias, gradient of y) -> gradients of rows, alpha, shift, weight and bias
FUSED = {"cpu": (_forward_on_cpu, _backward_on_cpu)}
