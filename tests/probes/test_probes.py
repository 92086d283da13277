"""What the probes measure, and that those which must not touch the encoder do not."""

import copy
import json
import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maekit import files
from maekit.data import loader, sources
from maekit.data.datasets import TrainImages
from maekit.data.pixels import Pixels
from maekit.model.mae import build_mae
from maekit.probes import knn
from maekit.probes.frozen import FrozenProbes, OnlineProbe
from maekit.probes.joint import JointMAE
from maekit.probes.linear import GlobalBatchNorm1d
from maekit.runs import measures
from maekit.settings.typed import DataSettings, ModelSettings
from maekit.training import validation
from maekit.training.device import Device
from tests.support import train_here

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
MODEL = ModelSettings("mae_vit_demo_patch8", 64, 0.75, False, None)
CPU = Device("cpu", "float32")
PIXELS = Pixels(CPU.torch)
CLASSES = 10


@pytest.fixture(scope="module")
def source(demo_dir):
    return sources.open_source(DataSettings(str(demo_dir), 40, 0), 0)


@pytest.fixture(scope="module")
def batch(source):
    """Sixteen normalised training images with noise and labels."""
    dataset = TrainImages(source.train, 64, 64, 0, with_labels=True)
    samples = [dataset[0, i] for i in range(0, 32, 2)]
    images = torch.stack([s["images"] for s in samples])
    return (
        PIXELS.normalize(images),
        torch.stack([s["noise"] for s in samples]),
        torch.tensor([s["labels"] for s in samples]),
    )


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return build_mae(MODEL.name, img_size=64)


def val_batches(images, batch_size=8):
    broken = loader.BrokenImages(print)
    return loader.val_batches(images, MODEL, batch_size=batch_size, broken=broken, workers=0, with_labels=True)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def state(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def same(a, b):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# The joint probe


def test_the_loss_is_reconstruction_plus_alpha_times_cross_entropy(mae, batch):
    images, noise, labels = batch
    model = JointMAE(mae, -0.7, CLASSES)
    out = model(images, 0.75, noise, labels)
    latent, mask, _ = mae.forward_encoder(images, 0.75, noise)
    reconstruction = mae(images, 0.75, noise)[0].item()
    logits = latent[:, 0].detach().double().numpy() @ model.head.weight.detach().double().numpy().T
    entropy = np.mean([math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(logits, labels)])
    assert out.reconstruction.item() == reconstruction
    assert out.classification.item() == pytest.approx(entropy, rel=1e-5)
    assert out.loss.item() == pytest.approx(reconstruction - 0.7 * entropy, rel=1e-5)
    assert mask.mean() == 0.75


def test_its_gradient_on_the_encoder_is_alpha_times_that_of_the_classification(mae, batch):
    images, noise, labels = batch
    found = {}
    for alpha in (-0.5, 0.5, 1.0):
        model = JointMAE(copy.deepcopy(mae), alpha, CLASSES)
        model(images, 0.75, noise, labels).loss.backward()
        found[alpha] = model.mae.blocks[0].attn.qkv.weight.grad.double()
    reconstruction = (found[-0.5] + found[0.5]) / 2
    classification = found[0.5] - found[-0.5]
    assert classification.norm() > 0.05 * reconstruction.norm()
    assert torch.allclose(found[1.0], reconstruction + classification, rtol=1e-4, atol=1e-7)


def test_at_alpha_0_the_loss_and_every_gradient_are_the_maes_own(mae, batch):
    images, noise, labels = batch
    model = JointMAE(copy.deepcopy(mae), 0.0, CLASSES)
    out = model(images, 0.75, noise, labels)
    out.loss.backward()
    loss, _, _ = mae(images, 0.75, noise)
    loss.backward()
    assert torch.equal(out.loss, loss) and same(gradients(model.mae), gradients(mae))
    assert out.classification > 0 and model.head.weight.grad is None


def test_at_alpha_0_its_classifier_is_no_part_of_the_loss_and_of_what_is_trained(mae, batch):
    """Even one whose loss is no number leaves the loss what it is."""
    images, noise, labels = batch
    model = JointMAE(mae, 0.0, CLASSES)
    assert not any(p.requires_grad for p in model.head.parameters())
    with torch.no_grad():
        model.head.weight.fill_(math.inf)
    out = model(images, 0.75, noise, labels)
    assert not out.classification.isfinite() and torch.equal(out.loss, mae(images, 0.75, noise)[0])
    assert all(p.requires_grad for p in JointMAE(mae, -0.1, CLASSES).head.parameters())


def test_its_first_weights_come_from_the_seed_alone(mae):
    torch.manual_seed(1)
    a = JointMAE(mae, 0.5, CLASSES, seed=3).head.weight
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1)), "the global stream was used"
    b = JointMAE(mae, -1.0, CLASSES, seed=3).head.weight
    assert torch.equal(a, b) and not torch.equal(a, JointMAE(mae, 0.5, CLASSES, seed=4).head.weight)


def test_at_alpha_0_its_weights_never_move_but_it_is_scored(tmp_path):
    for name, alpha in (("zero", "0"), ("half", "0.5")):
        train_here(*QUICK, "--alpha", alpha, "--probes", "joint", "--output_dir", tmp_path / name, check=0)
    fresh = JointMAE(build_mae(MODEL.name, img_size=64), 0.0, CLASSES, seed=0).head.state_dict()
    assert same(dict(state(tmp_path / "zero")["probes"]["joint"]), dict(fresh))
    assert not same(dict(state(tmp_path / "half")["probes"]["joint"]), dict(fresh))
    assert (
        len(state(tmp_path / "half")["optimizer"]["state"]) == len(state(tmp_path / "zero")["optimizer"]["state"]) + 2
    )
    for row in files.read_csv(tmp_path / "zero/log.csv"):
        assert row["train_loss"] == row["train_loss_rec"] and 0 <= row["accuracy"] <= 100 and row["train_loss_cls"] > 0
    for row in files.read_csv(tmp_path / "half/log.csv"):
        assert row["train_loss"] == pytest.approx(row["train_loss_rec"] + 0.5 * row["train_loss_cls"], rel=1e-6)


# The frozen probe


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_encoder_gradients_with_and_without_the_frozen_probe_are_bitwise_equal(precision, mae, batch):
    if precision == "float16" and not torch.cuda.is_available():
        pytest.skip("float16 is tried on CUDA; whole runs in float16 are tried below")
    images, noise, labels = batch
    device = Device("auto", precision)
    found = []
    for with_probe in (False, True):
        model = JointMAE(copy.deepcopy(mae), 0.5, CLASSES).to(device.torch)
        frozen = FrozenProbes(model.mae, CLASSES, 0) if with_probe else None
        for _ in range(3):
            x, n, y = (t.to(device.torch) for t in (images, noise, labels))
            with device.autocast():
                out = model(x, 0.75, n, y)
                if frozen:
                    frozen.observe(frozen.features(out.cls_token, x, 0.75, n), y)
            device.scaler.scale(out.loss).backward()
            if frozen:
                frozen.step(0.1)
        found.append(gradients(model))
    assert found[0] and same(*found)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_trains_the_same_weights_with_all_probes_as_with_none(precision, tmp_path):
    """alpha 0 with probes is the comparison's run of the same settings: equal losses to the last digit."""
    for name in ("none", "all"):
        flags = ("--probes", name, "--precision", precision, "--output_dir", tmp_path / name)
        train_here(*QUICK, *flags, check=0)
    plain, probed = (files.read_csv(tmp_path / name / "log.csv") for name in ("none", "all"))
    for a, b in zip(plain, probed):
        assert (a["train_loss"], a["val_mse"]) == (b["train_loss"], b["val_mse"])
        assert a["frozen_accuracy"] is None and b["frozen_accuracy"] is not None
    assert same(state(tmp_path / "none")["model"], state(tmp_path / "all")["model"])
    layers = state(tmp_path / "all")["probes"]["frozen"]["frozen_accuracy"]["layers"]
    assert layers["1.weight"].dtype == layers["0.running_mean"].dtype == torch.float32


def test_its_first_step_is_larss(batch):
    """Weight: lr x 0.001 x |w| / |g| of the gradient; bias: lr x 0.001 of it. By numpy, from the LARS paper."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 5, (16, 96)).astype(np.float32), rng.integers(0, CLASSES, 16)
    probe = OnlineProbe(96, CLASSES, torch.device("cpu"), seed=0)
    w = probe.layers[1].weight.detach().double().numpy().copy()
    probe.step(torch.from_numpy(x), torch.from_numpy(y), 0.25)
    z = (x - x.mean(0)) / np.sqrt(x.astype(float).var(0) + 1e-6)
    p = np.exp(z @ w.T)
    p /= p.sum(1, keepdims=True)
    p[np.arange(16), y] -= 1
    g, b = p.T @ z / 16, p.mean(0)
    rate = 10 * 0.5 * (1 + math.cos(math.pi / 4))  # a quarter of the run is over
    moved = w - rate * 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
    np.testing.assert_allclose(probe.layers[1].weight.detach().numpy(), moved, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(probe.layers[1].bias.detach().numpy(), -rate * 0.001 * b, rtol=1e-3, atol=1e-9)


def test_a_step_is_of_the_gradient_of_its_own_images_and_of_the_momentum_of_those_before():
    rng, rate = np.random.default_rng(1), 10
    probe = OnlineProbe(8, CLASSES, torch.device("cpu"), seed=0)
    weights = [probe.layers[1].weight.detach().double().numpy().copy()]
    for _ in range(2):
        x, y = rng.normal(size=(16, 8)).astype(np.float32), rng.integers(0, CLASSES, 16)
        bias = probe.layers[1].bias.detach().double().numpy().copy()
        probe.step(torch.from_numpy(x), torch.from_numpy(y), 0.0)
        weights.append(probe.layers[1].weight.detach().double().numpy().copy())
    z = (x - x.mean(0)) / np.sqrt(x.astype(float).var(0) + 1e-6)
    p = np.exp(z @ weights[1].T + bias)
    p /= p.sum(1, keepdims=True)
    p[np.arange(16), y] -= 1
    g = p.T @ z / 16
    own = rate * 0.001 * np.linalg.norm(weights[1]) / np.linalg.norm(g) * g
    np.testing.assert_allclose(weights[1] - weights[2], own + 0.9 * (weights[0] - weights[1]), rtol=1e-3, atol=1e-6)


def test_it_takes_nothing_but_the_values_of_features_and_trains_where_gradients_are_off():
    rng = torch.Generator().manual_seed(0)
    values, labels = torch.randn(32, 8, generator=rng), torch.randint(0, CLASSES, (32,), generator=rng)
    found = []
    for enabled in (True, False):
        features = values.clone().requires_grad_()
        probe = OnlineProbe(8, CLASSES, torch.device("cpu"), seed=0)
        before = copy.deepcopy(probe.layers.state_dict())
        with torch.set_grad_enabled(enabled):
            probe.step(features, labels, 0.1)
        assert features.grad is None and not same(dict(probe.layers.state_dict()), dict(before))
        found.append(probe.state_dict())
    assert same(*found)


def test_under_autocast_it_computes_in_float32():
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(64, 96, generator=rng), torch.randint(0, CLASSES, (64,), generator=rng)
    found = []
    for precision in ("float32", "bfloat16"):
        probe = OnlineProbe(96, CLASSES, torch.device("cpu"), seed=0)
        with Device("cpu", precision).autocast():
            probe.step(features, labels, 0.1)
        found.append(probe.state_dict())
    assert same(*found)
    with torch.no_grad():  # two classes nearer to each other than bfloat16 can tell
        probe.layers[1].weight.copy_(torch.ones(CLASSES, 1) * 0.5)
        probe.layers[1].bias.copy_(torch.linspace(100, 100.001 + 0.001 * CLASSES, CLASSES))
    with Device("cpu", "bfloat16").autocast():
        assert (probe.predict(features) == CLASSES - 1).all()


@pytest.mark.parametrize("deviation", [1e-3, 1.0])
def test_features_of_any_size_are_normalised_with_upstreams_epsilon(deviation):
    x = deviation * np.random.default_rng(0).standard_normal((64, 5))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    np.testing.assert_allclose(GlobalBatchNorm1d(5).double()(torch.from_numpy(x)).numpy(), expected, rtol=1e-9)


def test_its_first_weights_come_from_the_seed_alone_as_well():
    a, b, other = (OnlineProbe(96, CLASSES, torch.device("cpu"), seed).layers[1].weight for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_its_baseline_is_the_encoder_as_it_was_and_stays(mae, batch):
    images, noise, _ = batch
    frozen = FrozenProbes(mae, CLASSES, 0)
    with torch.no_grad():
        at_first = mae.forward_encoder(images, 0.75, noise)[0][:, 0]
        for parameter in mae.parameters():
            parameter += 0.01
    cls_token = mae.forward_encoder(images, 0.75, noise)[0][:, 0]
    features = frozen.features(cls_token, images, 0.75, noise)
    assert torch.equal(features["frozen_accuracy"], cls_token)
    assert torch.equal(features["untrained_frozen_accuracy"], at_first) and not torch.allclose(at_first, cls_token)
    assert cls_token.requires_grad and not any(values.requires_grad for values in features.values())


def test_its_rate_falls_to_zero_over_the_run_also_when_it_goes_on_from_a_shorter_one(tmp_path):
    def last_rate(folder):
        groups = state(folder)["probes"]["frozen"]["frozen_accuracy"]["optimizer"]["param_groups"]
        assert groups[1]["lr"] == pytest.approx(0.001 * groups[0]["lr"])
        return groups[0]["lr"]

    def rate(steps_done, steps):
        return 10 * 0.5 * (1 + math.cos(math.pi * (steps_done - 1) / steps))

    train_here(*QUICK, "--probes", "frozen", "--output_dir", tmp_path / "short", check=0)
    assert last_rate(tmp_path / "short") == pytest.approx(rate(8, 8))
    train_here(*QUICK, "--output_dir", tmp_path / "without", check=0)
    for start in ("short", "without"):
        more = ("--epochs", "4", "--resume", tmp_path / start / "checkpoint.pth", "--probes", "frozen")
        train_here(*QUICK, *more, "--output_dir", tmp_path / f"from {start}", check=0)
        assert last_rate(tmp_path / f"from {start}") == pytest.approx(rate(16, 16))


def test_the_baseline_of_another_seed_is_not_taken_over(tmp_path):
    """Its probe was trained on another untrained encoder."""
    train_here(*QUICK, "--probes", "frozen", "--output_dir", tmp_path / "zero", check=0)
    start = ("--epochs", "4", "--seed", "1", "--probes", "frozen", "--resume", tmp_path / "zero/checkpoint.pth")
    train_here(*QUICK, *start, "--output_dir", tmp_path / "one", check=0)
    moved = [state(tmp_path / name)["probes"]["frozen"] for name in ("zero", "one")]
    assert [m["untrained_frozen_accuracy"]["steps"] for m in moved] == [8, 8]  # two epochs of its own each
    assert moved[1]["frozen_accuracy"]["steps"] == 16


def test_its_normalisation_starts_as_a_plain_mean_and_then_forgets():
    rng = torch.Generator().manual_seed(0)
    probe = OnlineProbe(3, 2, torch.device("cpu"), seed=0)
    batches = [5 + torch.randn(8, 3, generator=rng) for _ in range(14)]
    labels = torch.arange(8) % 2
    for batch in batches[:3]:
        probe.step(batch, labels, 0.0)
    expected = torch.stack([b.mean(0) for b in batches[:3]]).mean(0)
    assert torch.allclose(probe.layers[0].running_mean, expected, rtol=1e-5)
    for batch in batches[3:]:
        probe.step(batch, labels, 0.0)
        expected = 0.7 * expected + 0.3 * batch.mean(0)
    assert torch.allclose(probe.layers[0].running_mean, expected, rtol=1e-5)


def test_it_does_not_care_how_large_the_features_are():
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(64, 96, generator=rng), torch.randint(0, CLASSES, (64,), generator=rng)
    predicted = []
    for scale in (1.0, 100.0):
        probe = OnlineProbe(96, CLASSES, torch.device("cpu"), seed=0)
        for _ in range(40):
            probe.step(features * scale, labels, 0.0)
        predicted.append(probe.predict(features * scale))
    assert torch.equal(*predicted) and (predicted[0] == labels).float().mean() > 0.9


@pytest.mark.parametrize("parts", [1, 4])
def test_accumulated_batches_train_it_like_one_large_batch(parts, mae):
    """Every step on images of its own, which no later one sees again."""
    rng = torch.Generator().manual_seed(0)
    steps = [(torch.randn(32, 96, generator=rng), torch.randint(0, CLASSES, (32,), generator=rng)) for _ in range(5)]
    frozen, alone = FrozenProbes(mae, CLASSES, 0), OnlineProbe(96, CLASSES, torch.device("cpu"), 0)
    for features, labels in steps:
        for x, y in zip(features.chunk(parts), labels.chunk(parts)):
            frozen.observe(dict.fromkeys(frozen.probes, x), y)
        frozen.step(0.1)
        alone.step(features, labels, 0.1)
    assert all(same(found, alone.state_dict()) for found in frozen.state_dict().values())


def test_accumulated_batches_are_one_step_of_the_probe(tmp_path):
    for name, more in (("one", ("--batch_size", "32")), ("four", ("--batch_size", "8", "--accum_iter", "4"))):
        train_here(*QUICK, "--probes", "frozen", *more, "--output_dir", tmp_path / name, check=0)
    one, four = (files.read_csv(tmp_path / name / "log.csv") for name in ("one", "four"))
    for a, b in zip(one, four):
        assert a["untrained_frozen_accuracy"] == pytest.approx(b["untrained_frozen_accuracy"], abs=1.5)
    for name in ("one", "four"):
        assert state(tmp_path / name)["probes"]["frozen"]["frozen_accuracy"]["steps"] == 4


def test_on_an_encoder_that_does_not_move_it_is_the_untrained_baseline(tmp_path):
    train_here(*QUICK, "--lr", "1e-30", "--probes", "all", "--output_dir", tmp_path, check=0)
    for row in files.read_csv(tmp_path / "log.csv"):
        assert row["frozen_accuracy"] == row["untrained_frozen_accuracy"] > 10
    assert row["knn_accuracy"] == row["untrained_knn_accuracy"] > 30


# k-NN


def plain_knn(features, labels, query, k, temperature):
    """One query in plain Python."""
    norm = math.sqrt(sum(q * q for q in query))
    ranked = sorted(
        (
            -sum(f * q for f, q in zip(row, query)) / norm / math.sqrt(sum(f * f for f in row)),
            label,
        )
        for row, label in zip(features, labels)
    )
    votes = Counter()
    for distance, label in ranked[:k]:
        votes[label] += math.exp(-distance / temperature)
    return max(votes, key=votes.get)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (5, 1.0), (500, 0.07)])
def test_the_nearest_neighbours_vote_by_similarity(k, temperature):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels = rng.integers(0, 4, 120)
    features = centres[labels] + rng.normal(size=(120, 6))
    queries = centres[rng.integers(0, 4, 50)] + 1.5 * rng.normal(size=(50, 6))
    expected = [plain_knn(features.tolist(), labels.tolist(), q, k, temperature) for q in queries.tolist()]
    tensors = (torch.tensor(features), torch.tensor(labels), torch.tensor(queries))
    assert knn.knn_predict(*tensors, 4, k, temperature).tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("known", [1000, 2**22, 2**26, 2**27])
def test_similarities_at_a_time_are_bounded_however_many_images_are_known(known, monkeypatch):
    """To 2^26, a quarter of a gigabyte, or to those of one image."""
    sizes, asked = [], iter((known, 50))

    def features(*_):
        n = next(asked)
        return torch.zeros(1, 1).expand(n, 1), torch.zeros(1, dtype=torch.int64).expand(n)

    def predict(features, labels, queries, classes):
        sizes.append(len(queries))
        return torch.zeros(len(queries), dtype=torch.int64)

    monkeypatch.setattr(knn, "cls_features", features)
    monkeypatch.setattr(knn, "knn_predict", predict)
    images = SimpleNamespace(dataset=range(known))
    assert knn.knn_accuracy(torch.nn.Identity(), images, None, CLASSES, CPU, PIXELS) == 100
    assert sum(sizes) == 50 and (max(sizes) * known <= 2**26 or max(sizes) == 1)


def test_its_features_are_cls_tokens_of_whole_images(mae, source):
    images = source.val.subset(np.arange(0, 200, 20))
    features, labels = knn.cls_features(mae, val_batches(images, 4), CPU, PIXELS)
    dataset = val_batches(images).dataset
    for i in range(len(images)):
        image = PIXELS.normalize(dataset[i]["images"][None])
        with torch.no_grad():
            x = mae.patch_embed(image) + mae.pos_embed[:, 1:]
            x = torch.cat((mae.cls_token + mae.pos_embed[:, :1], x), dim=1)
            for block in mae.blocks:
                x = block(x)
        assert torch.allclose(features[i], mae.norm(x)[0, 0], atol=1e-4)
        assert labels[i] == source.val.labels[20 * i]


def test_a_validation_image_that_is_also_a_training_image_is_found(mae, source):
    """Known neighbours: queries are the training images themselves, and k-NN must know most of them again."""
    known = val_batches(source.train)
    assert knn.knn_accuracy(mae, known, known, CLASSES, CPU, PIXELS) > 60


# Scores


def test_accuracies_count_every_validation_image_once(mae, source):
    images = source.val.subset(np.arange(0, 200, 8))
    model = JointMAE(mae, 0.5, CLASSES)
    frozen = FrozenProbes(mae, CLASSES, 0)
    with torch.no_grad():
        mae.blocks[0].attn.qkv.weight.mul_(1.5)  # no longer the untrained encoder
    right = Counter()
    dataset = val_batches(images).dataset
    for i in range(len(images)):
        sample = dataset[i]
        image, noise = PIXELS.normalize(sample["images"][None]), sample["noise"][None]
        with torch.no_grad():
            cls, before = (m.forward_encoder(image, 0.75, noise)[0][0, 0] for m in (mae, frozen.untrained))
        right["accuracy"] += (model.head.weight @ cls).argmax().item() == sample["labels"]
        for name, token in (("frozen_accuracy", cls), ("untrained_frozen_accuracy", before)):
            weight = frozen.probes[name].layers[1].weight
            right[name] += (weight @ token).argmax().item() == sample["labels"]
    found = validation.validate(
        model, val_batches(images, 7), CPU, partial(validation.measured, model, frozen, CPU, PIXELS, 0.75)
    )
    assert {k: v for k, v in found.items() if k != "val_mse"} == {k: 100 * right[k] / 25 for k in right}
    assert (
        validation.validate(
            model, val_batches(images, 25), CPU, partial(validation.measured, model, None, CPU, PIXELS, 0.75)
        )["accuracy"]
        == found["accuracy"]
    )


def test_k_nn_is_scored_every_few_epochs_and_in_the_last(tmp_path):
    flags = ("--epochs", "5", "--eval_every", "2", "--probes", "knn")
    train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    scored = [row["epoch"] for row in files.read_csv(tmp_path / "log.csv") if row["knn_accuracy"] is not None]
    assert scored == [1, 3, 4]
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())["trajectory"]
    assert [p["epoch"] for p in trajectory if p["knn_accuracy"] is not None] == [1, 3, 4]
    assert all(p["accuracy"] is None and p["untrained_knn_accuracy"] > 30 for p in trajectory)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_all_probes_work_together_under_autocast(precision, tmp_path):
    flags = ("--alpha", "0.5", "--probes", "all", "--precision", precision, "--max_images", "256", "--epochs", "4")
    train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert all(summary[name] > 15 for name in measures.ACCURACY_COLUMNS), summary


# What the demo teaches: four runs of 20 epochs


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """Summary of a demo run by its alpha, trained when first asked for."""
    done = {}

    def run(alpha):
        if alpha not in done:
            folder = tmp_path_factory.mktemp("demo")
            train_here("--demo", "--alpha", alpha, "--probes", "joint,frozen", "--output_dir", folder, check=0)
            done[alpha] = json.loads((folder / "summary.json").read_text())
        return done[alpha]

    return run


def test_on_the_demo_the_frozen_probe_reads_an_untrained_encoder_and_one_at_alpha_a_half(demo_run):
    assert demo_run(0.5)["untrained_frozen_accuracy"] >= 60
    assert demo_run(0.5)["frozen_accuracy"] >= 60
    assert demo_run(0)["untrained_frozen_accuracy"] == demo_run(0.5)["untrained_frozen_accuracy"]


def test_on_the_demo_positive_alphas_beat_what_is_read_from_reconstruction_alone(demo_run):
    for alpha in (0.5, 0.1):
        assert demo_run(alpha)["accuracy"] > demo_run(0)["frozen_accuracy"]
        assert demo_run(alpha)["val_mse"] < 0.5


def test_at_alpha_minus_ten_the_joint_probe_names_wrong_classes_and_the_frozen_one_finds_the_right_ones(demo_run):
    summary = demo_run(-10)
    assert summary["status"] == "finished" and summary["accuracy"] < 5 and summary["frozen_accuracy"] > 40


def test_a_loss_that_runs_off_to_infinity_is_a_result(tmp_path):
    flags = ("--alpha", "-10", "--lr", "1e3", "--probes", "all")
    result = train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    assert "diverged" in result.stdout
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())
    assert trajectory["status"] == "diverged" and trajectory["alpha"] == -10
    assert len(trajectory["trajectory"]) < 2
