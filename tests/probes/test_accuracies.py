"""Accuracies of all probes together."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from maekit import files
from maekit.probes.frozen import FrozenProbes
from maekit.probes.joint import JointMAE, JointProbe
from maekit.runs import measures
from maekit.training import validation
from tests.support import train_here
from tests.support.probing import CLASSES, CPU, PIXELS, QUICK, val_batches


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_accuracies_count_every_validation_image_once(readout, mae, source):
    images = source.val.subset(np.arange(0, 200, 8))
    model = JointMAE(mae, 0.5, CLASSES, readout=readout)
    frozen = FrozenProbes(mae, CLASSES, 0, ("cls", "mean"))
    with torch.no_grad():
        mae.blocks[0].attn.qkv.weight.mul_(1.5)  # no longer the untrained encoder
    right = Counter()
    dataset = val_batches(images).dataset
    for i in range(len(images)):
        sample = dataset[i]
        image, noise = PIXELS.normalize(sample["images"][None]), sample["noise"][None]
        with torch.no_grad():
            now, before = (m.forward_encoder(image, 0.75, noise)[0][0] for m in (mae, frozen.untrained))
        read = {"cls": lambda tokens: tokens[0], "mean": lambda tokens: sum(tokens[1:]) / (len(tokens) - 1)}
        joint = {"cls": "accuracy", "mean": "joint_mean_accuracy"}[readout]
        right[joint] += (model.head.weight @ read[readout](now)).argmax().item() == sample["labels"]
        for name, features in (
            ("frozen_accuracy", read["cls"](now)),
            ("untrained_frozen_accuracy", read["cls"](before)),
            ("frozen_mean_accuracy", read["mean"](now)),
            ("untrained_frozen_mean_accuracy", read["mean"](before)),
        ):
            weight = frozen.probes[name].layers[1].weight
            right[name] += (weight @ features).argmax().item() == sample["labels"]
    probe = JointProbe(model)
    _, found = validation.validate(
        val_batches(images, 7),
        partial(validation.measured, model, {"joint": probe, "frozen": frozen}, CPU, PIXELS, 0.75),
        CPU,
    )
    assert found == {k: 100 * right[k] / 25 for k in right}
    alone = partial(validation.measured, model, {"joint": probe}, CPU, PIXELS, 0.75)
    assert validation.validate(val_batches(images, 25), alone, CPU)[1][joint] == found[joint]


@pytest.mark.slow
def test_k_nn_is_scored_every_few_epochs_and_in_the_last(tmp_path):
    flags = ("--epochs", "5", "--eval_every", "2", "--probes", "knn")
    train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    scored = [row["epoch"] for row in files.read_csv(tmp_path / "log.csv") if row["knn_accuracy"] is not None]
    assert scored == [1, 3, 4]
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())["trajectory"]
    assert [p["epoch"] for p in trajectory if p["knn_accuracy"] is not None] == [1, 3, 4]
    assert all(p["accuracy"] is None and p["untrained_knn_accuracy"] > 30 for p in trajectory)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_all_probes_work_together_under_autocast(precision, tmp_path):
    flags = ("--alpha", "0.5", "--probes", "all", "--precision", precision, "--max_images", "160", "--epochs", "3")
    train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    measured = set(measures.ACCURACY_COLUMNS) - {"joint_mean_accuracy"}  # the joint classifier has one read-out
    assert all(summary[name] > 15 for name in measured), summary


def test_a_loss_that_runs_off_to_infinity_is_a_result(tmp_path):
    flags = ("--alpha", "-10", "--lr", "1e3", "--probes", "all")
    result = train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    assert "diverged" in result.stdout
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())
    assert trajectory["status"] == "diverged" and trajectory["alpha"] == -10
    assert len(trajectory["trajectory"]) < 2
