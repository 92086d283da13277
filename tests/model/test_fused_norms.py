"""Norm layers in one pass each way: the same numbers as the formula, nothing kept but the input."""

import copy
import os
import subprocess
import sys

import pytest
import torch

import norms
from maekit.model import one_pass
from tests.support import KIT, train_module
from tests.support.commands import resolved

SQUASHING = [*norms.FUNCTIONS, "AdaptiveDynamicTanh"]
DYNAMIC = [*SQUASHING, "RMSNorm"]


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Norm layers as a run on a CPU has them."""
    monkeypatch.setattr(norms, "FUSED", {"cpu": one_pass.CPU})


def layer_of(name, width, dtype=torch.float32):
    """A layer with random parameters."""
    layer = norms.NORMS[name](width).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return layer


def forward_and_gradients(layer, x, grad):
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad.to(y.dtype))]


def by_formula(monkeypatch, *args):
    with monkeypatch.context() as patch:
        patch.setattr(norms, "FUSED", {})
        return forward_and_gradients(*args)


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("name", [*DYNAMIC, "BHyT"])
@pytest.mark.parametrize("shape", [(3, 5, 48), (1, 1, 7), (40, 65, 192), (131073,), (2, 200000)])
def test_one_pass_gives_the_numbers_of_the_formula(name, shape, monkeypatch):
    """Shapes of one part, of several and of parts of one row; in float64 to rounding, in float32 to float32's."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        torch.manual_seed(1)
        layer, x, grad = layer_of(name, shape[-1], dtype), *torch.randn(2, *shape, dtype=dtype)
        _, dx, *_ = fused = forward_and_gradients(layer, x, grad)
        terms = float(
            (dx * x.abs().clamp(min=1)).norm()
        )  # about as large is a scalar's gradient, a sum that may cancel
        for ours, plain in zip(fused, by_formula(monkeypatch, layer, x, grad)):
            assert ours.dtype == plain.dtype and ours.shape == plain.shape
            if ours.numel() == 1:
                assert abs(float(ours - plain)) < tolerance * (abs(float(plain)) + terms)
            else:
                assert distance(ours, plain) < tolerance


@pytest.mark.parametrize("alpha", [0.0, 1e-30, -1e-3])
@pytest.mark.parametrize("name", ["DynamicTanh", "DynamicErf", "Softsign"])
def test_an_alpha_of_next_to_nothing_has_its_gradient(name, alpha, monkeypatch):
    torch.manual_seed(1)
    layer, x, grad = layer_of(name, 48), *torch.randn(2, 7, 48)
    with torch.no_grad():
        layer.alpha.fill_(alpha)
    place = 2 + [name for name, _ in layer.named_parameters()].index("alpha")
    ours, plain = forward_and_gradients(layer, x, grad), by_formula(monkeypatch, layer, x, grad)
    for found, expected in ((ours[1], plain[1]), (ours[place], plain[place])):
        assert torch.allclose(found, expected, rtol=1e-5, atol=0)
    assert abs(float(ours[place])) > 0.1


@pytest.mark.parametrize("name", SQUASHING)
def test_bfloat16_values_are_squashed_as_exactly_as_by_the_formula(name, monkeypatch):
    """With float32 parameters, as under autocast; compared with float64."""
    torch.manual_seed(2)
    x, grad = torch.randn(2, 64, 33, 96).bfloat16()
    layer = layer_of(name, 96)
    exact = by_formula(monkeypatch, layer_of(name, 96).double(), x.double(), grad.double())
    fused, plain = forward_and_gradients(layer, x, grad), by_formula(monkeypatch, layer, x, grad)
    for ours, theirs, true in zip(fused, plain, exact):
        assert ours.dtype == theirs.dtype
        assert distance(ours, true) <= 1.05 * distance(theirs, true) + 1e-5


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_model_all_in_bfloat16(name, monkeypatch):
    torch.manual_seed(2)
    x, grad = torch.randn(2, 64, 33, 96).bfloat16()
    layer = layer_of(name, 96).bfloat16()
    exact = by_formula(monkeypatch, copy.deepcopy(layer).double(), x.double(), grad.double())
    for ours, true in zip(forward_and_gradients(layer, x, grad), exact):
        assert ours.dtype == torch.bfloat16 and distance(ours, true) < (0.004 if ours.numel() > 1 else 0.02)


STRIDED = {  # what becomes of 32 x 32 random values and of 32 x 32 of their gradients
    "permuted": lambda x, grad: (x.view(32, 8, 4).permute(2, 1, 0), grad[:1].expand(4, 8, 32)),
    "transposed values": lambda x, grad: (x.T, grad),
    "transposed gradients": lambda x, grad: (x, grad.T),
    "one gradient for all": lambda x, grad: (x, grad[0, 0].expand(32, 32)),
    "every second": lambda x, grad: (x[::2, ::2], grad[::2, ::2]),
}


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("strided", STRIDED)
def test_strided_values_and_gradients(strided, name, monkeypatch):
    torch.manual_seed(3)
    x, grad = STRIDED[strided](*torch.randn(2, 32, 32))
    layer = layer_of(name, x.shape[-1])
    for ours, plain in zip(forward_and_gradients(layer, x, grad), by_formula(monkeypatch, layer, x, grad)):
        assert distance(ours, plain) < (3e-6 if ours.numel() > 1 else 1e-5)


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("shape", [(0, 8), (0, 5, 8), (3, 0, 8)])
def test_a_batch_without_rows(shape, name):
    layer, x = layer_of(name, 8), torch.empty(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())


@pytest.mark.parametrize("name", SQUASHING)
def test_whole_numbers_are_squashed_as_the_floats_that_they_are(name):
    layer, x = layer_of(name, 4), torch.arange(-6, 6).view(3, 4)
    found = []
    for values in (x, x.float()):
        y = layer(values)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for a, b in zip(*found):  # a scalar's gradient is a sum of terms of about 10, and may cancel
        assert torch.allclose(a, b, atol=1e-8 if a.numel() > 1 else 3e-6)


@pytest.mark.parametrize("name", SQUASHING)
def test_rows_of_unequal_number_in_one_nested_tensor(name):
    layer, parts = layer_of(name, 8), [torch.randn(3, 8), torch.randn(5, 8)]
    y = layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    assert all(torch.allclose(a, layer(b), atol=1e-6) for a, b in zip(y.unbind(), parts, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_float32_weights_is_rescaled_as_torch_does(dtype):
    layer, x = layer_of("RMSNorm", 96), torch.randn(8, 33, 96).to(dtype)
    y = layer(x)
    expected = torch.nn.functional.rms_norm(x, (96,), layer.weight, layer.rms_eps)
    assert y.dtype == expected.dtype and torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_squares_too_large_for_float16_are_summed_all_the_same(dtype):
    """A model all in half precision, and values of hundreds."""
    torch.manual_seed(5)
    x, grad = 300 * torch.randn(64, 96).to(dtype), torch.randn(64, 96).to(dtype)
    exact = forward_and_gradients(layer_of("RMSNorm", 96, dtype).double(), x.double(), grad.double())
    for ours, true in zip(forward_and_gradients(layer_of("RMSNorm", 96, dtype), x, grad), exact):
        assert ours.dtype == dtype and distance(ours, true) < 0.01


@pytest.mark.parametrize("name", DYNAMIC)
def test_nothing_but_the_input_is_kept_for_the_backward_pass(name, monkeypatch):
    layer, x = layer_of(name, 64), torch.randn(32, 64, requires_grad=True)

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(x)
        return sum(n for n in sizes if n == x.numel()) // x.numel()

    assert kept() == 1
    monkeypatch.setattr(norms, "FUSED", {})
    assert kept() >= 2


@pytest.mark.parametrize("name", DYNAMIC)
def test_gradients_of_gradients(name):
    layer = layer_of(name, 5, torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("name", DYNAMIC)
def test_under_vmap_and_in_a_compiled_model(name):
    layer, x = layer_of(name, 8), torch.randn(4, 3, 8)
    assert torch.allclose(torch.func.vmap(layer)(x), layer(x), atol=1e-6)
    captured = []
    torch.compiler.reset()  # the layers of all names are one code, of which it keeps eight versions
    compiled = torch.compile(layer, backend=lambda graph, inputs: captured.append(graph) or graph, fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    assert len(captured) == 1  # the formula itself, for the compiler to fuse


def test_where_there_is_no_gradient_to_come_nothing_is_kept():
    layer, x = layer_of("DynamicTanh", 8), torch.randn(4, 8)
    with torch.inference_mode():
        assert layer(x).grad_fn is None
    frozen = layer_of("DynamicTanh", 8).requires_grad_(False)
    assert frozen(x).grad_fn is None
    x.requires_grad_()
    frozen(x).sum().backward()
    assert x.grad is not None


INTERPRETED = """
import torch, norms
from maekit.model import kernels, one_pass
torch.manual_seed(0)
for name, texts in norms.FUNCTIONS.items():
    passes = [fused.point_wise(texts) for fused in (kernels.CUDA, one_pass.CPU)]
    for shift in (None, torch.full((1,), 0.3)):
        for n, width in ((37, 192), (8, 300), (5000, 128))[:3 if name in ("DynamicTanh", "DynamicErf") else 2]:
            x, grad = torch.randn(2, n, width)
            x[0, :100] *= 20
            x[1, :100] /= 1000
            alpha, (weight, bias) = torch.full((1,), 0.7), torch.randn(2, width)
            results = []
            for forward, backward in passes:
                y = torch.empty_like(x)
                forward(x, alpha, shift, weight, bias, y)
                results.append([y, *backward(x, alpha, shift, weight, bias, grad)])
            terms = float((results[1][1] * x.abs().clamp(min=1)).norm())  # of a scalar's sum, which may cancel
            for ours, cpu in zip(*results):
                assert (ours is None) == (cpu is None)
                if cpu is not None:
                    of = cpu.double().norm() + (terms if cpu.numel() == 1 else 0)
                    error = float((ours.double() - cpu.double()).norm() / of)
                    assert error < 5e-6, (name, shift, n, width, error)
"""


@pytest.mark.slow
def test_cuda_kernels_give_the_cpu_s_numbers():
    """In Triton's interpreter: what is computed, not how fast."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(KIT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("values", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", norms.FUNCTIONS)
def test_cuda_kernels_compile(name, capability, values):
    if name != "DynamicTanh" and (capability, values) != (90, "bf16"):
        return
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maekit.model import kernels

    numbers = {"rows", "each", "programs", "n_scalars"}
    of_parameters = {"alpha", "shift", "weight", "bias", "sums", "scalars", "d_alpha", "d_shift", "d_weight", "d_bias"}
    tile = {"ROWS": 8, "COLUMNS": 256, "width": 768}
    value, slope = kernels._functions(norms.FUNCTIONS[name], values == "fp32")
    for kernel in (kernels._forward_kernel, kernels._backward_kernel, kernels._finish_kernel):
        for shifted, large in ((False, False), (True, False), (False, True)):
            given = {**tile, "VALUE": value, "SLOPE": slope, "SHIFTED": shifted, "LARGE": large}
            constant = {name: value for name, value in given.items() if name in kernel.arg_names}
            kinds = {
                name: "constexpr"
                if name in constant
                else "i32"
                if name in numbers
                else "*fp32"
                if name in of_parameters
                else f"*{values}"
                for name in kernel.arg_names
            }
            done = triton.compile(ASTSource(kernel, kinds, constant), target=GPUTarget("cuda", capability, 32))
            assert done.asm["cubin"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels are tested in the interpreter")
@pytest.mark.parametrize("name", SQUASHING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(name, dtype, monkeypatch):
    from maekit.model import kernels

    torch.manual_seed(4)
    x, grad = torch.randn(2, 64, 197, 768).to(dtype).cuda()
    layer = layer_of(name, 768).cuda()
    plain = by_formula(monkeypatch, layer, x, grad)
    monkeypatch.setitem(norms.FUSED, "cuda", kernels.CUDA)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip(forward_and_gradients(layer, x, grad), plain):
        assert ours.dtype == theirs.dtype and distance(ours, theirs) < tolerance
    again = forward_and_gradients(layer, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(again, forward_and_gradients(layer, x, grad)))


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_before_a_linear_layer_under_autocast_it_writes_what_that_reads(name, half):
    """The same numbers to the last bit, forward and backward, of which the cast would have been a pass of its own."""
    torch.manual_seed(0)
    layer, linear, x = layer_of(name, 96), torch.nn.Linear(96, 64), torch.randn(4, 33, 96)
    found = []
    for layer.before_linear in (False, True):
        written = []
        hook = layer.register_forward_hook(lambda module, args, y, written=written: written.append(y.dtype))
        parameters, given = [*layer.parameters(), *linear.parameters()], x.clone().requires_grad_()
        with torch.autocast("cpu", half):
            y = linear(layer(given))
        found.append([y, *torch.autograd.grad(y.float().square().sum(), [given, *parameters])])
        hook.remove()
        assert written == [half if layer.before_linear else torch.float32]
        assert layer(given).dtype == torch.float32  # not under autocast
    assert all(map(torch.equal, *found))


def test_gradients_of_what_it_writes_before_a_linear_layer_can_be_differentiated():
    layer, x = layer_of("DynamicTanh", 8), torch.randn(2, 8, requires_grad=True)
    layer.before_linear = True
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    t = torch.tanh(layer.alpha * x)
    expected = layer.weight * layer.alpha**2 * -2 * t * (1 - t**2)
    assert torch.allclose(curvature, expected, rtol=1e-4, atol=1e-6)


def test_in_a_run_s_model_all_norms_but_the_encoder_s_last_are_before_linear_layers():
    model = train_module.build_model(resolved("--demo", "--norm", "dyt"))
    others = [name for name, m in model.named_modules() if isinstance(m, norms.DynamicTanh) and not m.before_linear]
    assert others == ["norm"] and model.blocks[0].norm1.before_linear
