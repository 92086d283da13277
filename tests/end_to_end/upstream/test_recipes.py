"""Our evaluation recipes beside upstream's: epochs, rates, LARS."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

import norms
import train as train_module
from maekit.data import sources
from maekit.probes.linear import lars
from maekit.settings import parser
from maekit.settings.resolution import resolve
from maekit.settings.typed import OptimSettings
from maekit.training import trainer
from maekit.training.trainer import Trainer
from tests.support.upstream import STEPS, TOLERANCE, GivenNoise, difference


def settings_of(*typed):
    return resolve(parser.build_parser("train.py", "").parse_args([str(word) for word in typed]))


def test_epochs_of_our_loop_are_epochs_of_upstreams_with_accumulated_batches(theirs, monkeypatch, tmp_path):
    """Its engine, its model and a plain AdamW, on the batches and masks of ours: losses and weights, rates per step."""
    run = settings_of(
        "--demo",
        "--max_images",
        "64",
        "--batch_size",
        "8",
        "--accum_iter",
        "2",
        "--epochs",
        "3",
        "--num_workers",
        "0",
        "--warmup_epochs",
        "0.7",
        "--min_lr",
        "1e-5",
        "--device",
        "cpu",
        "--output_dir",
        tmp_path,
    )
    job = train_module.open_task(run, sources.open_source(run.data, run.seed))
    sizes = run.model.architecture
    patch, encoder, decoder = sizes.patch, sizes.encoder, sizes.decoder
    mae = theirs("models_mae").MaskedAutoencoderViT(
        run.model.input_size,
        patch,
        3,
        encoder.width,
        encoder.depth,
        encoder.heads,
        decoder.width,
        decoder.depth,
        decoder.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    mae.load_state_dict(job.network.state_dict())
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=1.0, betas=(0.9, 0.95))
    args = SimpleNamespace(accum_iter=2, mask_ratio=0.75, lr=run.optim.lr, min_lr=1e-5, warmup_epochs=0.7, epochs=3)
    device = torch.device("cpu")
    scaler = theirs("util.misc").NativeScalerWithGradNormCount(device)

    class Loader(list):
        """The batches as upstream's engine takes them; each sets the noise that its masks are drawn from."""

        def __iter__(self):
            for batch in super().__iter__():
                given.noise = batch["noise"]
                yield job.pixels.normalize(batch["images"]), batch["labels"]

    bar = SimpleNamespace(mininterval=math.inf, update=lambda images: None)
    for epoch in range(3):
        job.batches.order.set_epoch(epoch)
        batches = Loader(job.batches)
        with monkeypatch.context() as patched:
            given = GivenNoise(patched)
            expected = theirs("engine_pretrain").train_one_epoch(
                mae, batches, optimizer, device, epoch, scaler, args=args
            )
            assert given.asked == len(batches) == 8
        row = Trainer(job, bar=bar).train_epoch(epoch)
        assert row["train_loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    value, where = difference(job.network.state_dict(), mae.state_dict())
    print(f"three epochs of upstream's engine: weights differ by {value:.1e} {where or ''}")
    assert value <= TOLERANCE, where


@pytest.mark.parametrize(("decay", "norm"), [(0.65, "LayerNorm"), (0.75, "LayerNorm"), (0.65, "DynamicTanh")])
def test_layer_wise_rates_are_upstreams(decay, norm, class_folders, theirs, tmp_path):
    """Share of the rate and weight decay of every parameter that our fine-tuning trains."""
    run = settings_of(
        "--task",
        "finetune",
        "--init",
        "untrained",
        "--model",
        "vit_tiny",
        "--layer_decay",
        decay,
        "--norm",
        norm,
        "--weight_decay",
        "0.07",
        "--batch_size",
        "4",
        "--accum_iter",
        "1",
        "--imagenet_dir",
        class_folders,
        "--device",
        "cpu",
        "--output_dir",
        tmp_path,
    )
    job = train_module.open_task(run, sources.open_source(run.data, run.seed))
    vit = theirs("models_vit").VisionTransformer(
        global_pool=True, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=2, norm_layer=nn.LayerNorm
    )
    norms.convert_norms(vit, norm)
    groups = theirs("util.lr_decay").param_groups_lrd(vit, 0.07, vit.no_weight_decay(), decay)

    def by_name(groups, network):
        names = {p: n for n, p in network.named_parameters()}
        return {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    found, expected = by_name(job.optimizer.param_groups, job.network), by_name(groups, vit)
    assert len(found) == len(list(job.network.parameters()))
    assert found.keys() == expected.keys()
    for name, scales in expected.items():
        assert found[name] == pytest.approx(scales, rel=1e-12), name
    assert found["cls_token"] == pytest.approx((decay**13, 0)) and found["head.weight"] == (1, 0.07)


@pytest.mark.parametrize(("warmup", "low"), [(0, 0.0), (5, 0.0), (5, 1e-6), (2.5, 1e-5)])
def test_the_rate_of_every_step_is_upstreams(warmup, low, theirs):
    optim = OptimSettings(50, 64, 1, 2.4e-3, low, warmup, 0.05)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr_scale": 0.65}, {"params": [torch.zeros(1)]}], lr=1.0)
    args = SimpleNamespace(lr=2.4e-3, min_lr=low, warmup_epochs=warmup, epochs=50)
    for epoch in np.linspace(0, 50, 201)[:-1]:
        expected = theirs("util.lr_sched").adjust_learning_rate(optimizer, epoch, args)
        assert trainer.learning_rate(epoch, optim) == pytest.approx(expected, rel=1e-12, abs=0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.65 * expected)


def test_five_steps_of_our_lars_are_five_steps_of_upstreams(theirs):
    """Without weight decay, which linear probing has none of."""
    torch.manual_seed(0)
    ours = nn.Linear(32, 10)
    other = nn.Linear(32, 10)
    other.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    optimizers = [
        (ours, lars(ours, lr=0.1, weight_decay=0.0)),
        (other, theirs("util.lars").LARS(other.parameters(), lr=0.1, weight_decay=0.0)),
    ]
    for step in range(STEPS):
        for layer, optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 5.0 - step  # as a schedule does
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
        for a, b in zip(ours.parameters(), other.parameters()):
            assert ((a - b).norm() / b.norm()).item() < TOLERANCE
    assert (ours.weight - start).norm() > 0.01 * start.norm()
