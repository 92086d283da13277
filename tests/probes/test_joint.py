"""The joint probe: its part of the loss and of the gradients, and what alpha 0 leaves of it."""

import copy
import math

import numpy as np
import pytest
import torch

from maekit import files
from maekit.model.mae import build_mae
from maekit.probes.accuracy import outcome, percent
from maekit.probes.joint import JointMAE, JointProbe
from tests.support import train_here
from tests.support.probing import CLASSES, MODEL, QUICK, gradients
from tests.support.runs import same, state


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


@pytest.mark.slow
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


LABEL_OF = [0, -1, 1, -1, 0, -1, -1, -1, -1, 2]


def test_an_image_without_a_label_has_the_reconstruction_alone(mae, batch):
    """The entropy is the mean over the others, by hand; what an image without one is called changes nothing."""
    images, noise, _ = batch
    labels = torch.tensor([0, 1, 2, 3] * len(images))[: len(images)]
    model = JointMAE(mae, -0.7, CLASSES, label_of=LABEL_OF, labelled=0.5)
    out = model(images, 0.75, noise, labels)
    assert out.logits.shape == (len(images), 3)
    chosen = [i for i, label in enumerate(labels) if LABEL_OF[label] >= 0]
    assert len(chosen) == 0.5 * len(images)
    rows = out.logits.double()
    entropy = -np.mean([rows[i].log_softmax(0)[LABEL_OF[labels[i]]].item() for i in chosen])
    assert out.classification.item() == pytest.approx(entropy, rel=1e-5)
    other = torch.where(labels == 1, 5, labels)
    assert torch.equal(model(images, 0.75, noise, other).loss, out.loss)
    nobody = model(images, 0.75, noise, torch.ones_like(labels))
    assert nobody.classification == 0 and torch.equal(nobody.loss, nobody.reconstruction)


def test_its_accuracy_is_of_the_images_that_have_a_label(mae, batch):
    images = batch[0]
    probe = JointProbe(JointMAE(mae, 1.0, CLASSES, label_of=LABEL_OF))
    labels = torch.arange(len(images)) % CLASSES
    truth = probe.truth(labels)
    assert truth.tolist() == [LABEL_OF[label] for label in labels]
    found = outcome(torch.zeros_like(labels), truth)
    assert found.tolist() == [-1 if t < 0 else int(t == 0) for t in truth]
    asked = [t for t in truth.tolist() if t >= 0]
    assert percent(found) == 100 * asked.count(0) / len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["half", None])
def test_its_accuracies_are_written_class_by_class(labels, tmp_path):
    flags = ("--demo", "--epochs", "1", "--max_images", "64", "--num_workers", "0", "--alpha", "-0.1")
    own = ("--label_map", labels) if labels else ()
    train_here(*flags, "--probes", "all", *own, "--output_dir", tmp_path / "run", check=0)
    rows, (last,) = files.read_csv(tmp_path / "run/accuracy_by_class.csv"), files.read_csv(tmp_path / "run/log.csv")
    assert [row["class"] for row in rows] == sorted(row["class"] for row in rows) and len(rows) == CLASSES
    named = [row for row in rows if row["label"] is not None]
    assert [row["label"] for row in named] == list(range(5 if labels else 10))
    n = sum(row["images"] for row in rows)
    for column in (
        "frozen_accuracy",
        "frozen_mean_accuracy",
        "untrained_frozen_accuracy",
        "knn_accuracy",
        "knn_mean_accuracy",
    ):
        assert sum(row[column] * row["images"] for row in rows) / n == pytest.approx(last[column])
    of_named = sum(row["accuracy"] * row["images"] for row in named) / sum(row["images"] for row in named)
    assert last["accuracy"] == pytest.approx(of_named)
    assert all(row["accuracy"] is None for row in rows if row not in named)
    known = state(tmp_path / "run")["probes"]["joint"]["weight"]
    assert len(known) == len(named)
