"""Accuracy at equal reconstruction: what is compared with what, and what is said of it."""

import json

import numpy as np
import pytest
import scipy.stats

from maekit import files
from maekit.analysis import matched, matched_figure
from maekit.runs.trajectories import load_trajectories
from tests.support.gap import analyse, statistics

EPOCHS = 12


def write(root, alpha, seed, *, gain=0.0, end=0.3, norm="LayerNorm", noise=0.2, lr=1e-3, start=1.0, growing=0.0):
    """A trajectory whose frozen accuracy is 60 points between MSE 1.0 and 0, its seed's own level, and a gain; `growing` has
    it gain more as the MSE falls; by the mean of patches alpha moves nothing."""
    rng = np.random.default_rng([seed, int(100 * (alpha + 50)), int(1e6 * lr), len(norm)])
    mse = end + (start - end) * np.exp(-np.arange(EPOCHS) / 3)
    accuracy = 20 + (60 + growing) * (1 - mse) + gain + 5 * seed + rng.normal(0, noise, EPOCHS)
    columns = ("epoch", "mse", "accuracy", "frozen_accuracy", "frozen_mean_accuracy", "untrained_frozen_accuracy")
    values = zip(mse.tolist(), accuracy.tolist())
    points = [dict(zip(columns, (i, m, None, a, a - gain, 40.0))) for i, (m, a) in enumerate(values)]
    head = {"alpha": alpha, "lr": lr, "model": "vit_tiny", "decoder": None, "norm": norm, "seed": seed}
    folder = root / f"{norm}_{alpha}_{lr}_{seed}"
    folder.mkdir(parents=True)
    (folder / "trajectory.json").write_text(json.dumps({**head, "status": "finished", "trajectory": points}))


def described(root):
    points = load_trajectories(root)
    return matched.describe(points[points["frozen_accuracy"].notna()], "frozen_accuracy")


def test_alphas_are_compared_at_equal_mse_not_at_equal_epochs(tmp_path):
    """0.5 reconstructs better in the end and knows more for it, and nothing beside; -0.5 knows 6 points less."""
    for seed in range(3):
        for alpha, gain, end in ((0.0, 0, 0.3), (0.5, 0, 0.2), (-0.5, -6, 0.4)):
            write(tmp_path, alpha, seed, gain=gain, end=end)
    (known,) = described(tmp_path).values()
    assert known["reference"] == 0.0 and known["left_out"] == []
    d = known["differences"]
    assert abs(d["0.5"]["mean"]) < 0.3 and d["0.5"]["n"] == 3 and d["0.5"]["low"] < 0 < d["0.5"]["high"]
    assert d["-0.5"]["mean"] == pytest.approx(-6, abs=0.3) and d["-0.5"]["high"] < -5
    assert d["-0.5"]["mse_range"][1] == 1.0 and 0.4 < d["-0.5"]["mse_range"][0] < 0.43 and 0.4 < known["at"] < 0.7
    assert d["-0.5"]["at_once"][0] < d["-0.5"]["low"] and d["-0.5"]["at_once"][1] > d["-0.5"]["high"]
    expected = 20 + 60 * (1 - known["at"]) + 5  # the seeds' levels are 0, 5 and 10
    assert known["at_median"]["0.0"]["mean"] == pytest.approx(expected, abs=0.3)
    said = matched.sentence("LayerNorm", known)
    assert "at equal MSE encoders differ, in points from alpha 0.0: alpha -0.5 -6" in said and "n = 3" in said
    assert "95 % intervals of 2 comparisons at once. None is established of alpha 0.5." in said


def test_what_cannot_be_told_is_said_so(tmp_path):
    for seed in range(3):
        for alpha in (0.0, 0.2, 0.6):
            write(tmp_path / "none", alpha, seed, noise=2.0)
    (known,) = described(tmp_path / "none").values()
    said = matched.sentence("LayerNorm", known)
    assert "no difference to alpha 0.0 is established; the largest is alpha 0." in said and "n = 3" in said
    for alpha in (0.0, 0.5):
        write(tmp_path / "one", alpha, 0, gain=10 * alpha)
    (known,) = described(tmp_path / "one").values()
    assert known["differences"]["0.5"]["at_once"] is None and known["differences"]["0.5"]["low"] is None
    assert "1 seed cannot tell" in matched.sentence("LayerNorm", known)
    write(tmp_path / "alone", 0.5, 0)
    assert described(tmp_path / "alone") == {}


def test_an_alpha_that_hardly_trains_is_left_out_and_named(tmp_path):
    for seed in range(3):
        for alpha, end in ((0.0, 0.3), (0.5, 0.3), (-1.0, 0.95)):
            write(tmp_path, alpha, seed, end=end)
    (known,) = described(tmp_path).values()
    assert known["left_out"] == ["-1.0"] and list(known["at_median"]) == ["0.0", "0.5"]
    assert "Alpha -1.0 shares too little of its MSE." in matched.sentence("LayerNorm", known)
    assert known["differences"]["-1.0"]["n"] == 3  # by itself, over what both reach


def test_runs_that_pass_no_mse_in_common_are_not_compared(tmp_path):
    for seed in range(3):
        write(tmp_path, 0.0, seed, start=0.6, end=0.5)
        write(tmp_path, 0.5, seed, start=1.0, end=0.8)
    (known,) = described(tmp_path).values()
    assert known["at"] is None and known["differences"]["0.5"]["mean"] is None
    assert "nothing is compared" in matched.sentence("LayerNorm", known)


def test_norms_and_rates_are_groups_of_their_own(tmp_path):
    for norm, lr in (("LayerNorm", 1e-3), ("LayerNorm", 1e-4), ("DynamicTanh", 1e-3)):
        for alpha in (0.0, 0.5):
            write(tmp_path, alpha, 0, norm=norm, lr=lr)
    assert list(described(tmp_path)) == ["LayerNorm, lr 0.0001", "LayerNorm, lr 0.001", "DynamicTanh"]


def test_only_seeds_that_both_have_are_paired(tmp_path):
    for alpha, seeds in ((0.0, (0, 1, 2)), (0.5, (1, 2, 3))):
        for seed in seeds:
            write(tmp_path, alpha, seed, gain=8 * alpha)
    (known,) = described(tmp_path).values()
    assert list(known["differences"]["0.5"]["differences"]) == [1, 2]
    assert known["differences"]["0.5"]["at_once"] is None and "2 seeds cannot tell" in matched.sentence("", known)


def test_an_alpha_that_lacks_seeds_takes_them_from_no_other(tmp_path):
    for alpha, seeds in ((0.0, 3), (0.5, 3), (1.0, 1)):
        for seed in range(seeds):
            write(tmp_path, alpha, seed, gain=20 * alpha)
    (known,) = described(tmp_path).values()
    assert known["differences"]["0.5"]["n"] == 3 and known["differences"]["1.0"]["n"] == 1
    assert [of["n"] for of in known["at_median"].values()] == [3, 3, 1]
    said = matched.sentence("LayerNorm", known)
    assert "alpha 0.5 +10.1 (9.9 to 10.2, MSE" in said and "alpha 1.0" not in said and "95 % intervals." in said
    assert said.endswith("Alpha 1.0 has fewer than 3 seeds in common.")


@pytest.mark.slow
def test_statistics_report_and_figure_have_it(tmp_path):
    for seed in range(3):
        for alpha, gain in ((0.0, 0), (-0.5, -6)):
            write(tmp_path / "runs", alpha, seed, gain=gain)
    out = analyse(tmp_path / "runs", tmp_path / "out", draw=True).stdout
    known = statistics(tmp_path / "out", "_frozen")["matched"]["LayerNorm"]
    assert known["differences"]["-0.5"]["n"] == 3 and "at equal MSE" in out and "encoders differ" in out
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "encoders differ" in page and "matched_mse_frozen" in page
    figure = matched_figure.matched_mse(statistics(tmp_path / "out", "_frozen"), "frozen_accuracy")
    assert (
        "(n = 3)" in figure.legends[0].get_texts()[0].get_text()
        and "untrained" in figure.legends[0].get_texts()[1].get_text()
    )
    assert (tmp_path / "out/matched_mse_frozen.pdf").exists()
    assert (tmp_path / "out/matched_differences.png").exists() and "matched_differences" in page
    rows = {row["accuracy"]: row for row in files.read_csv(tmp_path / "out/matched_table.csv")}
    assert list(rows) == ["frozen_accuracy", "frozen_mean_accuracy"] and tuple(rows["frozen_accuracy"]) == matched.TABLE
    row, told = rows["frozen_accuracy"], known["differences"]["-0.5"]
    assert (row["group"], row["alpha"], row["reference"], row["left_out"]) == ("LayerNorm", -0.5, 0, 0)
    assert [row[name] for name in ("mean", "low", "high", "n")] == [told[name] for name in ("mean", "low", "high", "n")]
    assert [row["mse_low"], row["mse_high"]] == told["mse_range"]
    assert [row["low_at_once"], row["high_at_once"]] == told["at_once"] and row["established"] == 1
    assert rows["frozen_mean_accuracy"]["established"] == 0


def test_what_alpha_moves_is_filled_by_the_readout_that_it_moves(tmp_path):
    for norm, ends in (("LayerNorm", (0.3, 0.3)), ("DynamicTanh", (0.3, 0.9))):  # that of the second shares too little
        for seed in range(3):
            for alpha, gain, end in ((0.0, 0, ends[0]), (-0.5, -6, ends[1])):
                write(tmp_path, alpha, seed, gain=gain, norm=norm, end=end)
    points = load_trajectories(tmp_path)
    known = matched.of_all(points, ["frozen_accuracy", "frozen_mean_accuracy"])
    figure = matched_figure.matched_differences(known)
    left, right = figure.axes
    assert left.get_title("left") == "LayerNorm\nn = 3"
    assert right.get_title("left") == "DynamicTanh\nnothing in common"
    assert left.get_ylabel().endswith("minus that of α = 0 (points)")
    filled = [line.get_ydata() for line in left.lines if line.get_linestyle() == "None" and line.get_marker() in "o^"]
    assert [len(of) for of in filled] == [1, 0] and filled[0] == pytest.approx([-6], abs=0.3)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["frozen probe, CLS", "frozen probe, mean of patches"]
    assert len({key.get_marker() for key in figure.legends[0].get_lines()}) == 2  # told apart without colour


def between(root):
    points = load_trajectories(root)
    return matched.between(points[points["frozen_accuracy"].notna()], "frozen_accuracy")


def test_whether_it_depends_on_the_norm_is_told_from_the_same_seeds(tmp_path):
    """Alpha -0.5 costs LayerNorm 6 points and DynamicTanh 10, RMSNorm 6; 0.5 brings all 3. Intervals by scipy."""
    gains = {"LayerNorm": (-6, 3), "RMSNorm": (-6, 3), "DynamicTanh": (-10, 3)}
    for norm, (less, more) in gains.items():
        for seed in range(4):
            for alpha, gain in ((-0.5, less), (0.0, 0), (0.5, more)):
                write(
                    tmp_path, alpha, seed, gain=gain + 4 * seed * (alpha != 0), norm=norm
                )  # of the seed, not of the norm
    found = between(tmp_path)
    assert list(found) == ["RMSNorm minus LayerNorm", "DynamicTanh minus LayerNorm"]
    known = found["DynamicTanh minus LayerNorm"]
    differ = known["differences"]["-0.5"]
    assert differ["mean"] == pytest.approx(-4, abs=0.4) and differ["n"] == 4 and known["reference"] == 0
    norms = described(tmp_path)  # all runs pass the same MSE, so the ranges are the same
    changes = [norms[norm]["differences"]["-0.5"]["differences"] for norm in ("DynamicTanh", "LayerNorm")]
    each = [ours - theirs for ours, theirs in zip(*(of.values() for of in changes))]
    test = scipy.stats.ttest_1samp(each, 0)
    assert [differ["low"], differ["high"]] == pytest.approx(list(test.confidence_interval(0.95)), rel=1e-9)
    assert differ["at_once"] == pytest.approx(list(test.confidence_interval(0.975)), rel=1e-9)
    assert 0.1 < differ["high"] - differ["low"] < 2
    said = matched.sentence_between("DynamicTanh minus LayerNorm", known)
    assert said.startswith(
        "DynamicTanh minus LayerNorm, of the difference to alpha 0.0 at equal MSE: what alpha changes depends"
    )
    assert (
        "in points: alpha -0.5 -" in said
        and "MSE 0.318 to 1.000, n = 4); 95 % intervals of 2 comparisons at once." in said
    )
    assert said.endswith("None is established of alpha 0.5.")
    said = matched.sentence_between("RMSNorm minus LayerNorm", found["RMSNorm minus LayerNorm"])
    assert "depends on the norm is not established; the largest is alpha " in said


def test_norms_that_reach_other_mse_are_compared_where_both_have_been(tmp_path):
    """What alpha changes grows as the MSE falls, alike in both; one comes further."""
    for norm, end in (("LayerNorm", 0.3), ("DynamicTanh", 0.6)):
        for seed in range(3):
            for alpha in (0.0, 0.5):
                write(tmp_path, alpha, seed, end=end, norm=norm, noise=0, growing=10 * alpha)
    wrong = [known["differences"]["0.5"]["mean"] for known in described(tmp_path).values()]
    assert wrong[0] - wrong[1] > 0.5  # each over its own range
    change = between(tmp_path)["DynamicTanh minus LayerNorm"]["differences"]["0.5"]
    assert change["mean"] == pytest.approx(0, abs=1e-6)
    assert change["mse_range"][1] == 1 and 0.6 < change["mse_range"][0] < 0.62


def test_only_norms_of_the_same_rate_are_compared_and_two_seeds_tell_nothing(tmp_path):
    for norm, lr in (("LayerNorm", 1e-3), ("LayerNorm", 1e-4), ("DynamicTanh", 1e-4)):
        for seed in range(2):
            for alpha in (0.0, 0.5):
                write(tmp_path, alpha, seed, norm=norm, lr=lr)
    ((name, known),) = between(tmp_path).items()
    assert name == "DynamicTanh minus LayerNorm, lr 0.0001"
    assert "2 seeds cannot tell whether what alpha changes depends on the norm" in matched.sentence_between(name, known)
    for alpha in (0.0, 0.5):
        write(tmp_path / "other", alpha, 0, lr=1e-3)
        write(tmp_path / "other", alpha, 0, lr=1e-4, norm="DynamicTanh")
    assert between(tmp_path / "other") == {}


def test_readouts_are_compared_over_the_epochs_in_which_all_were_measured(tmp_path):
    for seed in range(3):
        for alpha in (0.0, 0.5):
            write(tmp_path, alpha, seed, gain=8 * alpha)
    points = load_trajectories(tmp_path)
    points["knn_accuracy"] = points["frozen_accuracy"].where(points["epoch"] % 3 == 2)
    found = matched.of_all(points, ["frozen_accuracy", "knn_accuracy"])
    frozen, knn = (found[column]["LayerNorm"]["differences"]["0.5"] for column in found)
    assert frozen == knn and frozen["mse_range"][1] < 0.9  # from the third epoch on
    assert matched.describe(points, "frozen_accuracy")["LayerNorm"]["differences"]["0.5"]["mse_range"][1] == 1
