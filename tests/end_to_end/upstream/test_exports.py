"""Exports for upstream: its classes, put together by the lines in the card, compute what the run does."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

import norms
from maekit.export import trained
from maekit.model import build_mae, to_timm
from tests.support import export_here, train_here
from tests.support.exporting import MODEL
from tests.support.exporting import RUN as EXPORTED

RUN = (*EXPORTED, "--mae_dir", "builtin")
COMPUTE = """
torch.manual_seed(0)
images = torch.randn(3, 3, 32, 32)
torch.manual_seed(1)
with torch.no_grad():
    torch.save(model(images) if "models_vit" in globals() else model(images, 0.75), "found.pt")
"""


def computed(folder, clone):
    """What the network of an export makes of images drawn as in COMPUTE, in upstream's clone."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    # in upstream's folder, as the card says, and with what lies beside the weights
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(clone.path), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-c", code + COMPUTE]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt")


def images_and_noise():
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32)
    torch.manual_seed(1)
    return images, torch.rand(3, 16)


@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_upstreams_autoencoder_computes_what_the_run_does(clone, tmp_path, norm):
    run = tmp_path / "run"
    train_here(*RUN, "--norm", norm, "--adyt_lambda", 0.3, "--output_dir", run, check=0)
    export_here(run, tmp_path / "out", "--to", "upstream", check=0)
    loss, pred, mask = computed(tmp_path / "out", clone)
    known = trained.read(run)
    mae = norms.convert_norms(build_mae(MODEL, img_size=32, decoder_type="dec16d1h2"), norm, **known.norm_arguments)
    mae.load_state_dict(known.weights)
    images, noise = images_and_noise()
    with torch.no_grad():
        ours = mae.eval()(images, noise=noise)
    for found, expected in zip((loss, pred, mask), ours):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", ["mean", "cls"])
def test_upstreams_classifier_computes_what_a_fine_tuning_does(clone, tmp_path, readout):
    run = tmp_path / "run"
    train_here(*RUN, "--task", "finetune", "--init", "untrained", "--readout", readout, "--output_dir", run, check=0)
    export_here(run, tmp_path / "out", "--to", "upstream", check=0)
    found = computed(tmp_path / "out", clone)
    pool = "avg" if json.loads((run / "config.json").read_text())["identity"]["readout"] == "mean" else "token"
    vit = to_timm(build_mae(MODEL, img_size=32), num_classes=10, global_pool=pool).eval()
    vit.load_state_dict(trained.read(run).weights)
    with torch.no_grad():
        torch.testing.assert_close(found, vit(images_and_noise()[0]), rtol=1e-5, atol=1e-6)
