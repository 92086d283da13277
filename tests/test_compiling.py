"""Compiled and recomputed training is the same training."""

import shutil

import pytest
import torch
from torch import nn

from maekit import compiling, settings
from maekit.device import Device
from maekit.flags import build_parser
from maekit.model import build_mae

from .conftest import train
from .test_train import losses

QUICK = ("--demo", "--epochs", "2", "--max_images", "96", "--batch_size", "32", "--num_workers", "0")


def resolved(*flags):
    return settings.resolve(build_parser("train.py", "").parse_args([str(flag) for flag in flags]))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="--compile needs a C++ compiler here")
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    """With what is in a step besides the model: AdaptiveDynamicTanh, the joint and the frozen probe."""
    flags = ("--demo", "--epochs", "1", "--max_images", "80", "--batch_size", "40", "--num_workers", "0", "--norm", "adyt",
             "--decoder_type", "linear", "--alpha", "0.1", "--probes", "frozen", "--lr", "4e-3", "--output_dir")  # fmt: skip
    train(*flags, tmp_path / "plain", check=0)
    train(*flags, tmp_path / "compiled", "--compile", "on", check=0, timeout=600)
    for plain, compiled in zip(losses(tmp_path / "plain"), losses(tmp_path / "compiled")):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse"):
            assert compiled[name] == pytest.approx(plain[name], rel=1e-4), name
    plain, compiled = (torch.load(tmp_path / name / "checkpoint.pth")["model"] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()  # a checkpoint of one goes on as the other
    assert any(not torch.equal(plain[name], compiled[name]) for name in plain)  # it was compiled


@pytest.mark.parametrize(
    "flags, kind, steps, expected",
    [
        ((), "cpu", 10**6, None),
        ((), "cuda", 100, None),
        ((), "cuda", 10**6, {"dynamic": False, "mode": "reduce-overhead"}),
        (("--batch_size", "512"), "cuda", 10**6, {"dynamic": False, "mode": None}),
        (("--accum_iter", "2"), "cuda", 10**6, {"dynamic": False, "mode": None}),
        (("--compile", "on"), "cuda", 1, {"dynamic": False, "mode": "reduce-overhead"}),
        (("--compile", "off"), "cuda", 10**6, None),
    ],
)
def test_when_a_run_is_compiled(flags, kind, steps, expected, monkeypatch):
    asked = []
    model = nn.Linear(1, 1)
    monkeypatch.setattr(model, "compile", lambda **how: asked.append(how))
    device = Device("cpu", "float32")
    device.torch = torch.device(kind)
    assert compiling.compile_for(model, resolved("--demo", *flags), device, steps) == bool(expected)
    assert asked == ([expected] if expected else [])
    torch._dynamo.config.suppress_errors = False


def test_bad_words_are_one_line(tmp_path):
    error = train("--demo", "--compile", "yes", "--output_dir", tmp_path, check=2).stderr
    assert error == "error: --compile yes: unknown. Choose from auto, on, off.\n"


def test_without_a_compiler_it_says_so(tmp_path):
    error = train("--demo", "--compile", "on", "--output_dir", tmp_path, env={"PATH": str(tmp_path)}, check=2).stderr
    assert error.splitlines()[-1].startswith("error: --compile on: there is no C++ compiler here")


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
