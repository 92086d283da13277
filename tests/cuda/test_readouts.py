"""Read-outs and representation metrics on a GPU: the CPU's numbers, and bands that add up."""

import numpy as np
import pytest
import torch

from maekit import files
from maekit.settings.probes import OUTPUT
from tests.cuda.conftest import QUICK, train_on

BANDS = ("mse_90", "mse_9", "mse_1")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def both(device, tmp_path_factory):
    """The same run with all that is read of an encoder, on the CPU and here, in float32 and in the device's own precision.

    At a rate that moves no weight visibly: what is compared is how the same encoder is read. In bfloat16 on a CPU ranks differ by
    0.3 %, features by 0.5 % and bands by 0.01 % from float32's; tolerances have room for crops that are rounded elsewhere.
    """
    root = tmp_path_factory.mktemp("readouts")
    flags = (*QUICK, "--probes", "all", "--alpha", "0.1", "--joint_readout", "mean", "--norm", "dyt", "--lr", "1e-9")
    flags = (*flags, "--label_map", "half")
    chosen = {"cpu": (CPU, "float32"), "float32": (device, "float32"), "own": (device, "auto")}
    return {name: train_on(where, root / name, *flags, "--precision", how) for name, (where, how) in chosen.items()}


@pytest.mark.parametrize("precision", ["float32", "own"])
def test_all_that_is_read_is_what_the_cpu_reads(precision, both):
    ours, theirs = both[precision].log[-1], both["cpu"].log[-1]
    for column in ("rank_cls", "rank_mean", "untrained_rank_cls", "untrained_rank_mean", *BANDS):
        assert ours[column] == pytest.approx(theirs[column], rel=0.02), column
    for column in ("knn_accuracy", "knn_mean_accuracy", "untrained_knn_accuracy", "untrained_knn_mean_accuracy"):
        assert abs(ours[column] - theirs[column]) <= 5, column  # of 200 images, some that lie between two classes
    for column in ("joint_mean_accuracy", "frozen_mean_accuracy"):
        assert 0 <= ours[column] <= 100, column


def test_bands_add_up_to_the_validation_loss(both):
    """To what two passes of bfloat16 over the same images differ by, and in float32 to TF32's rounding."""
    for name, tolerance in (("cpu", 1e-6), ("float32", 1e-4), ("own", 1e-3)):
        row = both[name].log[-1]
        assert sum(row[column] for column in BANDS) == pytest.approx(row["val_mse"], rel=tolerance), name


def test_features_and_accuracies_by_class_are_of_the_same_images(both):
    kept = {name: np.load(run.folder / "features.npz") for name, run in both.items()}
    for name in ("float32", "own"):
        assert (kept[name]["labels"] == kept["cpu"]["labels"]).all()
        for readout in ("cls", "mean"):
            ours, theirs = (kept[of][readout].astype(np.float64) for of in (name, "cpu"))
            assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs - theirs.mean(axis=0)), (name, readout)
        rows, expected = (files.read_csv(both[of].folder / "accuracy_by_class.csv") for of in (name, "cpu"))
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
        total = sum(row["knn_mean_accuracy"] * row["images"] for row in rows) / sum(row["images"] for row in rows)
        assert total == pytest.approx(both[name].log[-1]["knn_mean_accuracy"], abs=1e-6)


def test_every_block_is_scored_as_on_the_cpu(device, trained, tmp_path):
    flags = ("--task", "knn", "--init", trained.folder, "--max_images", "64", "--batch_size", "32")
    flags = (*flags, "--layers", "all", "--readout", "mean")
    found = {}
    for where, precision in ((device, "auto"), (CPU, "float32")):
        run = train_on(where, tmp_path / where.type / precision, *flags, "--precision", precision)
        rows = files.read_csv(run.folder / "accuracy_by_layer.csv")
        assert rows[-1]["layer"] == OUTPUT and rows[-1]["accuracy"] == run.summary["acc1"]
        found[precision] = [row["accuracy"] for row in rows]
    assert np.abs(np.subtract(*found.values())).max() <= 10  # of 200 images, some that lie between two classes


@pytest.mark.parametrize("readout", ["mean", "attentive"])
def test_a_linear_probe_of_other_tokens_has_the_cpu_s_losses(readout, device, trained, tmp_path):
    flags = ("--task", "linprobe", "--readout", readout, "--init", trained.folder, "--epochs", "1")
    flags = (*flags, "--max_images", "64", "--batch_size", "32", "--precision", "float32")
    (ours,), (theirs,) = (train_on(where, tmp_path / str(i), *flags).log for i, where in enumerate((device, CPU)))
    for column in ("train_loss", "val_loss"):
        assert ours[column] == pytest.approx(theirs[column], rel=2e-2), column


def test_a_new_decoder_on_a_frozen_encoder_has_the_cpu_s_losses(device, trained, tmp_path):
    flags = (*QUICK, "--init", trained.folder, "--freeze", "encoder", "--norm", "dyt", "--precision", "float32")
    ours, theirs = (train_on(where, tmp_path / str(i), *flags) for i, where in enumerate((device, CPU)))
    for here, there in zip(ours.log, theirs.log, strict=True):
        assert all(here[column] == pytest.approx(there[column], rel=2e-2) for column in ("train_loss", "val_mse"))
