"""Linear probing: what moves, its optimizer, its crops, batch normalisation over processes."""

import datetime
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maekit.data import crops
from maekit.probes.linear import GlobalBatchNorm1d, lars
from maekit.settings import methods
from tests.support import train_here
from tests.support.evaluation import KNN, LINPROBE, QUICK, encoder, first_batch, open_job
from tests.support.runs import losses, same, state


@pytest.mark.slow
@pytest.mark.parametrize("norm", methods.NORMS)
def test_linear_probing_moves_the_classifier_and_nothing_else(norm, pretrained, tmp_path):
    train_here(*QUICK, *LINPROBE, "--init", pretrained[norm], "--epochs", "1", "--output_dir", tmp_path, check=0)
    ours, theirs = state(tmp_path)["model"], state(pretrained[norm])["model"]
    assert same(encoder(ours), encoder(theirs)) and len(encoder(ours)) > 40
    rest = {name: value for name, value in ours.items() if name not in encoder(theirs)}
    assert rest.keys() == {f"head.0.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")} | {
        "head.1.weight",
        "head.1.bias",
    }
    before = open_job(*QUICK, *LINPROBE, "--init", pretrained[norm]).network.state_dict()
    assert [name for name in rest if torch.equal(rest[name], before[name])] == []
    assert before["head.1.weight"].std().item() == pytest.approx(0.01, rel=0.1) and not before["head.1.bias"].any()
    (row,) = losses(tmp_path)
    assert 1.5 < row["train_loss"] < 2.5 and row["acc1"] <= row["acc5"]


def test_its_features_are_batch_normalised_cls_tokens_of_whole_images(plain):
    job = open_job(*QUICK, *LINPROBE, "--init", plain)
    mae = open_job(*QUICK, *KNN, "--init", plain).network.eval()
    images = job.pixels.normalize(first_batch(job)["images"])
    with torch.no_grad():
        features = mae.forward_encoder(images, 0.0)[0][:, 0].double().numpy()
    weight = job.network.head[1].weight.detach().double().numpy()
    job.model.train()
    logits = job.logits(images).detach().numpy()
    normalised = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    np.testing.assert_allclose(logits, normalised @ weight.T, atol=1e-4)
    running = job.network.head[0].running_mean.numpy()
    np.testing.assert_allclose(running, 0.1 * features.mean(0), atol=1e-5)
    job.model.eval()
    variance = 0.9 + 0.1 * features.var(0, ddof=1)
    expected = (features - running) / np.sqrt(variance + 1e-6) @ weight.T
    np.testing.assert_allclose(job.logits(images).detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("from_zero", [False, True])
def test_a_step_of_lars_is_upstreams(from_zero):
    """util/lars.py, written out: trust ratio for the weight alone, momentum on the scaled gradient."""
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(4, 6) if from_zero else torch.randn(4, 6, generator=rng))
        layer.bias.copy_(torch.randn(4, generator=rng))
    optimizer = lars(layer, lr=1.0)
    w, b = layer.weight.detach().double().clone(), layer.bias.detach().double().clone()
    mu_w, mu_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(6):
        lr = 0.5 / (1 + step)
        layer.weight.grad, layer.bias.grad = torch.randn(4, 6, generator=rng), torch.randn(4, generator=rng)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
        g = layer.weight.grad.double()
        trust = 0.001 * w.norm() / g.norm() if w.norm() > 0 else 1
        mu_w = 0.9 * mu_w + trust * g
        mu_b = 0.9 * mu_b + layer.bias.grad.double()
        w, b = w - lr * mu_w, b - lr * mu_b
        assert torch.allclose(layer.weight.double(), w, rtol=1e-5, atol=1e-6)
        assert torch.allclose(layer.bias.double(), b, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_the_weights_and_in_its_trust_ratio():
    """As in the paper, |w| / (|g| + decay |w|)."""
    layer = nn.Linear(6, 4)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    g, of_bias = torch.randn(4, 6), torch.randn(4)
    layer.weight.grad, layer.bias.grad = g.clone(), of_bias.clone()  # timm 1.0.15's step changes them
    lars(layer, lr=10.0, weight_decay=0.3).step()
    trust = 0.001 * w.norm() / (g.norm() + 0.3 * w.norm())
    assert torch.allclose(layer.weight, w - 10 * trust * (g + 0.3 * w), rtol=1e-5, atol=1e-6)
    assert torch.allclose(layer.bias, b - 10 * of_bias)


def distance(a, b):
    """Kolmogorov-Smirnov distance of two samples."""
    at = np.concatenate([a, b])
    of_a, of_b = (np.searchsorted(np.sort(sample), at, "right") / len(sample) for sample in (a, b))
    return np.abs(of_a - of_b).max()


N_BOXES = 4000
FAR = 1.95 * math.sqrt(2 / N_BOXES)  # a distance that two samples of one distribution exceed once in a thousand times


def test_areas_of_crops_are_even_where_they_fit():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.single_try_crop_box(rng, 1000, 1000, ratio=(1, 1)) for _ in range(N_BOXES)])
    areas = boxes[:, 2] * boxes[:, 3] / 1e6
    assert distance(areas, np.linspace(0.08, 1, N_BOXES)) < FAR
    assert (areas.min(), areas.max()) == (pytest.approx(0.08, abs=2e-3), pytest.approx(1, abs=2e-3))
    assert (boxes[:, 2] == boxes[:, 3]).all()


@pytest.mark.parametrize("size", [(300, 500), (500, 500), (40, 400)], ids=str)
def test_crops_are_those_of_upstreams_rule(size):
    """util/crop.py, from BYOL: one try, cut to fit; written out on Python's own random numbers."""
    height, width = size
    python = random.Random(0)

    def upstreams():
        area = height * width * python.uniform(0.08, 1.0)
        aspect = 2 ** python.uniform(math.log2(3 / 4), math.log2(4 / 3))
        w, h = min(round((area * aspect) ** 0.5), width), min(round((area / aspect) ** 0.5), height)
        return python.randint(0, height - h), python.randint(0, width - w), h, w

    theirs = np.array([upstreams() for _ in range(N_BOXES)])
    rng = np.random.default_rng(0)
    ours = np.array([crops.single_try_crop_box(rng, height, width) for _ in range(N_BOXES)])
    assert all(distance(ours[:, i], theirs[:, i]) < FAR for i in range(4))
    tries = np.array([crops.random_resized_crop_box(rng, height, width, (0.08, 1)) for _ in range(N_BOXES)])
    assert max(distance(ours[:, i], tries[:, i]) for i in range(4)) > FAR, "pre-training's rule is another"


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 9), (64, 64), (5, 400)], ids=str)
def test_crops_are_never_empty_and_never_leave_the_image(size):
    rng = np.random.default_rng(0)
    top, left, h, w = np.array([crops.single_try_crop_box(rng, *size) for _ in range(500)]).T
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= size[0]).all() and (left + w <= size[1]).all()


def test_linear_probing_crops_by_that_rule(plain):
    """Image 5 of epoch 2, from its file."""
    dataset = open_job(*QUICK, *LINPROBE, "--init", plain).batches.dataset
    with dataset.images.open(5) as file:
        image = file.convert("RGB")
    rng = np.random.default_rng((2, 0, 2, 5))  # the stream of crops, seed, epoch, image
    top, left, h, w = crops.single_try_crop_box(rng, image.height, image.width)
    box = (left, top, left + w, top + h)
    image = image.crop(box).resize((64, 64), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(dataset[2, 5]["images"].permute(1, 2, 0), image)


# Batch normalisation over processes

PARTS = (5, 11)  # images of each process


def features_of_batches():
    rng = torch.Generator().manual_seed(0)
    return [3 + torch.randn(sum(PARTS), 7, generator=rng) * (1 + i) for i in range(3)]


def normalise_part(rank, folder):
    """What one of two processes does; saves what its layer made of its parts, and the layer."""
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    try:
        layer = GlobalBatchNorm1d(7)
        parts = [batch.split(PARTS)[rank] for batch in features_of_batches()]
        trained = [layer(part) for part in parts]
        part = parts[0].clone().requires_grad_()
        (GlobalBatchNorm1d(7)(part) ** 3).sum().backward()
        evaluated = layer.eval()(parts[0])
        torch.save((trained, evaluated, layer.state_dict(), part.grad), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_normalise_over_the_batches_of_both(processes, tmp_path):
    both = [processes.Process(target=normalise_part, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    whole = nn.BatchNorm1d(7, eps=1e-6, affine=False)
    expected = [whole(batch) for batch in features_of_batches()]
    evaluated = whole.eval()(features_of_batches()[0])
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for i, batch in enumerate(expected):
        assert torch.allclose(torch.cat([part[0][i] for part in parts]), batch, atol=1e-5)
    assert torch.allclose(torch.cat([part[1] for part in parts]), evaluated, atol=1e-5)
    batch = features_of_batches()[0].requires_grad_()
    (nn.BatchNorm1d(7, eps=1e-6, affine=False)(batch) ** 3).sum().backward()
    assert torch.allclose(torch.cat([part[3] for part in parts]), batch.grad, atol=1e-4)
    for _, _, layer, _ in parts:
        assert layer.keys() == whole.state_dict().keys() and layer["num_batches_tracked"] == 3
        assert all(torch.allclose(layer[name], value, rtol=1e-5) for name, value in whole.state_dict().items())


def test_in_one_process_it_is_batch_norm_to_the_last_bit():
    ours, torchs = GlobalBatchNorm1d(7), nn.BatchNorm1d(7, eps=1e-6, affine=False)
    for batch in features_of_batches():
        assert torch.equal(ours(batch), torchs(batch))
    assert same(dict(ours.state_dict()), dict(torchs.state_dict()))
    assert torch.equal(ours.eval()(batch), torchs.eval()(batch))
