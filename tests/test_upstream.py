"""Our model, checkpoints and recipes beside upstream's own code (facebookresearch/mae), run and compared.

They need a clone of upstream: at $MAE_CLONE, in mae beside the scripts, or on PYTHONPATH. It is copied, the copy is
patched with compatibility-fix.patch. Without one these tests are skipped, and nothing else shows that the two are equal.
"""

import gc
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.optim import param_groups_weight_decay
from torch import nn
from torchvision import datasets, transforms

import norms
import train as train_module
from maekit import checkpoint, demo, files, flags, jobs, model, probes, settings, sources, upstream

from .conftest import KIT, run, train, train_here

TOLERANCE = 1e-5  # float32 on the CPU
STEPS = 5
BASE = "mae_vit_base_patch16"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A patched copy of the clone that there is."""
    found = upstream.find(os.environ.get("MAE_CLONE") or None)
    if found is None:
        reason = (
            "no clone of upstream found, EQUALITY WITH UPSTREAM WAS NOT TESTED. "
            "Run ./run_comparison.sh --clone_mae, or set MAE_CLONE to the path of a clone."
        )
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("upstream") / "mae"
    subprocess.run(["git", "clone", "--quiet", str(found.path), str(path)], check=True)
    return upstream.find(str(path)).ensure_patched()


@pytest.fixture(scope="module")
def theirs(clone):
    """Import a module of upstream's by its name. Afterwards none of them is loaded or found any more."""
    before = list(sys.path)
    clone.module()
    yield importlib.import_module
    sys.path[:] = before
    for name in list(sys.modules):
        if name.split(".")[0] in ("models_mae", "models_vit", "util"):
            del sys.modules[name]


# The model


def pictures(n, side=224):
    """n crops of photographs, normalised, (n, 3, side, side); the corner of the first is flat, as an overexposed sky."""
    images = []
    for name in demo.PHOTOGRAPHS[:n]:
        photo = Image.open(demo.photograph(name)).convert("RGB")
        images.append(transforms.functional.to_tensor(transforms.functional.resize(photo, [side, side])))
    images = (torch.stack(images) - 0.45) / 0.225
    images[0, :, : side // 4, : side // 4] = images.max()
    return images


def noises(steps, n, patches):
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.random((steps, n, patches), dtype=np.float32))


def with_weights_that_all_matter(mae):
    """The model with tokens, biases and scales moved away from 0 and 1, so that each has its part in the numbers."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in mae.parameters():
            if p.requires_grad and (p.ndim == 1 or p.shape[:2] == (1, 1)):
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return mae


class GivenNoise:
    """torch.rand in upstream's random_masking, which gets our noise instead; counts how often it is asked."""

    def __init__(self, monkeypatch):
        self.asked, self.noise = 0, None
        monkeypatch.setattr(torch, "rand", self)

    def __call__(self, *shape, device=None):
        assert shape == self.noise.shape
        self.asked += 1
        return self.noise


def trained(mae, loss_of, images, noise):
    """What five AdamW steps on the same images under other masks give; loss_of(mae, images, noise) is a forward pass."""
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=1.5e-4, betas=(0.9, 0.95))
    found = {"losses": []}
    mae.train()
    for step in range(STEPS):
        loss, pred, mask = loss_of(mae, images, noise[step])
        loss.backward()
        if step == 0:
            found["gradients"] = {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}
            found |= {"pred": {"pred": pred.detach()}, "mask": mask}
        found["losses"].append(loss.item())
        norms.update_adaptive(mae)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found["weights"] = dict(mae.state_dict())
    return found


def without_key_bias(name, tensor):
    """qkv.bias without the keys': adding one vector to all keys changes no attention, so its gradient is what rounding
    leaves, and Adam makes whole steps of that."""
    if not name.endswith("qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def difference(ours, theirs):
    """Largest ‖a - b‖ / ‖b‖ over the tensors of two dicts, and the name of that tensor."""
    assert ours.keys() == theirs.keys()
    worst = (0.0, None)
    for name, b in theirs.items():
        a, b = without_key_bias(name, ours[name]).double(), without_key_bias(name, b).double()
        assert a.shape == b.shape and a.isfinite().all()
        if not torch.equal(a, b):
            worst = max(worst, (((a - b).norm() / b.norm()).item(), name))
    return worst


CASES = {
    "base": (BASE, {}, "LayerNorm"),
    "base norm_pix_loss": (BASE, {"norm_pix_loss": True}, "LayerNorm"),
    **{f"base {norm}": (BASE, {}, norm) for norm in norms.NORMS if norm != "LayerNorm"},
    "large": ("mae_vit_large_patch16", {}, "LayerNorm"),
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_of_our_model_are_five_steps_of_upstreams(case, theirs, monkeypatch, record_property):
    """Loss, prediction, mask, every gradient, and the weights after five steps; upstream's masking included."""
    name, options, norm = CASES[case]
    images = pictures(2)
    noise = noises(STEPS, 2, 196)

    def build(make):
        torch.manual_seed(3)
        return norms.convert_norms(make(), norm)

    ours = with_weights_that_all_matter(build(lambda: model.build_mae(name, **options)))
    other = build(lambda: getattr(theirs("models_mae"), name)(**options))
    assert type(other).__module__ == "models_mae" and not isinstance(other, model.MaskedAutoencoder)
    shapes = [{n: tuple(t.shape) for n, t in mae.state_dict().items()} for mae in (ours, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(ours.state_dict())

    def theirs_with_noise(mae, images, noise):
        given.noise = noise
        return mae(images, mask_ratio=0.75)

    with monkeypatch.context() as patched:
        given = GivenNoise(patched)
        expected = trained(other, theirs_with_noise, images, noise)
        assert given.asked == STEPS
    del other
    gc.collect()
    found = trained(ours, lambda mae, images, noise: mae(images, 0.75, noise), images, noise)

    assert torch.equal(found["mask"], expected["mask"])
    assert found["mask"].sum(1).tolist() == [147, 147]
    assert len(found["gradients"]) == sum(p.requires_grad for p in ours.parameters())
    largest = {"loss": (max(abs(a - b) / b for a, b in zip(found["losses"], expected["losses"])), None)}
    largest |= {part: difference(found[part], expected[part]) for part in ("pred", "gradients", "weights")}
    for part, (value, where) in largest.items():
        record_property(part, value)
        print(f"{case}: {part} differ by {value:.1e} {where or ''}")
    assert all(math.isfinite(loss) for loss in found["losses"]) and found["losses"][-1] < found["losses"][0]
    assert all(value <= TOLERANCE for value, _ in largest.values()), largest
