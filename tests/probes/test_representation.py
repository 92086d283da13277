"""Effective rank, error by band of principal components, and the features that a run leaves."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maekit import files
from maekit.probes.accuracy import percent
from maekit.probes.knn import by_output, knn_outcomes, knn_predict
from maekit.probes.representation import BANDS, Bands, effective_rank, targets
from maekit.settings.probes import READOUTS
from maekit.training import pretraining
from tests.support import train_here, train_module
from tests.support.probing import CLASSES, CPU, PIXELS, QUICK

FLAGS = (*QUICK, "--probes", "representation", "--eval_every", "1")


@pytest.mark.parametrize(
    ("singular", "rank"),
    [
        ([1.0, 1.0, 1.0, 1.0], 4.0),
        ([2.0, 2.0, 0.0, 0.0], 2.0),
        ([5.0, 0.0, 0.0, 0.0], 1.0),
        ([3.0, 1.0], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
    ],
    ids=str,
)
def test_the_effective_rank_is_that_of_the_singular_values(singular, rank):
    """Whatever the directions, and whatever the size of the features."""
    rng = np.random.default_rng(0)
    n, d = 30, len(singular)
    u, v = (np.linalg.qr(rng.standard_normal((k, d)))[0] for k in (n, d))
    features = torch.from_numpy(u * singular @ v.T)
    for scale in (1.0, 1e3):
        assert effective_rank(features * scale) == pytest.approx(rank, rel=1e-5)


def test_features_that_are_no_numbers_have_no_rank():
    assert math.isnan(effective_rank(torch.full((5, 3), math.nan)))


def test_bands_hold_the_variance_that_they_are_called_after():
    variances = torch.tensor([60.0, 25.0, 10.0, 3.0, 1.5, 0.4, 0.1])
    directions = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))[0]
    bands = Bands(directions @ torch.diag(variances) @ directions.T)
    band = bands.members.argmax(1)
    assert band.tolist() == [0, 0, 0, 1, 1, 2, 2]  # 95 %, then up to 99.5 %
    for i in range(7):  # an error along one component is in its band alone
        error = 2 * directions[:, i].expand(2, 3, 7)
        found = bands.errors(error, torch.ones(2, 3))
        expected = torch.zeros(3).index_fill_(0, band[i], 4 / 7)
        assert torch.allclose(found, expected, atol=1e-5)


def test_components_are_those_of_the_patches_of_all_images(mae):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=rng)
    batches = [{"images": part} for part in images.split(4)]
    for norm_pix_loss in (False, True):
        mae.norm_pix_loss = norm_pix_loss
        patches = targets(mae, PIXELS.normalize(images)).flatten(0, 1).double()
        expected = Bands(torch.cov(patches.T, correction=0))
        found = Bands.of(batches, PIXELS, mae)
        difference, mask = torch.randn(6, 64, 192, generator=rng), torch.ones(6, 64)
        assert torch.allclose(found.errors(difference, mask), expected.errors(difference, mask), rtol=1e-3)
    mae.norm_pix_loss = False


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--norm_pix_loss",), ("--batch_size", "24")], ids=str)
def test_errors_by_band_add_up_to_the_validation_loss(more, tmp_path):
    train_here(*FLAGS, *more, "--output_dir", tmp_path, check=0)
    rows = files.read_csv(tmp_path / "log.csv")
    assert len(rows) == 2
    for row in rows:
        assert sum(row[name] for name in BANDS) == pytest.approx(row["val_mse"], rel=1e-6)
        assert min(row[name] for name in BANDS) > 0


@pytest.mark.slow
def test_a_run_leaves_the_features_that_its_ranks_are_of(tmp_path):
    train_here(*FLAGS, "--output_dir", tmp_path, check=0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    with np.load(tmp_path / "features.npz") as kept:
        kept = dict(kept)
    assert kept["labels"].max() == CLASSES - 1
    for readout in READOUTS:
        values = kept[readout]
        assert values.dtype == np.float16 and len(values) == len(kept["labels"])
        assert effective_rank(torch.from_numpy(values)) == pytest.approx(summary[f"rank_{readout}"], rel=1e-3)
        assert 1 < summary[f"rank_{readout}"] < summary[f"untrained_rank_{readout}"] < values.shape[1]


@pytest.mark.slow
def test_probes_share_the_features_of_a_validation_and_of_no_other(tmp_path, monkeypatch):
    """k-NN and ranks read the same, once; those left behind are of the encoder at its end."""
    passes, opened, whole = [], [], pretraining.features_of
    monkeypatch.setattr(pretraining, "features_of", lambda mae, *args: passes.append(mae) or whole(mae, *args))
    keep = train_module.open_task
    monkeypatch.setattr(train_module, "open_task", lambda *args: opened.append(keep(*args)) or opened[-1])
    flags = ("--probes", "knn representation", "--cache", "off")
    train_here(*FLAGS, *flags, "--epochs", "3", "--eval_every", "2", "--output_dir", tmp_path, check=0)
    (task,) = opened
    assert sum(mae is task.mae for mae in passes) == 2  # after the second epoch and the third
    features, labels = whole(task.mae, task.loaders.validation, CPU, PIXELS, by_output(READOUTS))
    with np.load(tmp_path / "features.npz") as kept:
        assert (kept["labels"] == labels.numpy()).all()
        for readout in READOUTS:
            assert (kept[readout] == features[readout].numpy().astype(np.float16)).all()
    row = files.read_csv(tmp_path / "log.csv")[-1]
    assert row["rank_mean"] == pytest.approx(effective_rank(features["mean"]), rel=1e-9)
    known = knn_outcomes(task.mae, task.loaders.whole(), task.loaders.validation, CLASSES, CPU, PIXELS, ("mean",))[0]
    assert row["knn_mean_accuracy"] == percent(known["mean"])


@pytest.mark.slow
def test_k_nn_of_saved_features_is_scikit_learns(tmp_path):
    """Half of the images known, half asked: cosine, 20 neighbours, votes of exp(similarity / 0.07)."""
    from sklearn.neighbors import KNeighborsClassifier

    train_here(*FLAGS, "--output_dir", tmp_path, check=0)
    with np.load(tmp_path / "features.npz") as kept:
        features, labels = kept["mean"].astype(np.float64), kept["labels"].astype(np.int64)
    known, asked = np.arange(len(labels)) % 2 == 0, np.arange(len(labels)) % 2 == 1
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    theirs.fit(features[known], labels[known])
    tensors = (torch.from_numpy(features[known]), torch.from_numpy(labels[known]), torch.from_numpy(features[asked]))
    assert (theirs.predict(features[asked]) == knn_predict(*tensors, CLASSES).numpy()).all()


def test_targets_are_what_the_loss_compares_with(mae, batch):
    images, noise, _ = batch
    for norm_pix_loss in (False, True):
        mae.norm_pix_loss = norm_pix_loss
        loss, pred, mask = mae(images, 0.75, noise)
        error = ((pred - targets(mae, images)) ** 2).mean(-1)
        assert torch.allclose((error * mask).sum() / mask.sum(), loss, rtol=1e-6)
    mae.norm_pix_loss = False
    other = SimpleNamespace(pos_embed=mae.pos_embed, norm_pix_loss=False)  # upstream's class has no patch_size
    assert torch.equal(targets(other, images), mae.patchify(images))
