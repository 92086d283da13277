"""The frozen online probe: never touches the encoder; its optimizer, its baseline."""

import copy
import math

import numpy as np
import pytest
import torch

from maekit import files
from maekit.probes.frozen import FrozenProbes, OnlineProbe, predict_all, step_all
from maekit.probes.joint import JointMAE
from maekit.probes.linear import GlobalBatchNorm1d
from maekit.settings.probes import READOUTS
from maekit.training.device import Device
from tests.support import train_here
from tests.support.probing import CLASSES, CPU, QUICK, gradients
from tests.support.runs import same, state


@pytest.mark.slow
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
                    frozen.observe(frozen.features(out, x, 0.75, n), y)
            device.scaler.scale(out.loss).backward()
            if frozen:
                frozen.step(0.1)
        found.append(gradients(model))
    assert found[0] and same(*found)


@pytest.mark.slow
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
    frozen = FrozenProbes(mae, CLASSES, 0, ("cls", "mean"))
    with torch.no_grad():
        at_first = mae.forward_encoder(images, 0.75, noise)[0]
        for parameter in mae.parameters():
            parameter += 0.01
    out = JointMAE(mae)(images, 0.75, noise)
    now = mae.forward_encoder(images, 0.75, noise)[0].detach()
    features = frozen.features(out, images, 0.75, noise)
    for of, tokens in (("", now), ("untrained_", at_first)):
        assert torch.equal(features[f"{of}frozen_accuracy"], tokens[:, 0])
        assert torch.allclose(
            features[f"{of}frozen_mean_accuracy"], tokens[:, 1:].sum(1) / (tokens.shape[1] - 1), atol=1e-6
        )
    assert not torch.allclose(at_first, now) and not any(values.requires_grad for values in features.values())


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_several_in_one_step_learn_what_autograd_and_batch_norm_teach_each():
    """One of them has taken steps before, as where a read-out is new to a run that goes on."""
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 32, 8, generator=rng), torch.randint(0, CLASSES, (32,), generator=rng)) for _ in range(6)
    ]
    probes = [OnlineProbe(8, CLASSES, torch.device("cpu"), seed) for seed in (0, 1)]
    others = copy.deepcopy(probes)
    for number, (features, labels) in enumerate(batches):
        taught = slice(0, 1 if number < 2 else 2)
        step_all(probes[taught], list(features)[taught], labels, number / 6)
        for probe, x in list(zip(others, features))[taught]:
            probe.steps += 1
            probe.layers.train()
            probe.layers[0].momentum = max(0.3, 1 / probe.steps)
            for group, scale in zip(probe.optimizer.param_groups, (1, 0.001)):
                group["lr"] = 10 * scale * 0.5 * (1 + math.cos(math.pi * number / 6))
            probe.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(probe.layers(x), labels).backward()
            probe.optimizer.step()
    assert [probe.steps for probe in probes] == [6, 4]
    features = batches[0][0]
    for probe, other, x, predicted in zip(probes, others, features, predict_all(probes, features)):
        assert torch.equal(predicted, other.layers.eval()(x).argmax(dim=1))
        assert torch.equal(predicted, probe.predict(x))
        for name, expected in other.layers.state_dict().items():
            torch.testing.assert_close(probe.layers.state_dict()[name], expected, rtol=1e-5, atol=1e-7, msg=name)


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
    width = mae.cls_token.shape[-1]
    steps = [(torch.randn(32, width, generator=rng), torch.randint(0, CLASSES, (32,), generator=rng)) for _ in range(5)]
    frozen, alone = FrozenProbes(mae, CLASSES, 0), OnlineProbe(width, CLASSES, torch.device("cpu"), 0)
    for features, labels in steps:
        for x, y in zip(features.chunk(parts), labels.chunk(parts)):
            frozen.observe(dict.fromkeys(frozen.probes, x), y)
        frozen.step(0.1)
        alone.step(features, labels, 0.1)
    assert all(same(found, alone.state_dict()) for found in frozen.state_dict().values())


def test_the_untrained_encoder_sees_a_validation_batch_that_stays_in_memory_once(mae, batch):
    """Found again by its noise alone; never in training, whose noise may be of any image."""
    (images, noise, labels), mae = copy.deepcopy(batch), copy.deepcopy(mae)
    frozen, model, passes = FrozenProbes(mae, CLASSES, 0, READOUTS), JointMAE(mae, 0.0, CLASSES), []
    encode = frozen.untrained.forward_encoder
    frozen.untrained.forward_encoder = lambda *args: passes.append(1) or encode(*args)

    def features(noise):
        return frozen.features(model(images, 0.75, noise, labels), images, 0.75, noise)

    first = features(noise)
    with torch.inference_mode():
        again, third, fresh = features(noise), features(noise), features(noise.clone())
    assert len(passes) == 3 and same(first, again) and same(again, third) and same(again, fresh)
    assert len(frozen.known) == 1  # what is gone takes no memory
    with torch.no_grad():
        mae.blocks[0].mlp.fc1.weight.mul_(0.5)
    with torch.inference_mode():
        moved = features(noise)
    for name in first:
        assert torch.equal(first[name], moved[name]) == name.startswith("untrained")
    with torch.inference_mode():
        other = features(noise.copy_(noise.flip(0)))
    for name in other:  # something else in the same memory
        assert not torch.equal(moved[name], other[name])


@pytest.mark.slow
def test_accumulated_batches_are_one_step_of_the_probe(tmp_path):
    for name, more in (("one", ("--batch_size", "32")), ("four", ("--batch_size", "8", "--accum_iter", "4"))):
        train_here(*QUICK, "--probes", "frozen", *more, "--output_dir", tmp_path / name, check=0)
    one, four = (files.read_csv(tmp_path / name / "log.csv") for name in ("one", "four"))
    for a, b in zip(one, four):
        assert a["untrained_frozen_accuracy"] == pytest.approx(b["untrained_frozen_accuracy"], abs=1.5)
    for name in ("one", "four"):
        assert state(tmp_path / name)["probes"]["frozen"]["frozen_accuracy"]["steps"] == 4


@pytest.mark.slow
def test_on_an_encoder_that_does_not_move_it_is_the_untrained_baseline(tmp_path):
    train_here(*QUICK, "--lr", "1e-30", "--probes", "all", "--output_dir", tmp_path, check=0)
    for row in files.read_csv(tmp_path / "log.csv"):
        assert row["frozen_accuracy"] == row["untrained_frozen_accuracy"] > 10
    assert row["knn_accuracy"] == row["untrained_knn_accuracy"] > 30


def test_what_it_learns_is_scikit_learns_logistic_regression():
    """On standardised features of classes that overlap, all images a step: the same optimum, found in another way."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 1500)
    features = (rng.normal(size=(5, 8))[labels] + rng.normal(size=(1500, 8))) * rng.uniform(0.01, 100, 8)
    probe, steps = OnlineProbe(8, 5, CPU.torch, 0), 2000
    tensors = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    for i in range(steps):
        probe.step(*tensors, i / steps)
    standard = (features - features.mean(0)) / features.std(0)
    theirs = LogisticRegression(C=1e9, max_iter=1000).fit(standard, labels)
    ours = probe.predict(tensors[0]).numpy()
    assert (ours == theirs.predict(standard)).mean() > 0.98
    assert abs((ours == labels).mean() - theirs.score(standard, labels)) < 0.005
    assert 0.6 < (ours == labels).mean() < 0.95
