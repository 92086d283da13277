"""The norm layers on a GPU: the numbers of their formulas, whatever the type, width, strides or size of their input."""

import math

import pytest
import torch
import torch.nn.functional as F

import norms
from maekit.model import compiling
from tests.cuda.conftest import distance

WIDTHS = (96, 192, 300, 512, 768, 1280)
HALVES = (torch.bfloat16, torch.float16)
SQUASHING = (*norms.FUNCTIONS, "AdaptiveDynamicTanh")
NORMS = [name for name in norms.NORMS if name != "NoNorm"]
POINT_WISE = {
    "DynamicTanh": torch.tanh,
    "DynamicErf": torch.erf,
    "Hardtanh": F.hardtanh,
    "Arctan": lambda u: 2 / math.pi * torch.arctan(u),
    "ISRU": lambda u: u * (u.square() + 1).rsqrt(),
    "Softsign": F.softsign,
    "Satursin": lambda u: torch.sin(u.clamp(-math.pi / 2, math.pi / 2)),
    "Expsign": lambda u: -u.sign() * torch.expm1(-u.abs()),
    "Relsign": lambda u: u / ((u.square() + 1).sqrt() + 1),
    "Saturlog": lambda u: u.sign() * torch.log1p(u.abs()) / (torch.log1p(u.abs()) + 1),
}
# what a difference to 1 leaves of small values is within 1e-7 of them, absolutely; tanh is exact on a GPU alone
WITHIN_1E_7 = ("Expsign", "Saturlog", "DynamicTanh", "AdaptiveDynamicTanh", "BHyT")


@pytest.fixture(autouse=True)
def fused(device, settings_of_torch):
    """Norm layers as a run has them."""
    compiling.fuse_norms(norms, device)


def layer_of(name, width, dtype=torch.float32):
    """A layer with random parameters, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    layer = norms.NORMS[name](width)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def values(*shape, dtype=torch.float32):
    """Random values and gradients for them whose sums do not cancel: a sum's relative error means something then."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, grad = torch.randn(2, *shape, generator=generator)
    return x.to(dtype), (0.5 * grad + 0.5 * x.tanh() + 0.3).to(dtype)


def formula_of_rms(x, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def formula(layer, parameters, x):
    p = dict(zip(dict(layer.named_parameters()), parameters))
    if isinstance(layer, torch.nn.LayerNorm):
        return F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"], layer.eps)
    if isinstance(layer, norms.RMSNorm):
        return formula_of_rms(x, layer.rms_eps) * p["weight"]
    if isinstance(layer, norms.BHyT):
        return torch.tanh(p["lam"] * layer.bound * formula_of_rms(x, layer.rms_eps)) * p["weight"]
    if isinstance(layer, norms.Dynamic):
        t = POINT_WISE[type(layer).__name__](p["alpha"] * x + p.get("shift", 0))
    else:
        smoothed = layer.grad_norm_smoothed.to(x.device, p["alpha_base"].dtype)
        alpha = p["alpha_base"] * (1 + layer.lam / (layer.gradient_eps + smoothed))
        t = torch.tanh(alpha.clamp(layer.alpha_min, layer.alpha_max) * x)
    return t * p["weight"] + p["bias"]


def parts_of(layer):
    return ["output", "x", *(name for name, _ in layer.named_parameters())]


def by_layer(layer, x, grad, autocast=None):
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad.to(y.dtype))]


def by_formula(layer, x, grad):
    x = x.detach().requires_grad_()
    parameters = [p.detach().to(x.device).requires_grad_() for p in layer.parameters()]
    y = formula(layer, parameters, x)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], grad.to(y.dtype))]


def exactly(layer, x, grad):
    """In float64 on the CPU, of the values and parameters as they are."""
    doubled = [p.detach().cpu().double().requires_grad_() for p in layer.parameters()]
    x = x.detach().cpu().double().requires_grad_()
    y = formula(layer, doubled, x)
    return [y.detach(), *torch.autograd.grad(y, [x, *doubled], grad.detach().cpu().double())]


def test_a_run_says_nothing_of_its_norm_layers_where_triton_works(gpu, capsys):
    """Where Triton does not, it says so and goes on with torch's own kernels, which all that follows would not show."""
    compiling.fuse_norms(norms, gpu)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", SQUASHING)
def test_nothing_but_the_input_is_kept_for_the_backward_pass(name, device):
    layer, x = layer_of(name, 64).to(device), torch.randn(32, 64, device=device, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sizes.count(x.numel()) == 1


def assert_float32(layer, x, grad, each=0.0):
    """each: what a value of f may be off by, which the gradient of the weight sums up."""
    if isinstance(layer, norms.Hardtanh):  # beside its kinks float32 may be on the other side
        u = layer.alpha * x + layer.shift
        x = x.masked_fill_((u.abs() - 1).abs() < 1e-5, 0.0)
    found = by_layer(layer, x, grad)
    for part, ours, exact in zip(parts_of(layer), found, exactly(layer, x, grad)):
        assert ours.dtype == torch.float32 and ours.shape == exact.shape
        allowed = 1e-5
        if part == "weight" and each:
            allowed += each * float(grad.abs().flatten(0, -2).sum(0).norm()) / float(exact.norm())
        assert distance(ours, exact) < allowed, (part, tuple(x.shape), distance(ours, exact))


@pytest.mark.parametrize("name", NORMS)
def test_float32_layers_compute_their_formula_to_1e_5(name, device):
    for width in WIDTHS:
        layer = layer_of(name, width).to(device)
        for rows in ((1,), (5, 37), (64, 65)):
            x, grad = values(*rows, width)
            assert_float32(layer, x.to(device), grad.to(device))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layers_of_two_bytes_a_number_are_as_exact_as_torch_s_own_operations(name, dtype, device):
    """A model all in bfloat16 or float16. Of scalars, the last digit may be another one."""
    for width in WIDTHS:
        layer = layer_of(name, width, dtype).to(device)
        for rows in ((1,), (5, 37), (16, 65)):
            x, grad = (t.to(device) for t in values(*rows, width, dtype=dtype))
            results = by_layer(layer, x, grad), by_formula(layer, x, grad), exactly(layer, x, grad)
            for part, ours, plain, exact in zip(parts_of(layer), *results):
                assert ours.dtype == dtype and ours.shape == exact.shape
                allowed = 1.05 * distance(plain, exact) + (torch.finfo(dtype).eps if ours.numel() == 1 else 1e-5)
                assert distance(ours, exact) <= allowed, (part, tuple(x.shape), distance(ours, exact), allowed)


@pytest.mark.parametrize("name", SQUASHING)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_values_of_two_bytes_meet_float32_parameters(name, dtype, device):
    for width in (192, 300, 768):
        layer = layer_of(name, width).to(device)
        x, grad = (t.to(device) for t in values(16, 65, width, dtype=dtype))
        results = by_layer(layer, x, grad), by_formula(layer, x, grad), exactly(layer, x, grad)
        for part, ours, plain, exact in zip(parts_of(layer), *results):
            assert ours.shape == exact.shape
            allowed = max(1.05 * distance(plain, exact), 1e-5) + 1e-5
            assert distance(ours, exact) <= allowed, (part, width, distance(ours, exact), allowed)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_under_autocast_float32_values_lose_no_more_than_the_rounding_of_the_output(name, dtype, device):
    for width in (192, 300, 768):
        layer = layer_of(name, width).to(device)
        x, grad = (t.to(device) for t in values(16, 65, width))
        grad = grad.to(dtype).float()  # whatever the output's type, the same gradients
        found, exact = by_layer(layer, x, grad, autocast=dtype), exactly(layer, x, grad)
        assert found[0].dtype in (torch.float32, dtype)
        rounding = distance(exact[0].to(found[0].dtype), exact[0])
        assert distance(found[0], exact[0]) <= 1.05 * rounding + 1e-5
        for part, ours, true in zip(parts_of(layer)[1:], found[1:], exact[1:]):
            assert ours.dtype == torch.float32 and distance(ours, true) < 1e-5, (part, width, distance(ours, true))


@pytest.mark.parametrize("name", NORMS)
def test_strided_values_and_gradients(name, device):
    layer = layer_of(name, 96).to(device)
    x, grad = (t.to(device) for t in values(96, 33, 8))
    assert_float32(layer, x.permute(2, 1, 0), grad.permute(2, 1, 0))
    x, grad = (t.to(device) for t in values(8, 33, 192))
    assert_float32(layer, x[:, ::2, 96:], grad[:1, ::2, 96:].expand(8, 17, 96))
    assert_float32(layer, x[:, 1:, ::2], grad[:, 1:, ::2])


@pytest.mark.parametrize("name", NORMS)
def test_large_values_saturate_and_are_no_nans(name, device):
    layer = layer_of(name, 192).to(device)
    x, grad = values(64, 192)
    x[::3] *= 20
    x[::5] = x[::5].sign() * (20 + x[::5].abs())
    x[7, ::2] = 1e4
    assert_float32(layer, x.to(device), grad.to(device))


@pytest.mark.parametrize("name", NORMS)
def test_tiny_values_keep_their_digits(name, device):
    """Each one by itself, where the formula's own digits do not cancel."""
    layer = layer_of(name, 192).to(device)
    x, grad = values(64, 192)
    x *= 1e-4
    exact_here = name not in WITHIN_1E_7 or (device.type == "cuda" and name not in ("Expsign", "Saturlog"))
    by_sigmoid = device.type == "cpu" and name in ("DynamicTanh", "AdaptiveDynamicTanh", "BHyT")
    assert_float32(layer, x.to(device), grad.to(device), each=2e-7 if by_sigmoid else 0.0)
    with torch.no_grad():
        for parameter, value in (("weight", 1.0), ("bias", 0.0), ("shift", 0.0)):
            if getattr(layer, parameter, None) is not None:
                getattr(layer, parameter).fill_(value)
    found, exact = by_layer(layer, x.to(device), grad.to(device))[0].cpu(), exactly(layer, x, grad)[0]
    if name != "LayerNorm" and exact_here:  # LayerNorm takes the mean away first
        assert float(((found - exact) / exact).abs().max()) < 1e-5


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_values_twice_give_the_same_result_to_the_last_bit(name, dtype, device):
    layer = layer_of(name, 300).to(device)
    x, grad = (t.to(device) for t in values(64, 197, 300))
    first = by_layer(layer, x, grad, autocast=None if dtype == torch.float32 else dtype)
    again = by_layer(layer, x, grad, autocast=None if dtype == torch.float32 else dtype)
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("name", NORMS)
def test_every_element_of_the_results_is_written(name, device):
    """New memory is full of nans here, which a sum over what was not written would show as well."""
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3, device=device).isnan().all()
        for rows, width in (((1,), 300), ((3, 7), 96), ((37, 65), 192), ((130, 97), 768)):
            layer = layer_of(name, width).to(device)
            x, grad = (t.to(device) for t in values(*rows, width))
            for autocast in (None, torch.bfloat16):
                found = by_layer(layer, x, grad, autocast=autocast)
                assert all(bool(part.isfinite().all()) for part in found), (rows, width, autocast)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def test_norms_one_after_the_other_in_one_process_are_each_its_own(device):
    """As in a warm worker: of equal type, width and shift."""
    x, grad = (t.to(device) for t in values(64, 192))
    layers = {name: layer_of(name, 192).to(device) for name in norms.FUNCTIONS}
    for _ in range(2):
        for layer in layers.values():
            assert_float32(layer, x, grad)


@pytest.mark.parametrize("name", norms.FUNCTIONS)
def test_a_nan_stays_one(name, device):
    layer = layer_of(name, 192).to(device)
    x, _ = values(8, 192)
    x[3, 5] = math.nan
    y = layer(x.to(device))
    assert y[3, 5].isnan() and int(y.isnan().sum()) == 1


@pytest.mark.parametrize("name", ["DynamicTanh", "DynamicErf"])
def test_more_values_than_a_32_bit_index_counts(name, gpu):
    rows, width, dtype = 2**21 + 3, 1024, torch.bfloat16
    if torch.cuda.mem_get_info(gpu)[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    layer = layer_of(name, width, dtype).to(gpu)
    chosen = torch.tensor([0, 1, 2**20, 2**21 - 1, 2**21, rows - 2, rows - 1])
    x, grad = (
        torch.empty(rows, width, dtype=dtype, device=gpu).normal_(),
        torch.zeros(rows, width, dtype=dtype, device=gpu),
    )
    picked, of_picked = values(len(chosen), width, dtype=dtype)
    at = chosen.to(gpu)
    x[at], grad[at] = picked.to(gpu), of_picked.to(gpu)  # all other rows add nothing to the gradients of the parameters
    y, dx, *sums = by_layer(layer, x, grad)
    small = picked.to(gpu), of_picked.to(gpu)
    exact, plain = exactly(layer, *small), by_formula(layer, *small)
    for part, ours, rough, true in zip(parts_of(layer), [y[at], dx[at], *sums], plain, exact):
        allowed = 1.05 * distance(rough, true) + (torch.finfo(dtype).eps if ours.numel() == 1 else 1e-5)
        assert distance(ours, true) <= allowed, (part, distance(ours, true), allowed)
    dx[at] = 0
    assert not dx.any()
    del x, y, dx, grad
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", SQUASHING)
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_before_a_linear_layer_it_writes_what_that_reads_the_same_numbers(name, half, device):
    """Under autocast, forward and backward, to the last bit."""
    for width in (96, 300, 768):
        layer, linear = layer_of(name, width).to(device), torch.nn.Linear(width, 64).to(device)
        x, _ = values(16, 65, width)
        found = []
        for layer.before_linear in (False, True):
            given = x.to(device).requires_grad_()
            with torch.autocast(device.type, half):
                between = layer(given)
                y = linear(between)
            assert between.dtype == (half if layer.before_linear else torch.float32)
            found.append([y, *torch.autograd.grad(y.float().square().mean(), [given, *layer.parameters()])])
        for part, ours, theirs in zip(parts_of(layer), *found):
            assert torch.equal(ours, theirs), (part, width)
