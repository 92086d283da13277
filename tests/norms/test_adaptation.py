"""The adaptation of alpha, against plain arithmetic; evaluation, saving, loading."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import norms


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


@pytest.mark.parametrize("name", [name for name in norms.NORMS if name != "NoNorm"])
def test_evaluation_computes_the_function_that_was_trained(name):
    model, optimizer = small_network(name)
    train_steps(model, optimizer, range(3))
    x = torch.randn(8, 4)
    with torch.no_grad():
        assert torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("name", [name for name in norms.NORMS if name != "NoNorm"])
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
        ("Hardtanh", {"alpha", "shift", "weight", "bias"}),
        ("BHyT", {"lam", "weight"}),
        ("NoNorm", set()),
        ("AdaptiveDynamicTanh", {"alpha_base", "weight", "bias", "grad_norm_smoothed"}),
    ],
)
def test_state_dicts_have_the_published_names(name, expected):
    assert set(norms.NORMS[name](3).state_dict()) == expected
