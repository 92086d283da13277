"""What alpha does to classes with and without labels in training."""

import json

import pytest

from maekit import files
from maekit.analysis import labelled
from maekit.runs.trajectories import read_trajectories
from tests.support.gap import analyse
from tests.support.runs import write_trajectory


def leave(folder, labelled_at, others_at, labels=(0, 1, None), images=(10, 30, 20)):
    accuracies = (labelled_at - 3, labelled_at + 1, others_at)  # of 10 and 30 images: labelled_at on average
    rows = [
        {
            "class": name,
            "label": label,
            "images": n,
            "knn_accuracy": accuracy,
            "accuracy": None if label is None else 1.0,
        }
        for name, label, n, accuracy in zip("abc", labels, images, accuracies)
    ]
    files.write_csv(folder / "accuracy_by_class.csv", list(rows[0]), rows)


def sweep(folder, **how):
    for norm, drop in (("LayerNorm", 20), ("DynamicTanh", 0)):
        for alpha in (-1.0, 0.0, 1.0):
            for seed in range(3):
                run = write_trajectory(folder, alpha, norm=norm, seed=seed).parent
                leave(run, 60 + drop * alpha + seed, 50 + 5 * alpha - seed, **how)
    return folder


def test_either_kind_is_the_mean_over_its_images_paired_by_seed(tmp_path):
    found, _ = read_trajectories(sweep(tmp_path))
    known = labelled.describe(found, "knn_accuracy")
    assert list(known) == ["LayerNorm", "DynamicTanh"]
    of = known["LayerNorm"]
    assert of["classes"] == {"labelled": 2, "others": 1} and of["reference"] == 0.0
    means = {kind: [m["mean"] for m in of["means"][kind].values()] for kind in labelled.KINDS}
    assert means["labelled"] == pytest.approx([41, 61, 81]) and means["others"] == pytest.approx([44, 49, 54])
    difference = of["differences"]["labelled"]["-1.0"]
    assert (difference["mean"], difference["low"], difference["n"]) == (pytest.approx(-20), pytest.approx(-20), 3)
    said = labelled.sentence("LayerNorm", of)
    assert "labels of 2 classes and none of 1" in said and "at alpha -1.0 they are -20" in said and "n = 3" in said


def test_where_all_classes_or_none_had_a_label_nothing_is_said(tmp_path):
    found, _ = read_trajectories(sweep(tmp_path / "all", labels=(0, 1, 2)))
    assert labelled.describe(found, "knn_accuracy") == {}
    found, _ = read_trajectories(sweep(tmp_path / "some"))
    assert labelled.describe(found, "accuracy") == {}  # the joint classifier knows no others


def test_the_analysis_of_a_sweep_tells_and_draws_it(tmp_path):
    out = analyse(sweep(tmp_path / "runs"), tmp_path / "analysis", draw=True).stdout
    assert "LayerNorm: training had labels of 2 classes and none of 1." in out
    statistics = json.loads((tmp_path / "analysis/gap_statistics_knn.json").read_text())
    assert set(statistics["labelled"]) == {"LayerNorm", "DynamicTanh"}
    assert (tmp_path / "analysis/labelled_classes_knn.png").stat().st_size > 10_000
