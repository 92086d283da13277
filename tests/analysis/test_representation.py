"""Similarity of encoders, evaluations of a sweep, and the figures of both."""

import json

import numpy as np
import pytest

from maekit import files, stats
from maekit.analysis import evaluations, representation_figures, similarity
from maekit.runs.trajectories import load_trajectories, read_trajectories
from tests.support.gap import analyse
from tests.support.runs import write_trajectory

N, D = 60, 6


def leave_features(folder, alpha, seed):
    """Features that two seeds of one alpha share but for noise, and that turn into others with alpha."""
    shared, other = (np.random.default_rng(of).standard_normal((N, D)) for of in (0, 1))
    noise = np.random.default_rng([seed, int(10 * alpha + 20)]).standard_normal((N, D))
    values = (1 - abs(alpha)) * shared + abs(alpha) * other + 0.2 * noise
    labels = np.arange(N, dtype=np.int32) % 5
    files.write_arrays(
        folder / "features.npz", {**dict.fromkeys(("cls", "mean"), values.astype(np.float16)), "labels": labels}
    )
    return values


@pytest.fixture
def sweep(tmp_path):
    for norm in ("LayerNorm", "DynamicTanh"):
        for alpha in (-0.5, 0.0, 0.5):
            for seed in range(3):
                leave_features(write_trajectory(tmp_path, alpha, norm=norm, seed=seed).parent, alpha, seed)
    return tmp_path


def test_similarity_is_the_mean_over_pairs_of_other_seeds(sweep):
    found, _ = read_trajectories(sweep)
    known = similarity.describe(found)
    assert list(known) == ["LayerNorm", "DynamicTanh"] and set(known["LayerNorm"]) == {"cls", "mean"}
    of = known["LayerNorm"]["mean"]
    assert of["alphas"] == ["-0.5", "0.0", "0.5"] and not of["same_seed"]
    assert of["pairs"] == [[3, 6, 6], [6, 3, 6], [6, 6, 3]]
    cka = np.array(of["cka"])
    assert np.allclose(cka, cka.T) and cka[1, 1] > 0.9 and cka[0, 1] < cka[1, 1] - 0.2
    files_of = {
        (run["alpha"], run["seed"]): np.load(f"{run['run']}/features.npz")["mean"].astype(np.float32)
        for run in found
        if run["norm"] == "LayerNorm"
    }
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    expected = np.mean([stats.cka(files_of[0.0, a], files_of[0.5, b]) for a, b in pairs])
    assert cka[1, 2] == pytest.approx(expected, rel=1e-6)


def test_one_seed_has_no_floor(tmp_path):
    for alpha in (0.0, 0.5):
        leave_features(write_trajectory(tmp_path, alpha).parent, alpha, 0)
    known = similarity.describe(read_trajectories(tmp_path)[0])["LayerNorm"]["cls"]
    assert known["same_seed"] and known["cka"][0][0] is None and 0 < known["cka"][0][1] < 1


def test_runs_that_left_none_are_not_compared(tmp_path):
    write_trajectory(tmp_path, 0.0)
    leave_features(write_trajectory(tmp_path, 0.5).parent, 0.5, 0)
    assert similarity.describe(read_trajectories(tmp_path)[0]) == {}


def evaluation(path, result, *, init="sha256:0", **identity):
    name = "val_mse" if identity.get("freeze") else "acc1"
    return {
        "path": path,
        "config": {"identity": {"norm": "LayerNorm", "seed": 0, "task": "pretrain", "init": init, **identity}},
        "summary": {"status": "finished", name: result},
    }


def test_evaluations_belong_to_the_run_above_or_to_all_of_their_seed(tmp_path):
    folders = {alpha: write_trajectory(tmp_path, alpha).parent for alpha in (0.0, 0.5)}
    runs = [evaluation(folders[0.5] / "decoder", 0.75, freeze="encoder")]
    runs += [evaluation(folders[0.5] / "knn_mean", 42.0, task="knn", readout="mean")]
    runs += [evaluation(tmp_path / "untrained/x/knn_mean", 30.0, task="knn", readout="mean", init=None)]
    runs += [evaluation(folders[0.0] / "knn", 99.0, task="knn") | {"summary": None}]  # has not ended
    points = evaluations.join(load_trajectories(tmp_path), runs)
    by_alpha = points.groupby("alpha").last()
    assert by_alpha["decoder_mse"].to_dict()[0.5] == 0.75 and np.isnan(by_alpha["decoder_mse"][0.0])
    assert by_alpha["knn_mean_accuracy"][0.5] == 42.0 and (points["untrained_knn_mean_accuracy"] == 30.0).all()
    assert "untrained_decoder_mse" not in points


def test_k_nn_as_an_evaluation_leaves_what_the_probe_has_scored_on_the_way(tmp_path):
    file = write_trajectory(tmp_path, 0.5)
    run = json.loads(file.read_text())
    for i, point in enumerate(run["trajectory"]):
        point["knn_accuracy"], point["knn_mean_accuracy"] = 10.0 + i, None
    file.write_text(json.dumps(run))
    known = [evaluation(file.parent / "knn", 99.0, task="knn")]
    known += [evaluation(file.parent / "knn_mean", 42.0, task="knn", readout="mean")]
    points = evaluations.join(load_trajectories(tmp_path), known)
    assert points["knn_accuracy"].tolist() == [10.0 + i for i in range(len(points))] and len(points) > 2
    assert points["knn_mean_accuracy"].dropna().tolist() == [42.0]


def test_a_decoder_of_an_untrained_encoder_belongs_to_its_learning_rate(tmp_path):
    for lr in (1e-3, 1e-4):
        write_trajectory(tmp_path, 0.5, lr=lr)
    known = {"freeze": "encoder", "init": None}
    runs = [evaluation(tmp_path / f"untrained/{lr}/decoder", 1000 * lr, lr=lr, **known) for lr in (1e-3, 1e-4)]
    runs += [evaluation(tmp_path / "untrained/x/linprobe", 30.0, task="linprobe", init=None)]
    points = evaluations.join(load_trajectories(tmp_path), runs)
    assert points.groupby("lr")["untrained_decoder_mse"].last().to_dict() == {1e-3: 1.0, 1e-4: 0.1}
    assert (points["untrained_linprobe_accuracy"] == 30.0).all()


@pytest.mark.slow
def test_the_analysis_draws_what_there_is(sweep, tmp_path):
    for path in sweep.rglob("trajectory.json"):
        run = json.loads(path.read_text())
        for i, point in enumerate(run["trajectory"]):
            point |= {
                "rank_cls": 5.0 + i,
                "rank_mean": 6.0,
                "untrained_rank_cls": 9.0,
                "mse_90": 0.3,
                "mse_9": 0.05,
                "mse_1": 0.05,
            }
        path.write_text(json.dumps(run))
    analyse(sweep, tmp_path / "out", draw=True)
    names = ("rank_over_alpha", "bands_over_alpha", "similarity_cls", "similarity_mean")
    assert all((tmp_path / f"out/{name}.{kind}").exists() for name in names for kind in ("png", "pdf"))
    assert set(files.read_json(tmp_path / "out/similarity.json")) == {"LayerNorm", "DynamicTanh"}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert (
        "Linear CKA of the features" in page
        and "uses. Compare it within one norm alone.<" in page.replace("\n", "")
        and "Effective rank of the features" in page
    )
    columns = (tmp_path / "out/gap_table.csv").read_text().splitlines()[0].split(",")
    assert {"rank_cls_mean", "rank_cls_std", "mse_1_mean"} <= set(columns)


def test_components_are_the_principal_ones_scaled(monkeypatch):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((2, 9, 5)) * [9, 5, 3, 0.1, 0.1]
    made = representation_figures.components(tokens)
    assert made.shape == (2, 9, 3) and made.min() == 0 and made.max() == 1
    first = np.corrcoef(made[..., 0].ravel(), tokens[..., 0].ravel())[0, 1]
    assert abs(first) > 0.95
