"""Compiled and recomputed training is the same training."""

import shutil

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from maekit.errors import InputError
from maekit.model import compiling
from maekit.model.mae import build_mae
from maekit.training.device import Device
from tests.support import train, train_here
from tests.support.commands import resolved
from tests.support.runs import losses

QUICK = ("--demo", "--epochs", "2", "--max_images", "96", "--batch_size", "32", "--num_workers", "0")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="--compile needs a C++ compiler here")
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    """With what is in a step besides the model: AdaptiveDynamicTanh, the joint and the frozen probe."""
    flags = (
        "--demo",
        "--epochs",
        "1",
        "--max_images",
        "80",
        "--batch_size",
        "40",
        "--num_workers",
        "0",
        "--norm",
        "adyt",
        "--decoder_type",
        "linear",
        "--alpha",
        "0.1",
        "--probes",
        "frozen",
        "--lr",
        "4e-3",
        "--output_dir",
    )
    train(*flags, tmp_path / "plain", check=0)
    train(*flags, tmp_path / "compiled", "--compile", "on", check=0, timeout=600)
    for plain, compiled in zip(losses(tmp_path / "plain"), losses(tmp_path / "compiled")):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse"):
            assert compiled[name] == pytest.approx(plain[name], rel=1e-4), name
    plain, compiled = (torch.load(tmp_path / name / "checkpoint.pth")["model"] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()  # a checkpoint of one goes on as the other
    assert any(not torch.equal(plain[name], compiled[name]) for name in plain)  # it was compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, kind, steps, compiled, captured",
    [
        ((), "cpu", 10**7, False, False),
        ((), "cuda", 40, False, False),
        ((), "cuda", 1000, False, True),  # a small model: launches are what it waits for
        ((), "cuda", 10**7, True, True),
        (("--batch_size", "512"), "cuda", 10**7, True, True),
        (("--accum_iter", "2"), "cuda", 10**7, True, False),
        (("--grad_checkpointing",), "cuda", 10**7, True, False),
        (("--compile", "on"), "cuda", 40, True, False),
        (("--compile", "off"), "cuda", 10**7, False, False),
    ],
)
def test_when_a_run_is_compiled_and_when_its_steps_are_a_cuda_graph(
    flags, kind, steps, compiled, captured, monkeypatch
):
    model, asked = build_mae("mae_vit_demo_patch8", img_size=64), []
    for block in (*model.blocks, *model.decoder_blocks):
        monkeypatch.setattr(block, "compile", lambda **how: asked.append(how))
    monkeypatch.setattr(compiling, "try_out", lambda device: None)
    run, device = resolved("--demo", *flags), Device("cpu", "float32")
    device.torch = torch.device(kind)
    assert compiling.compile_for(model, run, device, steps) == compiled
    assert asked == [{"dynamic": False}] * 3 * compiled  # blocks, of encoder and decoder
    assert compiling.captures(run, device, steps) == captured
    torch._dynamo.config.suppress_errors = False


def test_the_work_of_an_image_is_that_of_a_count_by_torch():
    """Over all patches, attention left out, of which torch counts a little more."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_mae("mae_vit_demo_patch8", img_size=64)
    with FlopCounterMode(display=False) as counter:
        x = torch.randn(1, 64, 64)
        for block in model.blocks:
            x = block(x)
        x.sum().backward()
    counted = counter.get_total_flops()
    model.decoder_blocks = nn.ModuleList()
    assert 0.75 * counted < compiling.flops_per_image(model, 64) < counted * 1.1


@pytest.mark.slow
def test_blocks_of_one_kind_are_compiled_once():
    """Encoder and decoder, training and validation: four graphs for three blocks; odd batches go without."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph

    model = build_mae("mae_vit_demo_patch8", img_size=64)
    for block in compiling.blocks_of(model):
        block.compile(dynamic=False, backend=backend)
    images, noise = torch.randn(4, 3, 64, 64), torch.rand(4, 64)
    model(images, 0.75, noise)[0].backward()
    with torch.inference_mode():
        model(images, 0.75, noise)
        assert len(graphs) == 4
        with compiling.eagerly(True):
            model(images[:3], 0.75, noise[:3])
    assert len(graphs) == 4
    torch._dynamo.reset()


def test_bad_words_are_one_line(tmp_path):
    error = train("--demo", "--compile", "yes", "--output_dir", tmp_path, check=2).stderr
    assert error == "error: --compile yes: unknown. Choose from auto, on, off.\n"


def test_without_a_compiler_it_says_so(tmp_path):
    error = train("--demo", "--compile", "on", "--output_dir", tmp_path, env={"PATH": str(tmp_path)}, check=2).stderr
    assert error.splitlines()[-1].startswith("error: --compile on: there is no C++ compiler here")


def test_where_compiling_fails_a_run_goes_on_without_or_says_so(monkeypatch, capsys):
    """In one line, whatever torch says of it."""

    def fail(device):
        raise RuntimeError("\nCalledProcessError: no Python.h\n\nSet TORCH_LOGS=+dynamo for more")

    monkeypatch.setattr(compiling, "try_out", fail)
    model, device = build_mae("mae_vit_demo_patch8", img_size=64), Device("cpu", "float32")
    monkeypatch.setattr(compiling, "compile_blocks", lambda *_, **__: pytest.fail("it cannot be"))
    device.torch = torch.device("cuda")
    assert not compiling.compile_for(model, resolved("--demo"), device, steps=10**7)
    said = "--compile auto: torch.compile does not work here (CalledProcessError: no Python.h); goes on without.\n"
    assert capsys.readouterr().out == said
    with pytest.raises(InputError, match=r"^--compile on: torch.compile does not work here \(.*\). Use auto or off.$"):
        compiling.compile_for(model, resolved("--demo", "--compile", "on"), device, steps=10)


def test_a_compiler_that_is_broken_is_found_out_by_next_to_nothing(monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/bin/false",))
    torch._dynamo.reset()
    with torch._inductor.utils.fresh_cache(), pytest.raises(Exception, match=r"."):
        compiling.try_out(torch.device("cpu"))
    torch._dynamo.reset()


def test_recomputed_activations_change_nothing_but_what_is_kept():
    def step(recompute):
        torch.manual_seed(0)
        model = build_mae("mae_vit_demo_patch8", img_size=64)
        if recompute:
            compiling.recompute_activations(model)
        images, noise = torch.randn(8, 3, 64, 64), torch.rand(8, 64)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = model(images, 0.75, noise)[0]
        loss.backward()
        return loss, [p.grad for p in model.parameters() if p.requires_grad], sum(kept)

    (loss, gradients, kept), (loss_too, gradients_too, kept_less) = step(False), step(True)
    assert torch.equal(loss, loss_too) and all(map(torch.equal, gradients, gradients_too))
    assert kept_less < 0.3 * kept


@pytest.mark.slow
def test_the_flag_for_it_gives_the_same_run(tmp_path):
    """Also for upstream's recipe of fine-tuning, whose drop path draws random numbers in the blocks."""
    flags = (*QUICK, "--norm", "dyt", "--output_dir")
    train(*flags, tmp_path / "plain", check=0)
    train(*flags, tmp_path / "recomputed", "--grad_checkpointing", check=0)
    assert losses(tmp_path / "plain") == losses(tmp_path / "recomputed")
    flags = (*QUICK, "--task", "finetune", "--init", tmp_path / "plain", "--drop_path", "0.5", "--output_dir")
    train(*flags, tmp_path / "tuned", check=0)
    train(*flags, tmp_path / "tuned_recomputed", "--grad_checkpointing", check=0)
    assert losses(tmp_path / "tuned") == losses(tmp_path / "tuned_recomputed")


class OnCpu:
    """What compiling.Captured is, without a graph: inputs, results and gradients lie in the same memory at every call."""

    def __init__(self, function, inputs, parameters=()):
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        self.parameters = [p for p in parameters if p.requires_grad]
        for p in self.parameters:
            p.grad = None
        self.results = self.called()
        self.gradients = [p.grad for p in self.parameters]
        assert all(gradient is not None for gradient in self.gradients)

    def called(self):
        return tree_map(lambda tensor: tensor, self.function(*self.inputs))  # dicts of its own

    def __call__(self, *inputs):
        for own, new in zip(self.inputs, inputs):
            own.copy_(new)
        for p in self.parameters:
            p.grad = None
        for new, own in zip(tree_leaves(self.called()), tree_leaves(self.results), strict=True):
            own.copy_(new)
        for p, own in zip(self.parameters, self.gradients):
            own.copy_(p.grad)
            p.grad = own
        return self.results


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_what_a_cuda_graph_writes_over_was_read_before(norm, tmp_path, monkeypatch):
    """With probes, over three epochs of training and validation, the last batch of it a smaller one; two of them have scores."""
    probes = ("--probes", "joint frozen representation", "--epochs", "3", "--eval_every", "2")
    flags = (*QUICK, "--norm", norm, "--alpha", "0.1", *probes, "--output_dir")
    train_here(*flags, tmp_path / "plain", check=0)
    made = []
    monkeypatch.setattr(compiling, "captures", lambda *_: True)
    monkeypatch.setattr(compiling, "Captured", lambda *args: made.append(OnCpu(*args)) or made[-1])
    train_here(*flags, tmp_path / "captured", check=0)
    assert len(made) == 2  # a training step and a batch of validation images
    assert losses(tmp_path / "captured") == losses(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["step", "validation"])
def test_what_cannot_be_captured_goes_without_a_graph_and_says_so(refused, tmp_path, monkeypatch):
    def captured(function, inputs, parameters=()):
        if (refused == "step") == bool(parameters):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return OnCpu(function, inputs, parameters)

    train_here(*QUICK, "--output_dir", tmp_path / "plain", check=0)
    monkeypatch.setattr(compiling, "captures", lambda *_: True)
    monkeypatch.setattr(compiling, "Captured", captured)
    told = train_here(*QUICK, "--output_dir", tmp_path / "auto", check=0).stdout
    line = "--compile auto: goes on without a CUDA graph (operation not permitted when stream is capturing).\n"
    assert told.count(line) == 1
    assert losses(tmp_path / "auto") == losses(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compile", "error", "line"),
    [
        ("on", "operation not permitted", "--compile on: cannot go on without a CUDA graph (operation not permitted)."),
        ("auto", "CUDA error: out of memory", "--batch_size 32: out of memory, some memory more were needed."),
    ],
)
def test_what_cannot_be_captured_ends_a_run_that_insists_or_has_no_memory(compile, error, line, tmp_path, monkeypatch):
    def captured(*_):
        raise RuntimeError(error)

    monkeypatch.setattr(compiling, "captures", lambda *_: True)
    monkeypatch.setattr(compiling, "Captured", captured)
    monkeypatch.setattr(compiling, "compile_for", lambda *_: False)
    told = train_here(*QUICK, "--compile", compile, "--output_dir", tmp_path, check=2).stderr
    assert told.splitlines()[-1].startswith(f"error: {line} ")
