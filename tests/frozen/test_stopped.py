"""A run that an earlier kit began, and that stands for those of users, ends as it would have there."""

import contextlib
import hashlib
import json
import platform
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.settings.architectures import MODELS, Architecture, Transformer
from tests.support import train_here
from tests.support.frozen import FROZEN, RECORD
from tests.support.runs import flat, losses

STOPPED = FROZEN / "stopped"
BEGUN = (
    "--model",
    "mae_vit_demo_patch8",
    "--input_size",
    "32",
    "--norm",
    "adyt",
    "--alpha",
    "0.1",
    "--probes",
    "all",
    "--eval_every",
    "1",
    "--epochs",
    "2",
    "--batch_size",
    "4",
    "--lr",
    "0.001",
    "--warmup_epochs",
    "0.5",
    "--num_workers",
    "0",
    "--device",
    "cpu",
    "--compile",
    "off",
    "--mae_dir",
    "builtin",
)
STEPS = 6  # of an epoch


@pytest.fixture
def small_model(monkeypatch):
    """The demo's model with 14 thousand parameters in place of 344 thousand, so that a checkpoint is a small file."""
    small = Transformer(width=16, depth=1, heads=2)
    monkeypatch.setitem(MODELS, "mae_vit_demo_patch8", Architecture(8, small, small))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are in another order with more
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def patterns(tmp_path):
    """24 training and 12 validation images of three classes, made of whole numbers and stored as PNG: the same pixels with
    every version of every library, where the demo's are JPEG. A run knows its data by the names of files below its folder."""
    y, x = np.mgrid[:40, :40]
    for split, n in (("train", 8), ("val", 4)):
        for label in range(3):
            folder = tmp_path / "patterns" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                k = i + (split == "val") * 100
                waves = [
                    (x * (label + 2) * (c + 1) + y * (k % 5 + 1) + 37 * k + x * y // (9 + label)) % 256
                    for c in range(3)
                ]
                Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "patterns"


def hash_of_state(folder):
    """One hash of every tensor in a checkpoint: weights, optimizer, probes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(flat(torch.load(folder / "checkpoint.pth", weights_only=True)).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def arithmetic():
    """What sums of floats depend on: torch, and the processor that its libraries choose their code for."""
    cpu = [platform.processor()]
    with contextlib.suppress(OSError):
        about = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        cpu = re.findall(r"^(?:model name|cpu family|model)\s*: (.*)$", about, re.MULTILINE)
    cpu.append(torch.backends.cpu.get_cpu_capability())
    return {"torch": torch.__version__.partition("+")[0], "cpu": ", ".join(cpu)}


def record_stopped(patterns, tmp_path, monkeypatch):
    """Begin a run, stop it in the middle of its second epoch, and write down its folder and what an unbroken one ends with."""
    from maekit.training.saving import Saver

    flags = (*BEGUN, "--imagenet_dir", patterns, "--output_dir")
    train_here(*flags, tmp_path / "unbroken", check=0)
    after_step = Saver.after_step

    def stop(self, position, epoch, share):
        if epoch == 1 and share >= 0.5:
            self.stop.name = "SIGTERM"
        after_step(self, position, epoch, share)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after_step", stop)
        train_here(*flags, tmp_path / "begun", check=143)
    shutil.rmtree(STOPPED, ignore_errors=True)
    STOPPED.mkdir(parents=True)
    for name in ("log.csv", "norm_alpha.csv", "trajectory.json", "checkpoint.pth"):
        shutil.copy(tmp_path / "begun" / name, STOPPED / name)
    for name, own in (
        ("config.json", {"command": ["{KIT}/train.py"]}),
        ("status.json", {"host": "{HOST}", "process": 0}),
    ):
        text = (tmp_path / "begun" / name).read_text(encoding="utf-8").replace(str(tmp_path), "{WORK}")
        text = json.dumps({**json.loads(text), **own}, indent=1) + "\n"
        (STOPPED / name).write_text(text, encoding="utf-8", newline="\n")
    expected = {**arithmetic(), "state": hash_of_state(tmp_path / "unbroken"), "log": losses(tmp_path / "unbroken")}
    (STOPPED / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8", newline="\n")


def test_a_run_that_an_earlier_kit_began_ends_as_it_would_have_there(small_model, patterns, tmp_path, monkeypatch):
    """Bitwise where torch and processor are those it was recorded with; elsewhere with its losses."""
    if RECORD == "stopped":
        record_stopped(patterns, tmp_path, monkeypatch)
    folder = tmp_path / "run"
    folder.mkdir()
    for file in STOPPED.iterdir():
        if file.name != "expected.json":
            shutil.copy(file, folder / file.name)
    position = torch.load(folder / "checkpoint.pth", weights_only=True)["position"]
    assert (position["epoch"], position["batch"]) == (1, STEPS // 2)

    said = train_here(*BEGUN, "--imagenet_dir", patterns, "--output_dir", folder, check=0).stdout
    assert f"goes on with epoch 1, batch {STEPS // 2} of 2" in said and "finished after 2 epochs" in said
    expected = json.loads((STOPPED / "expected.json").read_text(encoding="utf-8"))
    if arithmetic() == {name: expected[name] for name in arithmetic()}:
        assert losses(folder) == expected["log"]
        assert hash_of_state(folder) == expected["state"]
    else:
        for now, recorded in zip(losses(folder), expected["log"], strict=True):
            for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse", "lr"):
                assert now[name] == pytest.approx(recorded[name], rel=1e-6), name
