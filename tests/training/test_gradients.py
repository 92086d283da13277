"""Norms of gradients, clipping, and the moving average of the weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import norms
from maekit import files
from maekit.training import validation
from maekit.training.gradients import GradientNorms
from tests.support import train_here
from tests.support.evaluation import open_job
from tests.support.faults import start
from tests.support.runs import QUICK, losses, same, state, summary


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), norms.DynamicTanh(5), nn.Linear(5, 4), norms.RMSNorm(4))


def backward(model, factor=1.0):
    model.zero_grad()
    (factor * model(torch.randn(7, 6, generator=torch.Generator().manual_seed(1))).square().sum()).backward()


def watched(model):
    layers = {name: m for name, m in model.named_modules() if isinstance(m, tuple(norms.NORMS.values()))}
    watch = GradientNorms(model.parameters(), layers, torch.float64)
    watch.start()
    return watch


def norm_of(parameters):
    return float(torch.cat([p.grad.flatten().double() for p in parameters]).norm())


def test_norms_are_of_all_parameters_and_of_each_norm_layer_s_own():
    model = network()
    watch, wholes, layers = watched(model), [], []
    for factor in (1.0, 3.0):
        backward(model, factor)
        wholes.append(norm_of(model.parameters()))
        layers.append({name: norm_of(model[int(name)].parameters()) for name in "13"})
        assert watch.add().item() == pytest.approx(wholes[-1], rel=1e-6)
    whole, of_layers = watch.means()
    assert whole == pytest.approx(np.mean(wholes), rel=1e-6)
    assert of_layers == {name: pytest.approx(np.mean([of[name] for of in layers]), rel=1e-6) for name in "13"}


def test_a_step_that_a_grad_scaler_leaves_out_does_not_count():
    model = network()
    watch = watched(model)
    backward(model)
    watch.add()
    known = watch.means()
    model[0].weight.grad[0, 0] = torch.inf
    watch.add()
    assert watch.means() == known
    watch.start()
    assert watch.means() == (None, {})


def test_a_parameter_without_a_gradient_counts_as_zero():
    model = network()
    backward(model)
    model[1].alpha.grad = None
    watch = watched(model)
    watch.add()
    assert watch.means()[1]["1"] == pytest.approx(norm_of([model[1].weight, model[1].bias]), rel=1e-6)


def test_an_epoch_goes_on_in_the_middle():
    model = network()
    backward(model)
    whole, first = watched(model), watched(model)
    for watch in (whole, whole, first):
        watch.add()
    second = watched(model)
    second.start(sums=first.state())
    second.add()
    assert second.means() == whole.means()


@pytest.mark.parametrize("most", [0.1, 1e6])
def test_clipping_is_torchs(most):
    ours, theirs = network(), network()
    for model in (ours, theirs):
        backward(model)
    watch = watched(ours)
    watch.clip(watch.add(), most)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), most)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)
    assert norm_of(ours.parameters()) <= most * (1 + 1e-6)


def test_a_clipped_run_is_another_one_and_its_log_has_the_norm_before(tmp_path):
    for name, flags in (("plain", ()), ("clipped", ("--clip_grad", "0.01")), ("wide", ("--clip_grad", "1e9"))):
        train_here(*QUICK, *flags, "--output_dir", tmp_path / name, check=0)
    plain, clipped, wide = (losses(tmp_path / name) for name in ("plain", "clipped", "wide"))
    assert plain == wide and plain[-1]["val_mse"] != clipped[-1]["val_mse"]
    assert all(row["grad_norm"] > 0.1 for row in (*plain, *clipped))
    told = train_here(*QUICK, "--clip_grad", "0.5", "--output_dir", tmp_path / "clipped", check=2).stderr
    assert "--clip_grad 0.01" in told and "--clip_grad 0.5" in told and told.count("\n") == 1


def test_every_norm_layer_has_its_row_and_those_that_squash_say_where_they_are_flat(tmp_path):
    for norm in ("ln", "hardtanh"):
        train_here(*QUICK, "--norm", norm, "--eval_every", "2", "--output_dir", tmp_path / norm, check=0)
    by_norm = {norm: files.read_csv(tmp_path / norm / "norm_alpha.csv") for norm in ("ln", "hardtanh")}
    for rows in by_norm.values():
        assert [row["layer"] for row in rows if row["epoch"] == 0] == [
            *(f"{part}blocks.{i}.norm{k}" for part, n in (("", 2), ("decoder_", 1)) for i in range(n) for k in (1, 2)),
        ] or len({row["layer"] for row in rows}) == 8
        assert all(row["layer_grad_norm"] > 0 for row in rows)
    assert all(row["alpha"] is None and row["flat"] is None for row in by_norm["ln"])
    assert all(row["alpha"] > 0 and (row["flat"] is None) == (row["epoch"] == 0) for row in by_norm["hardtanh"])
    log = losses(tmp_path / "hardtanh")
    last = [row["flat"] for row in by_norm["hardtanh"] if row["epoch"] == 1]
    assert log[0]["norm_flat"] is None and log[1]["norm_flat"] == pytest.approx(np.mean(last)) and 0 < max(last) < 1


def test_flat_shares_are_those_of_what_the_layers_read():
    """Against the values themselves, taken down in one pass over all images at once."""
    job = open_job(*QUICK, "--norm", "softsign")
    layers, read = job.norm_layers(), {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda m, inputs, name=name: read.update({name: read.get(name, inputs[0])}))
    dataset = job.loaders.validation.dataset
    mask_ratio = job.run.model.mask_ratio
    shares = validation.flat_shares(
        job.mae, dataset, job.device, job.pixels, mask_ratio, layers, batch_size=len(dataset)
    )
    assert list(shares) == list(layers)
    for name, layer in layers.items():
        with torch.inference_mode():
            slope = (1 + (layer.alpha * read[name] + layer.shift).abs()) ** -2
        assert shares[name] == pytest.approx((slope < 0.1).float().mean().item(), abs=1e-6)
    in_parts = validation.flat_shares(job.mae, dataset, job.device, job.pixels, mask_ratio, layers, batch_size=7)
    assert in_parts == pytest.approx(shares, abs=1e-6)


def test_the_average_is_that_of_the_weights_after_each_step():
    job = open_job(*QUICK, "--ema", "0.9")
    from maekit.training.trainer import Trainer

    job.prepare()
    expected, updates = {name: value.detach().clone() for name, value in job.mae.named_parameters()}, []
    step = job.after_step

    def and_by_hand(at):
        for name, value in job.mae.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
        updates.append(at)
        step(at)

    job.after_step = and_by_hand
    row = Trainer(job).measure_epoch(0)
    assert len(updates) == 4
    averaged = dict(job.averaged.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-7)
    other = copy.deepcopy(job.mae)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(expected[name])
    job.averaged = other
    again = validation.validate(job.loaders.validation, job.measure_average, job.device)[0]["val_mse"]
    assert row["ema_val_mse"] == pytest.approx(again, rel=1e-6) and row["ema_val_mse"] != row["val_mse"]


@pytest.mark.slow
def test_an_averaged_run_that_was_killed_ends_as_the_unbroken_one(tmp_path):
    flags = (
        *QUICK,
        "--epochs",
        "6",
        "--ema",
        "0.9",
        "--clip_grad",
        "0.5",
        "--checkpoint_minutes",
        "1e-9",
        "--output_dir",
    )
    train_here(*flags, tmp_path / "whole", check=0)
    run = start(*flags, tmp_path / "killed")
    while not (tmp_path / "killed/checkpoint.previous.pth").exists():
        assert run.poll() is None
    run.kill()
    run.communicate()
    train_here(*flags, tmp_path / "killed", check=0)
    whole, killed = (state(tmp_path / name) for name in ("whole", "killed"))
    assert same(whole["ema"], killed["ema"]) and same(whole["model"], killed["model"])
    assert not same(whole["ema"]["cls_token"], whole["model"]["cls_token"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert "ema_val_mse" in summary(tmp_path / "killed")
