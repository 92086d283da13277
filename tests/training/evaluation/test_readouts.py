"""What evaluations read of an encoder's tokens: CLS, the mean of the patches, or those that a learned query attends to."""

import json
import math

import numpy as np
import pytest
import torch

from maekit.model.formats import to_timm
from maekit.probes.linear import AttentionPool
from maekit.runs import reading
from maekit.settings.probes import EVALUATIONS
from tests.support import train_here
from tests.support.commands import complaint, resolved
from tests.support.evaluation import FINETUNE, KNN, LINPROBE, QUICK, encoder, first_batch, open_job
from tests.support.runs import same, state, summary


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_is_called_by_what_it_reads_in_its_folder_and_its_column(name):
    task, readout = EVALUATIONS[name]
    flags = ("--task", task, "--init", "untrained", "--readout", readout)
    run = resolved(*flags)
    assert run.probes.readouts == (readout,) and run.output_dir.endswith(f"/seed0/{name}")
    found = {"config": {"identity": {**run.identity(), "init": "sha256:0"}}}
    assert reading.evaluation_column(found) == f"{name}_accuracy"
    del found["config"]["identity"]["readout"]  # of a kit that did not know it
    assert reading.evaluation_column(found) == f"{task}_accuracy"
    if name == task:
        assert resolved(*flags[:4]).probes.readouts == (readout,)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((*KNN, "--readout", "attentive"), "--task knn has one of cls, mean"),
        ((*FINETUNE, "--readout", "attentive"), "--task finetune has one of mean, cls"),
        ((*LINPROBE, "--readout", "cls mean"), "--task linprobe has one of cls, mean, attentive"),
        (("--readout", "attentive"), "Choose from cls, mean"),
        (("--readout", ""), "is empty"),
    ],
    ids=str,
)
def test_a_read_out_that_is_none_is_one_line(flags, said):
    init = ("--init", "untrained") if "--task" in flags else ()
    error = complaint(*flags, *init)
    assert error.startswith("error: --readout") and said in error and len(error.splitlines()) == 1


def test_linear_probing_of_the_mean_reads_the_patches_of_whole_images(plain):
    job = open_job(*QUICK, *LINPROBE, "--init", plain, "--readout", "mean")
    mae = open_job(*QUICK, *KNN, "--init", plain).network.eval()
    images = job.pixels.normalize(first_batch(job)["images"])
    with torch.no_grad():
        tokens = mae.forward_encoder(images, 0.0)[0].double().numpy()
    features = tokens[:, 1:].sum(1) / (tokens.shape[1] - 1)
    weight = job.network.head[1].weight.detach().double().numpy()
    job.model.train()
    normalised = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    np.testing.assert_allclose(job.logits(images).detach().numpy(), normalised @ weight.T, atol=1e-4)


def test_a_query_attends_over_the_patches_and_not_over_cls():
    """Softmax attention of one query, three heads, written out; position 0 has no part in it."""
    pool = AttentionPool(12, 3, seed=0).double()
    tokens = torch.randn(4, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight, bias = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    (wq, wk, wv), (bq, bk, bv) = weight.chunk(3), bias.chunk(3)
    heads = lambda x: x.unflatten(-1, (3, 4)).transpose(-3, -2)
    q, k, v = heads(pool.query @ wq.T + bq), heads(tokens[:, 1:] @ wk.T + bk), heads(tokens[:, 1:] @ wv.T + bv)
    attended = (q @ k.transpose(-2, -1) / math.sqrt(4)).softmax(-1) @ v
    expected = pool.attention.out_proj(attended.transpose(-3, -2).flatten(-2))[:, 0]
    assert torch.allclose(pool(tokens), expected, atol=1e-12) and expected.shape == (4, 12)
    tokens[:, 0] += 1
    assert torch.allclose(pool(tokens), expected, atol=1e-12)
    moved = tokens.clone()
    moved[:, 3] += 1
    assert not torch.allclose(pool(moved), expected, atol=1e-3)


def test_the_pools_first_weights_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    a, b, other = (AttentionPool(12, 3, seed).state_dict() for seed in (3, 3, 4))
    assert same(a, b) and not same(a, other) and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.slow
def test_attentive_probing_trains_pool_and_classifier_and_nothing_else(plain, tmp_path):
    """It is a classifier worth its name: on images that it has seen it beats the CLS token's."""
    flags = (*QUICK, *LINPROBE, "--init", plain, "--epochs", "3", "--readout", "attentive")
    train_here(*flags, "--output_dir", tmp_path, check=0)
    ours, theirs = state(tmp_path)["model"], state(plain)["model"]
    assert same(encoder(ours), encoder(theirs)) and len(encoder(ours)) > 40
    before = open_job(*flags).network.state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], before[name])}
    trained = {"head.0.query", "head.0.attention.in_proj_weight", "head.0.attention.out_proj.weight", "head.2.weight"}
    assert trained <= moved and all(name.startswith("head.") for name in moved)
    assert summary(tmp_path)["acc1"] > 20


@pytest.mark.slow
def test_fine_tuning_by_cls_keeps_the_encoders_norm_and_goes_on_as_such(plain, tmp_path):
    flags = (*QUICK, *FINETUNE, "--readout", "cls", "--epochs", "1", "--init", plain)
    job = open_job(*flags)
    theirs = state(plain)["model"]
    assert same(encoder(job.network.state_dict()), encoder(theirs)) and "norm.weight" in job.network.state_dict()
    train_here(*flags, "--output_dir", tmp_path / "cls", check=0)
    again = (*QUICK, *FINETUNE, "--epochs", "0", "--init", tmp_path / "cls/checkpoint.pth")
    train_here(*again, "--readout", "cls", "--output_dir", tmp_path / "again", check=0)
    assert summary(tmp_path / "again")["acc1"] == summary(tmp_path / "cls")["acc1"]
    error = train_here(*again, "--output_dir", tmp_path / "mean", check=2).stderr
    assert "was fine-tuned with --readout cls. Add that." in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_both_read_outs_of_k_nn_are_those_of_the_run(tmp_path):
    train_here(*QUICK, "--probes", "knn", "--epochs", "1", "--output_dir", tmp_path / "run", check=0)
    scored = json.loads((tmp_path / "run/summary.json").read_text())
    for readout, column in (("cls", "knn_accuracy"), ("mean", "knn_mean_accuracy")):
        for init, of in ((tmp_path / "run", ""), ("untrained", "untrained_")):
            out = tmp_path / f"{of}{readout}"
            train_here(*QUICK, *KNN, "--init", init, "--readout", readout, "--output_dir", out, check=0)
            assert summary(out)["acc1"] == scored[of + column], (readout, of)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_the_accuracy_of_k_nn_is_scikit_learns_on_timms_features(readout, plain, tmp_path):
    """Nothing of ours but the images and the weights: timm's forward pass, scikit-learn's neighbours."""
    from sklearn.neighbors import KNeighborsClassifier

    flags = (*QUICK, *KNN, "--init", plain, "--readout", readout)
    train_here(*flags, "--output_dir", tmp_path, check=0)
    job = open_job(*flags)
    network, sets = to_timm(job.network).eval(), []
    for batches in (job.loaders.whole(), job.loaders.validation):
        features, labels = [], []
        for batch in batches:
            with torch.no_grad():
                tokens = network.forward_features(job.pixels.normalize(batch["images"])).double().numpy()
            features.append(tokens[:, 0] if readout == "cls" else tokens[:, 1:].sum(1) / (tokens.shape[1] - 1))
            labels.append(batch["labels"].numpy())
        sets.append((np.concatenate(features), np.concatenate(labels)))
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    accuracy = 100 * theirs.fit(*sets[0]).score(*sets[1])
    assert summary(tmp_path)["acc1"] == pytest.approx(accuracy, abs=0.01)
