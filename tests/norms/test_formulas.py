"""The normalisation layers: formulas, gradients, initial values."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import norms

DYNAMIC = [name for name in norms.NORMS if name != "LayerNorm"]


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
    elif name == "DynamicTanh":
        normal = np.tanh(p["alpha"] * x)
    elif name == "DynamicErf":
        normal = np.vectorize(math.erf)(p["alpha"] * x + p["shift"])
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


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("name", norms.NORMS)
def test_gradients_are_those_of_the_formula(name, channels_first, affine):
    if name == "LayerNorm":
        layer = nn.LayerNorm(4, elementwise_affine=affine).double()
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
    expected = {"alpha_base": [0.5], "grad_norm_smoothed": [1], "weight": [1, 1], "bias": [0, 0]}
    assert {k: v.tolist() for k, v in norms.AdaptiveDynamicTanh(2).state_dict().items()} == expected
    assert norms.DynamicTanh(2, alpha_init=2.0).alpha.item() == 2.0
