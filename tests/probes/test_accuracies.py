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
        val_batches(images, 7),
        partial(validation.measured, model, {"joint": JointProbe(model.head), "frozen": frozen}, CPU, PIXELS, 0.75),
        CPU,
    )
    assert {k: v for k, v in found.items() if k != "val_mse"} == {k: 100 * right[k] / 25 for k in right}
    joint = partial(validation.measured, model, {"joint": JointProbe(model.head)}, CPU, PIXELS, 0.75)
    assert validation.validate(val_batches(images, 25), joint, CPU)["accuracy"] == found["accuracy"]


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
    assert all(summary[name] > 15 for name in measures.ACCURACY_COLUMNS), summary


def test_a_loss_that_runs_off_to_infinity_is_a_result(tmp_path):
    flags = ("--alpha", "-10", "--lr", "1e3", "--probes", "all")
    result = train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    assert "diverged" in result.stdout
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())
    assert trajectory["status"] == "diverged" and trajectory["alpha"] == -10
    assert len(trajectory["trajectory"]) < 2
