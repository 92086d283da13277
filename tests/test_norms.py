"""The normalisation layers: formulas, gradients, the adaptation of alpha, conversion of models."""

import copy
import io
import math
import os
import shutil
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig

import norms
from tests.support import KIT

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


# Formulas


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


# The adaptation of alpha, against plain arithmetic


class ByHand:
    """AdaptiveDynamicTanh with one channel and plain SGD, in Python floats; loss = sum of c y over (x, c)."""

    def __init__(self, alpha=0.5, lam=0.1, smooth=0.9, low=0.1, high=2.0, eps=1e-6):
        self.alpha, self.weight, self.bias, self.G = alpha, 1.0, 0.0, 1.0
        self.lam, self.smooth, self.low, self.high, self.eps = lam, smooth, low, high, eps

    @property
    def a(self):
        return min(max(self.alpha * (1 + self.lam / (self.eps + self.G)), self.low), self.high)

    def step(self, samples, lr):
        growth = 1 + self.lam / (self.eps + self.G)
        inside = self.low < self.alpha * growth < self.high
        d_alpha = d_weight = d_bias = 0.0
        for x, c in samples:
            t = math.tanh(self.a * x)
            d_bias += c
            d_weight += c * t
            if inside:
                d_alpha += c * self.weight * (1 - t * t) * x * growth
        norm = math.sqrt(d_alpha**2 + d_weight**2 + d_bias**2)
        self.G = self.smooth * self.G + (1 - self.smooth) * norm
        self.alpha -= lr * d_alpha
        self.weight -= lr * d_weight
        self.bias -= lr * d_bias


STEPS = ([(0.3, 1.0), (-1.2, 0.5)], [(0.8, -2.0), (0.1, 0.7)], [(2.0, 1.5), (-0.4, 0.2)])
SMALL_STEPS = [[(x, c * 1e-3) for x, c in samples] for samples in STEPS]


def layer_loss(layer, samples):
    x, c = torch.tensor(samples, dtype=layer.weight.dtype).unbind(1)
    return (layer(x[:, None])[:, 0] * c).sum()


@pytest.mark.parametrize(
    ("steps", "options", "ends_at"),
    [
        (STEPS, {}, None),
        (STEPS, {"smooth": 0.3, "lam": 0.5}, None),
        (SMALL_STEPS, {"smooth": 0.1}, 2.0),  # G falls, a(t) meets its upper bound
        (STEPS, {"alpha": 0.05}, 0.1),
    ],
    ids=["defaults", "fast", "upper bound", "lower bound"],
)
def test_alpha_follows_the_gradient_norm_as_worked_out_by_hand(steps, options, ends_at):
    hand = ByHand(**options)
    layer_options = {"alpha_init" if name == "alpha" else name: value for name, value in options.items()}
    layer = norms.AdaptiveDynamicTanh(1, **layer_options).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    if not options:
        assert layer.alpha.item() == pytest.approx(0.5 * (1 + 0.1 / 1.000001), rel=1e-12)  # G is 1 at the start
    for samples in steps:
        layer_loss(layer, samples).backward()
        norms.update_adaptive(layer)
        optimizer.step()
        optimizer.zero_grad()
        hand.step(samples, lr=0.1)
        assert layer.grad_norm_smoothed.item() == pytest.approx(hand.G, rel=1e-7)  # 0.05 has been a float32
        assert layer.alpha.item() == pytest.approx(hand.a, rel=1e-7)
        assert layer.alpha_base.item() == pytest.approx(hand.alpha, rel=1e-7)
    if ends_at is not None:
        assert layer.alpha.item() == ends_at


def test_gradient_accumulation_counts_the_gradient_of_the_whole_step():
    hand, layer = ByHand(), norms.AdaptiveDynamicTanh(1).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for samples in STEPS:
        for sample in samples:  # two backward passes, one step
            layer_loss(layer, [sample]).backward()
        norms.update_adaptive(layer)
        optimizer.step()
        optimizer.zero_grad()
        hand.step(samples, lr=0.1)
        assert layer.grad_norm_smoothed.item() == pytest.approx(hand.G, rel=1e-7)


def test_unscaled_gradients_of_a_grad_scaler_give_the_same_gradient_norm():
    hand, layer = ByHand(), norms.AdaptiveDynamicTanh(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    for samples in STEPS:
        scaler.scale(layer_loss(layer, samples)).backward()
        scaler.unscale_(optimizer)
        norms.update_adaptive(layer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        hand.step(samples, lr=0.1)
        assert layer.grad_norm_smoothed.item() == pytest.approx(hand.G, rel=1e-5)
        assert layer.alpha.item() == pytest.approx(hand.a, rel=1e-5)


def test_a_step_that_the_grad_scaler_skips_leaves_the_gradient_norms_of_all_layers():
    model = nn.Sequential(norms.AdaptiveDynamicTanh(3), nn.Linear(3, 3), norms.AdaptiveDynamicTanh(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(model(torch.randn(4, 3)).sum() * 1e10).backward()
    scaler.unscale_(optimizer)
    norms.update_adaptive(model)
    scaler.step(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_gradient_that_is_not_finite_keeps_every_layer_where_it_was(bad):
    model = nn.Sequential(norms.AdaptiveDynamicTanh(3), norms.AdaptiveDynamicTanh(3))
    model(torch.randn(4, 3)).sum().backward()
    norms.update_adaptive(model)
    before = [layer.grad_norm_smoothed.clone() for layer in model]
    assert all((g != 1).all() for g in before)
    model[1].weight.grad[1] = bad
    norms.update_adaptive(model)
    assert all(torch.equal(layer.grad_norm_smoothed, g) for layer, g in zip(model, before))


def test_without_gradients_nothing_moves():
    model = nn.Sequential(norms.AdaptiveDynamicTanh(3), nn.Linear(3, 3))
    norms.update_adaptive(model)
    assert model[0].grad_norm_smoothed.item() == 1
    model(torch.randn(4, 3)).sum().backward()
    model.zero_grad(set_to_none=True)
    norms.update_adaptive(model)
    assert model[0].grad_norm_smoothed.item() == 1


def test_update_adaptive_ignores_models_without_adaptive_layers():
    model = nn.Sequential(nn.Linear(3, 3), norms.DynamicTanh(3), nn.LayerNorm(3))
    model(torch.randn(4, 3)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    norms.update_adaptive(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_update_adaptive_moves_the_gradient_norm():
    layer = norms.AdaptiveDynamicTanh(3)
    for _ in range(3):
        layer(torch.randn(4, 3)).sum().backward()
    assert layer.grad_norm_smoothed.item() == 1


def test_every_layer_has_its_own_gradient_and_smoothing():
    layers = [
        norms.AdaptiveDynamicTanh(2, smooth=0.9),
        norms.AdaptiveDynamicTanh(2, smooth=0.5),
        norms.AdaptiveDynamicTanh(2, smooth=0.0, affine=False),
        norms.AdaptiveDynamicTanh(2, smooth=0.25, bias=False),
    ]
    for factor, layer in enumerate(layers, start=1):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float(factor))
    norms.update_adaptive(nn.ModuleList(layers))
    # gradients: alpha_base 1 value, weight 2, bias 2, each equal to the layer's factor
    expected = [
        0.9 * 1 + 0.1 * 1 * math.sqrt(5),
        0.5 * 1 + 0.5 * 2 * math.sqrt(5),
        0.0 * 1 + 1.0 * 3 * math.sqrt(1),
        0.25 * 1 + 0.75 * 4 * math.sqrt(3),
    ]
    assert [layer.grad_norm_smoothed.item() for layer in layers] == pytest.approx(expected, rel=1e-6)


def test_gradients_of_other_layers_do_not_count():
    model = nn.Sequential(nn.Linear(3, 3), norms.AdaptiveDynamicTanh(3))
    for parameter in model[0].parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for parameter in model[1].parameters():
        parameter.grad = torch.zeros_like(parameter)
    norms.update_adaptive(model)
    assert model[1].grad_norm_smoothed.item() == pytest.approx(0.9)


# Evaluation, saving, loading


def small_network(name, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model = norms.convert_norms(model, name)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train_steps(model, optimizer, numbers):
    for number in numbers:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        model(x).square().mean().backward()
        norms.update_adaptive(model)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", norms.NORMS)
def test_evaluation_computes_the_function_that_was_trained(name):
    model, optimizer = small_network(name)
    train_steps(model, optimizer, range(3))
    x = torch.randn(8, 4)
    with torch.no_grad():
        assert torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("name", norms.NORMS)
def test_training_goes_on_bit_by_bit_from_a_saved_state(name):
    model, optimizer = small_network(name)
    train_steps(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    train_steps(model, optimizer, range(3, 6))

    resumed, resumed_optimizer = small_network(name, seed=1)
    file.seek(0)
    state, optimizer_state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    resumed_optimizer.load_state_dict(optimizer_state)
    train_steps(resumed, resumed_optimizer, range(3, 6))

    if name == "AdaptiveDynamicTanh":
        assert model[1].grad_norm_smoothed.item() != 1
    assert model.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_of_the_original_adaptive_layer_loads():
    original = {
        "alpha_base": torch.tensor([0.7]),
        "weight": torch.tensor([1.0, 2.0, 3.0]),
        "bias": torch.tensor([0.1, 0.2, 0.3]),
        "grad_norm_smoothed": torch.tensor([0.25]),
    }
    layer = norms.AdaptiveDynamicTanh(3)
    layer.load_state_dict(original, strict=True)
    assert layer.alpha.item() == pytest.approx(0.7 * (1 + 0.1 / 0.250001))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DynamicTanh", {"alpha", "weight", "bias"}),
        ("DynamicErf", {"alpha", "shift", "weight", "bias"}),
        ("RMSNorm", {"weight"}),
        ("AdaptiveDynamicTanh", {"alpha_base", "weight", "bias", "grad_norm_smoothed"}),
    ],
)
def test_state_dicts_have_the_published_names(name, expected):
    assert set(norms.NORMS[name](3).state_dict()) == expected


# Conversion


@pytest.fixture(scope="module")
def timm_models():
    return {
        "vit_tiny_patch16_224": timm.create_model("vit_tiny_patch16_224", img_size=64),
        "convnext_tiny": timm.create_model("convnext_tiny"),
    }


def norm_layers(model):
    return [m for m in model.modules() if isinstance(m, tuple(norms.NORMS.values()))]


@pytest.mark.parametrize("name", [*norms.NORMS, *norms.ALIASES])
@pytest.mark.parametrize("model_name", ["vit_tiny_patch16_224", "convnext_tiny"])
def test_timm_models_are_converted_whole(timm_models, model_name, name):
    original = timm_models[model_name]
    model = copy.deepcopy(original, {id(p): p for p in original.parameters()})  # weights may be shared
    n = len(norm_layers(model))
    layer_class = norms.NORMS[norms.ALIASES.get(name, name)]
    state = torch.get_rng_state()
    converted = norms.convert_norms(model, name)
    assert torch.equal(torch.get_rng_state(), state), "conversion drew random numbers"
    layers = norm_layers(converted)
    assert n == {"vit_tiny_patch16_224": 25, "convnext_tiny": 23}[model_name] == len(layers)
    assert all(isinstance(layer, layer_class) for layer in layers)
    with torch.no_grad():
        assert converted.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", norms.NORMS)
def test_channels_first_layers_of_torchvision_are_converted(name):
    model = torchvision.models.ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=5)
    n = len(norm_layers(model))
    norms.convert_norms(model, name)
    assert len(norm_layers(model)) == n == 5
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def small_timm_model(kind):
    if kind == "vit":
        return timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5)
    return timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)


@pytest.mark.parametrize("name", norms.NORMS)
@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conversion_keeps_the_dtype(kind, name, dtype):
    model = norms.convert_norms(small_timm_model(kind).to(dtype), name)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", norms.NORMS)
@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_conversion_keeps_the_device(kind, name):
    with torch.device("meta"):  # a device other than the default one that every machine has
        model = small_timm_model(kind)
    norms.convert_norms(model, name)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", DYNAMIC)
def test_conversion_keeps_the_training_mode(name):
    model = nn.Sequential(nn.LayerNorm(3).train(), nn.LayerNorm(3).eval())
    norms.convert_norms(model, name)
    assert [layer.training for layer in model] == [True, False]


@pytest.mark.parametrize("name", DYNAMIC)
def test_layers_without_weight_or_bias_stay_without(name):
    model = nn.Sequential(nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False), nn.LayerNorm(3))
    norms.convert_norms(model, name)
    assert model[0].weight is None and model[0].bias is None
    assert model[1].weight is not None and model[1].bias is None
    assert model[2].weight is not None and (model[2].bias is None) == (name == "RMSNorm")
    assert model(torch.randn(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_layer_without_weight_takes_device_and_dtype_of_the_model_around_it(name):
    def model(**where):
        return nn.Sequential(nn.Linear(3, 3, **where), nn.LayerNorm(3, elementwise_affine=False))

    converted = norms.convert_norms(model(dtype=torch.bfloat16), name)
    assert converted(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    converted = norms.convert_norms(model(device="meta"), name)
    assert {tensor.device.type for tensor in converted.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", DYNAMIC)
def test_parameters_of_whole_numbers_around_it_lend_it_no_dtype(name):
    """As those of a quantised model."""
    quantised = nn.Module()
    quantised.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    norm, linear = nn.LayerNorm(3, elementwise_affine=False), nn.Linear(3, 3, dtype=torch.bfloat16)
    converted = norms.convert_norms(nn.ModuleList([quantised, norm, linear]), name)
    assert converted[1](torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {t.dtype for t in converted[1].state_dict().values()} <= {torch.bfloat16}


def test_a_layer_that_is_used_in_two_places_is_converted_in_both():
    shared = nn.LayerNorm(3)
    model = norms.convert_norms(nn.ModuleList([shared, nn.Sequential(shared), shared]), "DynamicTanh")
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert model[0] is model[1][0] is model[2]


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_lone_layer_is_converted_itself(name):
    converted = norms.convert_norms(nn.LayerNorm((2, 3), dtype=torch.float64).eval(), name)
    assert type(converted) is norms.NORMS[name]
    assert converted.normalized_shape == (2, 3)
    assert converted.weight.dtype == torch.float64
    assert not converted.training


def test_conversion_to_layer_norm_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, eps=1e-6))
    layers = list(model.modules())
    assert norms.convert_norms(model, "ln") is model
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))


def test_conversion_hands_options_to_every_layer():
    options = {"alpha_init": 0.8, "lam": 0.2, "smooth": 0.5, "alpha_min": 0.3, "alpha_max": 0.9}
    model = norms.convert_norms(nn.Sequential(nn.LayerNorm(3), nn.Sequential(nn.LayerNorm(3))), "adyt", **options)
    for layer in (model[0], model[1][0]):
        assert {name: getattr(layer, name) for name in options} == options
        assert layer.alpha_base.item() == pytest.approx(0.8)
        assert layer.alpha.item() == pytest.approx(0.9)  # 0.8 * 1.2, clipped
    assert norms.convert_norms(nn.LayerNorm(3), "dyt", alpha_init=2.0).alpha.item() == 2.0


@pytest.mark.parametrize("name", ["BatchNorm", "layernorm", ""])
def test_an_unknown_norm_is_a_key_error(name):
    with pytest.raises(KeyError):
        norms.convert_norms(nn.LayerNorm(3), name)


@pytest.mark.parametrize("name", norms.NORMS)
def test_an_unknown_option_is_a_type_error(name):
    with pytest.raises(TypeError, match="sharpness"):
        norms.convert_norms(nn.Sequential(nn.LayerNorm(3)), name, sharpness=1.0)


# Watching alpha, and standing alone


def test_norm_alphas_names_every_layer_with_its_alpha_and_saturation():
    inside, above, below = (norms.AdaptiveDynamicTanh(3, alpha_init=a) for a in (0.5, 1.9, 0.05))
    layers = OrderedDict(
        ln=nn.LayerNorm(3),
        dyt=norms.DynamicTanh(3, alpha_init=3.0),
        rms=norms.RMSNorm(3),
        deep=nn.Sequential(norms.DynamicErf(3, alpha_init=0.25), inside),
        above=above,
        below=below,
    )
    rows = norms.norm_alphas(nn.Sequential(layers))
    assert [name for name, _, _ in rows] == ["dyt", "deep.0", "deep.1", "above", "below"]
    assert [value for _, value, _ in rows] == pytest.approx([3.0, 0.25, 0.55, 2.0, 0.1], rel=1e-5)
    assert [saturated for _, _, saturated in rows] == [None, None, False, True, True]
    assert norms.norm_alphas(nn.Sequential(nn.LayerNorm(3))) == []


def test_norms_py_works_alone_and_needs_torch_only(tmp_path):
    shutil.copy(KIT / "norms.py", tmp_path / "norms.py")
    script = (
        "import sys, norms, torch\n"
        "model = norms.convert_norms(torch.nn.Sequential(torch.nn.LayerNorm(3)), 'adyt')\n"
        "model(torch.randn(2, 3)).sum().backward(); norms.update_adaptive(model); print(norms.norm_alphas(model))\n"
        "print(norms.__file__)\n"
        "print([m for m in ('timm', 'torchvision', 'maekit', 'train', 'PIL', 'pandas') if m in sys.modules])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    _, file, imported = result.stdout.splitlines()
    assert file == str(tmp_path / "norms.py")
    assert imported == "[]"
