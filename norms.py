"""Normalisation layers for transformers, their registry, and conversion of a model from LayerNorm to any of them.

    LayerNorm            (x - mean) / std * weight + bias      what transformers have
    RMSNorm              x / rms(x) * weight
    DynamicTanh          tanh(a x) * weight + bias             no statistics: a, a scalar, is learned
    DynamicErf and more  f(a x + s) * weight + bias            a and s learned; every other f of FUNCTIONS
    AdaptiveDynamicTanh  tanh(a(t) x) * weight + bias          a(t) follows the layer's own gradient norm
    BHyT                 tanh(l / k x / rms(x)) * weight       l learned, bounded input
    NoNorm               x                                     residual branches begin at 0 and learn their scale

    model = convert_norms(model, "DynamicTanh")                 # every nn.LayerNorm replaced
    model = convert_norms(model, "adyt", lam=0.1, smooth=0.9)   # aliases work
    loss.backward(); update_adaptive(model); optimizer.step()   # AdaptiveDynamicTanh: one line per optimizer step

This file needs torch only and nothing of the kit around it: copy it into your project.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

FUNCTIONS = {  # f(u), and its derivative by u and f = f(u), as torch and Triton both read them. arXiv 2512.10938
    "DynamicTanh": ("tanh(u)", "1 - f * f"),
    "DynamicErf": ("erf(u)", "1.1283791670955126 * exp(-u * u)"),  # 2 / sqrt(pi)
    "Hardtanh": ("clamp(u, -1, 1)", "abs(u) <= 1"),
    "Arctan": ("0.6366197723675814 * atan(u)", "0.6366197723675814 / (1 + u * u)"),  # 2 / pi
    "ISRU": ("u / sqrt(1 + u * u)", "1 / ((1 + u * u) * sqrt(1 + u * u))"),
    "Softsign": ("u / (1 + abs(u))", "1 / ((1 + abs(u)) * (1 + abs(u)))"),
    "Satursin": (
        "sin(clamp(u, -1.5707963267948966, 1.5707963267948966))",
        "clamp(cos(clamp(u, -1.5707963267948966, 1.5707963267948966)), 0, 1)",  # beyond them 0, not -4e-8
    ),
    "Expsign": ("sign(u) * (1 - exp(-abs(u)))", "exp(-abs(u))"),
    "Relsign": ("u / (1 + sqrt(1 + u * u))", "1 / (sqrt(1 + u * u) * (1 + sqrt(1 + u * u)))"),
    "Saturlog": (
        "sign(u) * (log(1 + abs(u)) / (1 + log(1 + abs(u))))",
        "1 / ((1 + abs(u)) * (1 + log(1 + abs(u))) * (1 + log(1 + abs(u))))",
    ),
}

# f as autograd is to differentiate it: at 0 as well, where torch's derivatives of these two are 0
_AS_FORMULA = {**vars(torch), "abs": lambda u: torch.where(u < 0, -u, u), "sign": lambda u: 1 - 2 * (u < 0).to(u.dtype)}
_VALUE = {name: eval(f"lambda u: {value}", _AS_FORMULA) for name, (value, _) in FUNCTIONS.items()}
_SLOPE = {name: eval(f"lambda u, f: {slope}", vars(torch)) for name, (_, slope) in FUNCTIONS.items()}
FUSED = {}  # what computes layers in one pass each way by device type, see squash and rescale; the kit has some


class _AffineNorm(nn.Module):
    """What the layers below share: per-channel weight and bias; normalized_shape, affine and bias as nn.LayerNorm has them.

    channels_first: the input is (N, C, H, W) and C has the weight (timm's LayerNorm2d), else channels come last.
    before_linear: set it where linear layers alone read the result: under autocast it is then written in their type.
    """

    before_linear = False
    shown = ()  # what else of a layer's settings its repr has
    scalars = ()  # learned ones, each with the attribute that has its initial value
    eps = float("nan")  # so that no LayerNorm is made of it, as by torch's fast path of encoder layers

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
        for name, value in ("weight", 1), ("bias", 0), *((name, getattr(self, at, None)) for name, at in self.scalars):
            if getattr(self, name, None) is not None:
                nn.init.constant_(getattr(self, name), value)

    def written(self, x):
        """Type that is written of x (N, ..., C): the larger one of x and weight, or what a linear layer would make of it."""
        if self.before_linear and torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return torch.result_type(x, x if self.weight is None else self.weight)

    def extra_repr(self):
        shown = ("channels_first", *self.shown)
        return ", ".join([str(self.normalized_shape), *(f"{name}={getattr(self, name)}" for name in shown)])


class RMSNorm(_AffineNorm):
    """x / rms(x) * weight, rms over the channels. arXiv 1910.07467."""

    shown = ("rms_eps",)

    def __init__(self, normalized_shape, *, eps=1e-6, **layout):
        super().__init__(normalized_shape, **layout | {"bias": False})
        self.rms_eps = eps

    def forward(self, x):
        return self.rescale(x.movedim(1, -1)).movedim(-1, 1) if self.channels_first else self.rescale(x)

    def rescale(self, x):
        fused = FUSED.get(x.device.type)
        if fused and self.weight is not None:
            return fused.rescale(self.written, x, self.weight, self.rms_eps)
        return F.rms_norm(x, self.normalized_shape, self.weight, self.rms_eps)


class _PointWise(_AffineNorm):
    """f(alpha x + shift) * weight + bias, f the one of FUNCTIONS that `function` names; `alpha` is a tensor of shape (1,)."""

    function = "DynamicTanh"

    def forward(self, x):
        weight, bias, shift, fused = self.weight, self.bias, getattr(self, "shift", None), FUSED.get(x.device.type)
        formula = partial(_formula, self.function)
        if fused and weight is not None and not self.channels_first:
            bias = torch.zeros_like(weight) if bias is None else bias
            return fused.squash(FUNCTIONS[self.function], formula, self.written, x, self.alpha, shift, weight, bias)
        if self.channels_first:  # (C,) -> (C, 1, 1)
            weight, bias = (p if p is None else p[:, None, None] for p in (weight, bias))
        return formula(x, self.alpha, shift, weight, bias)

    @torch.no_grad()
    def flat(self, x):
        """Share of the values of an input x at which f is flat: its derivative is below a tenth of the largest, that at 0."""
        value, slope, shift = _VALUE[self.function], _SLOPE[self.function], getattr(self, "shift", None)
        u = self.alpha * x if shift is None else self.alpha * x + shift
        zero = torch.zeros_like(self.alpha)
        return (slope(u, value(u)) < 0.1 * slope(zero, value(zero))).float().mean()


class Dynamic(_PointWise):
    """f(alpha x + shift) * weight + bias, f the class's `function`, alpha and shift learned scalars; shift_init None: no shift."""

    shown = ("alpha_init", "shift_init")
    scalars = (("alpha", "alpha_init"), ("shift", "shift_init"))

    def __init__(self, normalized_shape, *, alpha_init=0.5, shift_init=0.0, **layout):
        super().__init__(normalized_shape, **layout)
        self.alpha_init, self.shift_init = alpha_init, shift_init
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.shift = None if shift_init is None else nn.Parameter(torch.full((1,), float(shift_init)))


class DynamicTanh(Dynamic):
    """tanh(alpha x) * weight + bias with one learned scalar alpha. arXiv 2503.10622; state-dict names are the paper's."""

    def __init__(self, normalized_shape, *, shift_init=None, **options):
        super().__init__(normalized_shape, shift_init=shift_init, **options)


def _dynamic(name):
    text = f"{FUNCTIONS[name][0]} * weight + bias, u = alpha x + shift with learned scalars alpha and shift."
    return type(name, (Dynamic,), {"function": name, "__doc__": text, "__module__": __name__})


_OTHERS = {name: _dynamic(name) for name in FUNCTIONS if name != "DynamicTanh"}
globals().update(_OTHERS)  # norms.DynamicErf, norms.Hardtanh, ...


class AdaptiveDynamicTanh(_PointWise):
    """DynamicTanh whose scalar grows where this layer's gradients are small.

    tanh(a(t) x) * weight + bias,  a(t) = clip(alpha_base (1 + lam / (eps + G)), alpha_min, alpha_max),
    G = smooth G + (1 - smooth) |gradient of alpha_base, weight and bias|_2, G = 1 at the start.

    G is a buffer and moves only when `update_adaptive` is called, once per optimizer step, so training, evaluation and
    a reloaded checkpoint compute the same function. While a(t) is clipped, alpha_base gets no gradient.
    State-dict names are those of the original scripts: alpha_base, weight, bias, grad_norm_smoothed.
    """

    shown = ("alpha_init", "lam", "smooth", "alpha_min", "alpha_max", "gradient_eps")
    scalars = (("alpha_base", "alpha_init"),)

    def __init__(
        self, normalized_shape, *, alpha_init=0.5, lam=0.1, smooth=0.9, alpha_min=0.1, alpha_max=2.0, eps=1e-6, **layout
    ):
        super().__init__(normalized_shape, **layout)
        self.alpha_init, self.lam, self.smooth, self.gradient_eps = alpha_init, lam, smooth, eps
        self.alpha_min, self.alpha_max = alpha_min, alpha_max
        self.alpha_base = nn.Parameter(torch.full((1,), float(alpha_init)))
        self.register_buffer("grad_norm_smoothed", torch.ones(1))

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.ones_(self.grad_norm_smoothed)

    @property
    def alpha(self):
        """a(t), shape (1,)."""
        unclipped = self.alpha_base * (1 + self.lam / (self.gradient_eps + self.grad_norm_smoothed))
        return unclipped.clamp(self.alpha_min, self.alpha_max)

    def saturated(self, alpha):
        """Whether a value of a(t) is a bound of its range."""
        return not self.alpha_min * (1 + 1e-6) < alpha < self.alpha_max * (1 - 1e-6)


class BHyT(_PointWise):
    """tanh(lam bound x / rms(x)) * weight with a learned scalar lam. arXiv 2601.09719."""

    shown = ("lam_init", "bound", "rms_eps")
    scalars = (("lam", "lam_init"),)

    def __init__(self, normalized_shape, *, lam_init=2.0, bound=0.1, eps=1e-6, **layout):
        super().__init__(normalized_shape, **layout | {"bias": False})
        self.lam_init, self.bound, self.rms_eps = lam_init, bound, eps
        self.lam = nn.Parameter(torch.full((1,), float(lam_init)))

    @property
    def alpha(self):
        """What x / rms(x) is multiplied with, shape (1,)."""
        return self.bound * self.lam.to(torch.promote_types(self.lam.dtype, torch.float32))

    def bounded(self, x):
        """x / rms(x), rms over the channels, not rounded to two bytes."""
        x, fused = x.to(torch.promote_types(x.dtype, torch.float32)), FUSED.get(x.device.type)
        if fused and not self.channels_first:
            return fused.rescale(lambda x: x.dtype, x, x.new_ones(self.normalized_shape), self.rms_eps)
        at = -3 if self.channels_first else -1
        return F.rms_norm(x.movedim(at, -1), self.normalized_shape, eps=self.rms_eps).movedim(-1, at)

    def forward(self, x):
        return super().forward(self.bounded(x)).to(self.written(x))

    def flat(self, x):
        return super().flat(self.bounded(x))


class NoNorm(nn.Module):
    """x as it is. convert_norms gives the residual branches of its blocks a Scale. ReZero, arXiv 2003.04887."""

    def __init__(self, normalized_shape, *, affine=True, bias=True, channels_first=False):
        super().__init__()

    def reset_parameters(self):
        """Nothing: it has none."""

    def forward(self, x):
        return x.clone()  # as of every norm: what writes over the result leaves x, which a residual branch begins with


class Scale(nn.Module):
    """x times a learned scalar that is 0 at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def reset_parameters(self):
        nn.init.zeros_(self.scale)

    def forward(self, x):
        return x * self.scale


NORMS = {
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": RMSNorm,
    "DynamicTanh": DynamicTanh,
    "AdaptiveDynamicTanh": AdaptiveDynamicTanh,
    **_OTHERS,
    "BHyT": BHyT,
    "NoNorm": NoNorm,
}
ALIASES = {
    **{name.lower(): name for name in (*FUNCTIONS, "BHyT") if not name.startswith("Dynamic")},
    "ln": "LayerNorm",
    "rms": "RMSNorm",
    "dyt": "DynamicTanh",
    "adyt": "AdaptiveDynamicTanh",
    "derf": "DynamicErf",
    "none": "NoNorm",
}


def convert_norms(model, name, *, alpha_before_attention=None, **options):
    """Replace every nn.LayerNorm of `model`, subclasses too, by a fresh layer of the norm `name`; returns the model.

    `options` go to the layer's constructor (alpha_init, lam, ...); alpha_before_attention: another alpha_init for the norm1
    of blocks that have an `attn`. Device, dtype, training mode, affine or not, and channels-first layers (timm's and
    torchvision's LayerNorm2d) are kept, as is what a subclass has behind the norm (timm's LayerNormAct); no random number is
    drawn. "LayerNorm" leaves the model as it is; "NoNorm" puts a Scale into ls1 and ls2 of timm's blocks. Raises KeyError for
    an unknown name, TypeError for an option that the layer does not have, for a subclass that computes something else than
    nn.LayerNorm and, with NoNorm, for a model without ls1 and ls2.
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
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # torch's fast path alone can read one
        for child_name, child in parent._modules.items():  # named_children() would name a shared layer once
            if isinstance(child, nn.LayerNorm):
                if child not in new:
                    first = alpha_before_attention is not None and child_name == "norm1" and hasattr(parent, "attn")
                    own = options | {"alpha_init": alpha_before_attention} if first else options
                    new[child] = _like(child, layer_class, own, around)
                setattr(parent, child_name, new[child])
    if layer_class is NoNorm:
        _scale_branches(model, around)
    return model


def _scale_branches(model, around):
    places = [(m, n) for m in model.modules() for n in ("ls1", "ls2") if isinstance(getattr(m, n, None), nn.Identity)]
    if not places:
        raise TypeError("NoNorm: this model has no residual branches whose scale could be learned, timm's ls1 and ls2")
    for parent, name in places:
        setattr(parent, name, Scale().to(device=around.device, dtype=around.dtype))


def _like(norm, layer_class, options, around):
    """A layer of `layer_class` for the place of the LayerNorm `norm`; `around`: a parameter of the model, or None."""
    like = around if norm.weight is None else norm.weight
    affine = {"affine": norm.weight is not None, "bias": norm.bias is not None}
    new = layer_class(norm.normalized_shape, channels_first=_reads_channels_first(norm), **affine, **options)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    plain = type(norm).forward is nn.LayerNorm.forward
    behind = [] if plain else list(norm.children())  # an activation, in timm's LayerNormAct
    return nn.Sequential(new, *behind).train(norm.training) if behind else new.train(norm.training)


@torch.no_grad()
def _reads_channels_first(norm):
    """Whether the LayerNorm `norm` reads (N, C, H, W). A subclass is asked for a result: its name may say nothing.

    Raises TypeError for one that computes something else than a LayerNorm over C with its own modules behind it.
    """
    if type(norm).forward is nn.LayerNorm.forward:
        return False
    shape, device = norm.normalized_shape, "meta" if norm.weight is not None and norm.weight.is_meta else "cpu"
    norm = copy.deepcopy(norm).float().train().to(device)
    n = 3 if shape[0] == 2 else 2  # no place for C
    for first, of_x in (False, (1, n, n, *shape)), (False, (1, n, *shape)), (True, (1, *shape, n, n)):
        x = torch.arange(torch.Size(of_x).numel(), dtype=torch.float32, device=device).sin().view(of_x)
        try:
            with torch.random.fork_rng(devices=[]):  # a dropout of its own is to be behind, too
                torch.default_generator.manual_seed(0)
                found = norm(x.clone())
                y = F.layer_norm(x.movedim(1, -1) if first else x, shape, norm.weight, norm.bias, norm.eps)
                torch.default_generator.manual_seed(0)
                y = nn.Sequential(*norm.children())(y.movedim(-1, 1) if first else y)
        except (RuntimeError, ValueError, IndexError, AssertionError):  # no C where it reads one
            continue
        if y.is_meta or torch.allclose(found, y, atol=1e-4):
            return first
    raise TypeError(
        f"{type(norm).__name__} computes something else than nn.LayerNorm: put a layer in its place by hand"
    )


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
    return [(n, v, m.saturated(v) if isinstance(m, AdaptiveDynamicTanh) else None) for (n, m), v in zip(named, values)]


def _formula(function, x, alpha, shift, weight, bias):
    y = _VALUE[function](alpha * x if shift is None else alpha * x + shift)
    y = y.clone() if weight is None else y * weight  # autograd keeps f's own result
    return y if bias is None else y + bias
