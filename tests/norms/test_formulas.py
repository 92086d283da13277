"""The normalisation layers: formulas, gradients, initial values."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import norms
from maekit.model import one_pass

DYNAMIC = [name for name in norms.NORMS if name not in ("LayerNorm", "NoNorm")]
HALF = math.pi / 2
BY_NUMPY = {  # as the papers have them, but for the derivative
    "DynamicTanh": np.tanh,
    "DynamicErf": np.vectorize(math.erf),
    "Hardtanh": lambda u: np.minimum(np.maximum(u, -1), 1),
    "Arctan": lambda u: np.arctan(u) / HALF,
    "ISRU": lambda u: u * (u**2 + 1) ** -0.5,
    "Softsign": lambda u: u / (1 + np.abs(u)),
    "Satursin": lambda u: np.where(np.abs(u) < HALF, np.sin(u), np.sign(u)),
    "Expsign": lambda u: -np.sign(u) * np.expm1(-np.abs(u)),
    "Relsign": lambda u: u / (np.hypot(u, 1) + 1),
    "Saturlog": lambda u: np.sign(u) * np.log1p(np.abs(u)) / (np.log1p(np.abs(u)) + 1),
}
# of mpmath with 30 digits
VALUES = {
    "DynamicTanh": {0.1: 0.09966799462495582, 1: 0.7615941559557649, 3: 0.9950547536867305},
    "DynamicErf": {0.1: 0.1124629160182849, 1: 0.8427007929497149, 3: 0.9999779095030014},
    "Hardtanh": {0.1: 0.1, 1: 1.0, 3: 1},
    "Arctan": {0.1: 0.06345103486110714, 1: 0.5, 3: 0.7951672353008665},
    "ISRU": {0.1: 0.09950371902099891, 1: 0.7071067811865475, 3: 0.9486832980505138},
    "Softsign": {0.1: 0.09090909090909091, 1: 0.5, 3: 0.75},
    "Satursin": {0.1: 0.09983341664682815, 1: 0.8414709848078965, 3: 1.0},
    "Expsign": {0.1: 0.09516258196404043, 1: 0.6321205588285577, 3: 0.9502129316321361},
    "Relsign": {0.1: 0.04987562112089027, 1: 0.414213562373095, 3: 0.7207592200561264},
    "Saturlog": {0.1: 0.08701661096708865, 1: 0.4093838908503588, 3: 0.5809402158035948},
}


def randomized(name, shape, **options):
    """A float64 layer with random parameters; G is 0.5, which puts AdaptiveDynamicTanh inside its range."""
    layer = norms.NORMS[name](shape, **options).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 + 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for buffer in layer.buffers():
            buffer.fill_(0.5)
    return layer


def by_numpy(name, x, p):
    """What the layer `name` with parameters p makes of x, channels last."""
    if name == "LayerNorm":
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    elif name == "RMSNorm":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["weight"]
    elif name == "NoNorm":
        return x
    elif name == "BHyT":
        return np.tanh(p["lam"] * 0.1 * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)) * p["weight"]
    elif name in BY_NUMPY:
        normal = BY_NUMPY[name](p["alpha"] * x + p.get("shift", 0))
    else:
        assert name == "AdaptiveDynamicTanh"
        a = p["alpha_base"] * (1 + 0.1 / (1e-6 + p["grad_norm_smoothed"]))
        normal = np.tanh(np.clip(a, 0.1, 2.0) * x)
    return normal * p["weight"] + p["bias"]


def values(layer):
    return {name: tensor.numpy() for name, tensor in layer.state_dict().items()}


@pytest.mark.parametrize("name", norms.NORMS)
def test_a_norm_computes_its_formula_over_the_last_dimension(name):
    layer = randomized(name, 5)
    x = np.random.default_rng(1).standard_normal((2, 3, 5)) * 2
    with torch.no_grad():
        y = layer(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, by_numpy(name, x, values(layer)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_channels_first_norm_computes_its_formula_over_the_channels_of_a_feature_map(name):
    layer = randomized(name, 5, channels_first=True)
    x = np.random.default_rng(1).standard_normal((2, 5, 3, 4)) * 2
    with torch.no_grad():
        y = layer(torch.from_numpy(x)).numpy()
    expected = by_numpy(name, x.transpose(0, 2, 3, 1), values(layer)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_rms_norm_takes_the_mean_square_over_all_normalised_dimensions():
    layer = randomized("RMSNorm", (3, 4))
    x = np.random.default_rng(1).standard_normal((2, 3, 4))
    expected = x / np.sqrt((x * x).mean((1, 2), keepdims=True) + 1e-6) * layer.weight.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", norms.FUNCTIONS)
def test_functions_have_the_values_that_were_worked_out_elsewhere(name):
    layer = norms.NORMS[name](1, alpha_init=1.0).double()
    for u, expected in {**VALUES[name], 0: 0.0}.items():
        for sign in (1, -1):
            assert layer(torch.tensor([sign * u], dtype=torch.float64)).item() == pytest.approx(
                sign * expected, abs=1e-14
            )


@pytest.mark.parametrize("name", norms.FUNCTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_derivatives_at_points_where_a_part_of_the_formula_has_none(name, fused, monkeypatch):
    """At 0, where that of the absolute value jumps, and far out; against a difference quotient of the formula by numpy."""
    monkeypatch.setattr(norms, "FUSED", {"cpu": one_pass.CPU} if fused else {})
    layer = norms.NORMS[name](1, alpha_init=1.0, shift_init=None).double()
    for at in (0.0, -0.0, 0.3, -0.3, 0.999, 2.5, -7.0, 40.0):
        x = torch.tensor([[at]], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(x).sum(), x)
        low, high = BY_NUMPY[name](np.array([at - 1e-6, at + 1e-6]))
        assert slope.item() == pytest.approx((high - low) / 2e-6, abs=5e-6)


@pytest.mark.parametrize("name", ["Hardtanh", "Satursin"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_function_that_ends_has_no_derivative_beyond_however_large_the_value(name, fused, monkeypatch):
    """In float32, where the number next to pi / 2 has a cosine below 0, which values of 1e4 would blow up in alpha's gradient."""
    monkeypatch.setattr(norms, "FUSED", {"cpu": one_pass.CPU} if fused else {})
    layer, x = norms.NORMS[name](3), torch.tensor([[4.0, -50.0, 1e4]], requires_grad=True)
    found = torch.autograd.grad(layer(x).sum(), [x, layer.alpha, layer.shift])
    assert all(not bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("name", [*norms.FUNCTIONS, "AdaptiveDynamicTanh", "BHyT"])
def test_flat_is_where_the_derivative_is_below_a_tenth_of_its_largest(name):
    """Of the layer's output by what the function reads, which for BHyT is x / rms(x)."""
    layer = norms.NORMS[name](4, **({"alpha_init": 1.0, "shift_init": 0.1} if name in norms.FUNCTIONS else {})).double()
    x = 9 * torch.randn(500, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if name == "BHyT":
        with torch.no_grad():
            layer.lam.fill_(25.0)
        read = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    else:
        read = x
    u = layer.alpha.item() * read.numpy() + (layer.shift.item() if hasattr(layer, "shift") else 0)
    function = BY_NUMPY.get(name, np.tanh)
    slope, largest = ((function(at + 1e-5) - function(at - 1e-5)) / 2e-5 for at in (u, np.zeros(1)))
    assert layer.flat(x).item() == pytest.approx(np.mean(slope < 0.1 * largest), abs=2e-3)
    assert 0.02 < layer.flat(x).item() < 0.98


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("name", norms.NORMS)
def test_gradients_are_those_of_the_formula(name, channels_first, affine):
    if name == "LayerNorm":
        layer = nn.LayerNorm(4, elementwise_affine=affine).double()
    elif name == "NoNorm":
        return
    else:
        layer = randomized(name, 4, channels_first=channels_first, affine=affine)
    if name == "AdaptiveDynamicTanh":
        assert 0.1 < layer.alpha.item() < 2.0  # inside the range, where alpha_base has a gradient
    shape = (2, 4, 2, 2) if channels_first and name != "LayerNorm" else (2, 3, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(output, (x, *parameters))


def test_fresh_layers_have_the_initial_values_of_their_papers():
    assert {k: v.tolist() for k, v in norms.RMSNorm(2).state_dict().items()} == {"weight": [1, 1]}
    expected = {"alpha": [0.5], "weight": [1, 1], "bias": [0, 0]}
    assert {k: v.tolist() for k, v in norms.DynamicTanh(2).state_dict().items()} == expected
    expected = {"alpha": [0.5], "shift": [0], "weight": [1, 1], "bias": [0, 0]}
    assert {k: v.tolist() for k, v in norms.DynamicErf(2).state_dict().items()} == expected
    for name in ("Hardtanh", "Saturlog"):
        assert {k: v.tolist() for k, v in norms.NORMS[name](2).state_dict().items()} == expected
    assert list(norms.DynamicErf(2, shift_init=None).state_dict()) == ["weight", "bias", "alpha"]
    assert norms.DynamicTanh(2, shift_init=0.25).state_dict()["shift"].tolist() == [0.25]
    assert {k: v.tolist() for k, v in norms.BHyT(2).state_dict().items()} == {"lam": [2], "weight": [1, 1]}
    expected = {"alpha_base": [0.5], "grad_norm_smoothed": [1], "weight": [1, 1], "bias": [0, 0]}
    assert {k: v.tolist() for k, v in norms.AdaptiveDynamicTanh(2).state_dict().items()} == expected
    assert norms.DynamicTanh(2, alpha_init=2.0).alpha.item() == 2.0


@pytest.mark.parametrize("fused", [{}, {"cpu": one_pass.CPU}], ids=["torch's own operations", "one pass"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_first", [False, True])
def test_bhyt_in_two_bytes_rounds_its_result_alone(dtype, channels_first, fused, monkeypatch):
    """Neither x / rms(x) nor what that is multiplied with, each of which would be off by as much as the result may be."""
    monkeypatch.setattr(norms, "FUSED", fused)
    layer = norms.BHyT(48, lam_init=3.0, channels_first=channels_first).to(dtype)
    x = torch.randn(7, 48, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x if channels_first else x.movedim(1, -1)
    y, exact = layer(x), layer.double()(x.double())
    assert y.dtype == dtype
    rounding = (
        torch.finfo(dtype).eps / 2 * 1.001 * exact.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )
    assert ((y.double() - exact).abs() <= rounding).all()
