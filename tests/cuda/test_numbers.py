"""The model and the crops on a GPU: upstream's numbers, PIL's pixels."""

import os
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maekit.data import resident
from maekit.data.crops import CROPS
from maekit.data.datasets import TrainImages
from maekit.model import upstream
from maekit.model.mae import build_mae
from maekit.probes.frozen import OnlineProbe
from maekit.probes.knn import knn_predict
from maekit.training.device import Device
from tests.cuda.conftest import distance, resolved, with_cache
from tests.support import KIT
from tests.support.batches import by_pil
from tests.support.golden import GOLDEN, close, fill_by_rule

BASE = "mae_vit_base_patch16"


def golden_model(device, norm_pix_loss=False, make=None):
    mae = build_mae(BASE, norm_pix_loss=norm_pix_loss) if make is None else make()
    with torch.no_grad():
        fill_by_rule(mae)
    images = np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    noise = np.random.RandomState(1).random_sample((2, 196)).astype(np.float32)
    return mae.to(device), torch.from_numpy(images).to(device), torch.from_numpy(noise).to(device)


@pytest.mark.parametrize("norm_pix_loss", [False, True], ids=["pixels", "norm_pix_loss"])
def test_the_loss_prediction_and_gradients_are_upstream_s(norm_pix_loss, device, full_precision):
    """To the tolerance of the CPU's: 1e-4, which leaves room for sums in another order."""
    golden = GOLDEN[BASE + " norm_pix_loss" * norm_pix_loss]
    mae, images, noise = golden_model(device, norm_pix_loss)
    loss, pred, mask = mae(images, mask_ratio=0.75, noise=noise)
    loss.backward()
    with torch.no_grad():
        latent, _, _ = mae.forward_encoder(images, 0.75, noise)
    pred, mask, latent = pred.detach().cpu(), mask.cpu(), latent.cpu()
    assert close(loss.item(), golden["loss"])
    assert (1 - mask).sum(1).tolist() == golden["mask_kept"]
    assert mask[0, : len(golden["mask_first_row"])].tolist() == golden["mask_first_row"]
    for name, value in (
        ("latent_mean", latent.mean()),
        ("latent_std", latent.std()),
        ("cls_first5", latent[0, 0, :5]),
        ("pred_mean", pred.mean()),
        ("pred_std", pred.std()),
        ("pred_0_0_first5", pred[0, 0, :5]),
    ):
        assert close(value, golden[name]), (name, value, golden[name])
    gradients = {name: p.grad.norm().item() for name, p in mae.named_parameters() if p.grad is not None}
    for name, norm in golden["grad_norms"].items():
        assert close(gradients[name], norm), (name, gradients[name], norm)
    assert close(np.linalg.norm(list(gradients.values())), golden["grad_global_norm"])


def test_in_bfloat16_the_loss_is_within_a_percent(device):
    mae, images, noise = golden_model(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        loss, _, _ = mae(images, mask_ratio=0.75, noise=noise)
    assert loss.item() == pytest.approx(GOLDEN[BASE]["loss"], rel=1e-2)


def test_upstream_s_own_class_computes_the_same_on_this_device(device, full_precision):
    found = upstream.find(os.environ.get("MAE_CLONE") or (str(KIT / "mae") if (KIT / "mae").exists() else "builtin"))
    if found is None:
        pytest.skip("no clone of upstream at MAE_CLONE or in mae: equality with it was not tested here")
    if not found.patched:
        pytest.skip(f"{found.path} is not patched yet: a run with --mae_dir does that")
    path = list(sys.path)
    try:
        theirs, images, noise = golden_model(device, make=getattr(found.module(), BASE))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *shape, device=None: noise)
            loss, pred, mask = theirs(images, mask_ratio=0.75)
        loss.backward()
    finally:
        sys.path[:] = path
        for name in list(sys.modules):
            if name.split(".")[0] in ("models_mae", "util"):
                del sys.modules[name]
    ours, _, _ = golden_model(device)
    our_loss, our_pred, our_mask = ours(images, mask_ratio=0.75, noise=noise)
    our_loss.backward()
    assert torch.equal(mask, our_mask) and our_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert distance(our_pred, pred) < 1e-4
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, p in ours.named_parameters():
        if p.grad is not None and not name.endswith("qkv.bias"):  # of the keys' nothing but rounding is left
            assert distance(p.grad, gradients[name]) < 1e-3, name


def boxes_for(store, count, rng):
    """Images, boxes and flips: enlarged and reduced, mirrored and not, between pixels and at the edges."""
    index = rng.integers(len(store.stored), size=count)
    sizes = store.stored[index].astype(float)
    aspects = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), size=(count, 1)) * [[0.5, -0.5]])
    lengths = np.minimum(sizes.min(axis=1, keepdims=True) * rng.uniform(0.45, 1, size=(count, 1)) * aspects, sizes)
    corners = (sizes - lengths) * rng.choice([0, 0.3, 1], size=(count, 2))
    return index, np.concatenate([corners, lengths], axis=1), rng.random(count) < 0.5


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("side", [32, 64, 224])
def test_crops_are_those_of_the_cpu_and_of_pil(precision, side, device):
    """With "high", as a run has it in float32 on a GPU, matrix products may be made in TF32: pixels must not."""
    store = with_cache(resolved(device)).train.store
    index, boxes, flips = boxes_for(store, 150, np.random.default_rng(side))
    asked = [torch.from_numpy(part) for part in (index, boxes, flips)]
    on_cpu = resident.ResidentImages(store, torch.device("cpu")).crop(*asked, side).float()
    torch.set_float32_matmul_precision(precision)
    found = resident.ResidentImages(store, device).crop(*asked, side)
    assert found.device.type == device.type and found.dtype == torch.uint8 and found.shape == (150, 3, side, side)
    found = found.cpu().float()
    assert (found - on_cpu).abs().mean() < 1e-3 and (found - on_cpu).abs().max() <= 2  # at ties of the rounding
    levels = (found - torch.stack([by_pil(store, *each, side) for each in zip(index, boxes, flips)]).float()).abs()
    assert levels.mean(dim=(1, 2, 3)).median() < 0.01 and levels.mean() < 0.1 and levels.max() <= 6


@pytest.mark.parametrize("crop", ["shifted", "whole"])
def test_small_images_are_moved_there_as_on_the_cpu(crop, device):
    """The demo's images, 96 pixels, as they are and resized: the middle that is moved is the device's own."""
    source = with_cache(resolved(device))
    there = resident.ResidentImages(source.train.store, device)
    for side, mean, largest in ((96, 0, 0), (32, 0.1, 6)):  # of 255 levels: resized by PIL here
        plain, placed = (
            TrainImages(source.train, side, 16, 0, crop=CROPS[crop], boxes_only=only) for only in (False, True)
        )
        keys = [(epoch, index) for epoch in range(3) for index in range(0, len(source.train), 9)]
        batch = torch.utils.data.default_collate([placed[key] for key in keys])
        found = CROPS[crop].cut_resident(there, batch["index"], batch["place"], batch["mirrored"], side)
        assert found.device.type == device.type and found.dtype == torch.uint8
        expected = torch.stack([plain[key]["images"] for key in keys])
        levels = (found.cpu().float() - expected.float()).abs()
        assert levels.mean() <= mean and levels.max() <= largest


@pytest.mark.parametrize("width", [192, 768])
def test_k_nn_and_probes_are_not_computed_in_tf32(width, device):
    """In a run in float32, whose encoder is. TF32's products are off by 1e-3, float32's by 1e-6."""
    generator = torch.Generator().manual_seed(width)
    features, queries = (torch.randn(n, width, generator=generator) for n in (400, 300))
    labels = torch.arange(400) % 10
    with Device(device.type, "float32").autocast():
        pass  # leaves nothing behind
    similarity = F.normalize(queries.to(device)) @ F.normalize(features.to(device)).T
    exact = F.normalize(queries.double()) @ F.normalize(features.double()).T
    assert (similarity.cpu() - exact).abs().max() < 5e-7
    found = knn_predict(features.to(device), labels.to(device), queries.to(device), 10)
    assert (found.cpu() == knn_predict(features, labels, queries, 10)).float().mean() > 0.99
    probes = [OnlineProbe(width, 10, where, seed=0) for where in (device, torch.device("cpu"))]
    for probe, where in zip(probes, (device, torch.device("cpu"))):
        for step in range(5):
            probe.step(features.to(where), labels.to(where), step / 5)
    ours, theirs = (probe.layers[1].weight.detach().cpu() for probe in probes)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize(("how", "most"), [("kernels", 6), ("products", 20)])
def test_a_batch_of_crops_takes_little_more_memory_than_its_crops(how, most, gpu):
    """As a multiple of what 512 crops of 224 pixels take, 77 MB; it was a hundred when each image was broadcast."""
    store = with_cache(resolved(gpu)).train.store
    index, boxes, flips = boxes_for(store, 512, np.random.default_rng(0))
    asked = [torch.from_numpy(part) for part in (index, boxes, flips)]
    images = resident.ResidentImages(store, gpu)
    assert images.kernels is not None
    images.kernels = images.kernels if how == "kernels" else None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    crops = images.crop(*asked, 224)
    assert torch.cuda.max_memory_allocated(gpu) - before < most * crops.numel()
