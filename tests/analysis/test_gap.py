"""analysis.py gap: trajectories of this kit and of the original scripts in, statistics, table and figures out."""

import csv
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from maekit.analysis import gap, gap_figures
from maekit.runs.trajectories import load_trajectories, read_trajectories
from tests.support.gap import analyse, complaint, statistics
from tests.support.runs import write_original, write_trajectory

FIGURES = (
    "tube_scatter_signed_alpha",
    "alpha_vs_final_metrics",
    "negative_vs_positive_comparison",
    "accuracy_over_epochs",
)


def plain_gap(points, n_bins):
    """Γ and its bins by plain loops over (mse, accuracy) pairs."""
    low, high = min(m for m, _ in points), max(m for m, _ in points)
    total, bins = 0.0, []
    for i in range(n_bins):
        left, right = low + (high - low) * i / n_bins, low + (high - low) * (i + 1) / n_bins
        inside = [a for m, a in points if left <= m < right or (i == n_bins - 1 and m == high)]
        if len(inside) >= 2:
            total += max(inside) - min(inside)
            bins.append((i, len(inside), min(inside), max(inside), sum(inside) / len(inside)))
    return total, bins


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Five alphas, two norms, three seeds."""
    root = tmp_path_factory.mktemp("sweep")
    for alpha in (-10.0, -0.5, 0.0, 0.00001, 0.5):
        for norm in ("LayerNorm", "DynamicTanh"):
            for seed in range(3):
                write_trajectory(root, alpha, norm=norm, seed=seed)
    return root


@pytest.fixture(scope="module")
def analysed(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, analyse(sweep, out)


def all_points(root, name="accuracy"):
    """(mse, accuracy) of every point with that accuracy, by json alone."""
    files = [json.loads(f.read_text()) for f in root.rglob("trajectory.json")]
    return [(p["mse"], p[name]) for f in files for p in f["trajectory"] if p[name] is not None]


@pytest.mark.parametrize(
    ("name", "suffix"), [("accuracy", ""), ("frozen_accuracy", "_frozen"), ("knn_accuracy", "_knn")]
)
def test_the_statistics_are_those_of_plain_loops(name, suffix, sweep, analysed):
    points = all_points(sweep, name)
    gamma, bins = plain_gap(points, 15)
    found = statistics(analysed[0], suffix)
    assert found["reconstruction_gap"] == pytest.approx(gamma, abs=1e-9) and found["n_bins"] == len(bins) > 3
    for ours, (index, n, low, high, mean) in zip(found["bin_statistics"], bins, strict=True):
        assert (ours["bin_index"], ours["n_points"], ours["acc_min"], ours["acc_max"]) == (index, n, low, high)
        assert ours["acc_spread"] == pytest.approx(high - low) and ours["acc_mean"] == pytest.approx(mean)
    assert found["largest_bin_spread"] == pytest.approx(max(high - low for _, _, low, high, _ in bins))
    assert found["bins_over_5_points"] == sum(high - low > 5 for _, _, low, high, _ in bins)
    frame = pd.DataFrame(points, columns=["mse", "acc"])
    assert found["overall_correlation"]["spearman_r"] == pytest.approx(frame.corr(method="spearman").iloc[0, 1])
    assert found["summary"] == {
        "n_experiments": 5,
        "total_points": len(points),
        "n_runs": 30,
        "mse_range": [frame.mse.min(), frame.mse.max()],
        "acc_range": [frame.acc.min(), frame.acc.max()],
    }
    assert list(found["alpha_correlations"]) == ["-10.0", "-0.5", "0.0", "0.00001", "0.5"]


def test_the_originals_keys_are_all_there(analysed):
    found = statistics(analysed[0])
    assert {
        "reconstruction_gap",
        "n_bins",
        "bin_statistics",
        "alpha_correlations",
        "overall_correlation",
        "summary",
    } <= set(found)
    assert {
        "bin_index",
        "mse_min",
        "mse_max",
        "n_points",
        "acc_min",
        "acc_max",
        "acc_spread",
        "acc_mean",
        "acc_std",
    } <= set(found["bin_statistics"][0])


def test_the_number_in_the_figure_is_the_number_in_the_json(sweep, analysed):
    """Every Γ that is written in a figure, or printed, stands in the JSON."""
    points = load_trajectories(sweep)
    for column, suffix in (("accuracy", ""), ("frozen_accuracy", "_frozen"), ("knn_accuracy", "_knn")):
        found = statistics(analysed[0], suffix)
        known = {found["reconstruction_gap"], *(p["reconstruction_gap"] for p in found["per_norm"].values())}
        for part in found["per_norm"].values():
            known |= {side["reconstruction_gap"] for side in part["signs"].values()}
        drawn = []
        these = points[points[column].notna()]
        for draw in (gap_figures.tube_scatter, gap_figures.negative_vs_positive):
            figure = draw(these, gap.describe(these, column), column)
            texts = [figure.get_suptitle(), *(ax.get_title(loc="left") for ax in figure.axes)]
            drawn += [float(value) for text in texts for value in re.findall(r"Γ = ([\d.]+)", text)]
        assert len(drawn) == 1 + 2 + 4
        assert {f"{value:.1f}" for value in drawn} <= {f"{value:.1f}" for value in known}
        assert f"{found['reconstruction_gap']:.1f}" in {f"{value:.1f}" for value in drawn}
        assert f"Γ = {found['reconstruction_gap']:.1f} percentage points" in analysed[1].stdout


def test_every_norm_has_its_own_gap_in_the_same_bins(sweep, analysed):
    found = statistics(analysed[0])
    assert list(found["per_norm"]) == ["LayerNorm", "DynamicTanh"]
    edges = found["bin_edges"]
    for norm, part in found["per_norm"].items():
        files = [json.loads(f.read_text()) for f in sweep.rglob("trajectory.json")]
        points = [(p["mse"], p["accuracy"]) for f in files if f["norm"] == norm for p in f["trajectory"]]
        total = 0.0
        for i in range(15):
            last = i == 14
            inside = [a for m, a in points if edges[i] <= m < edges[i + 1] or (last and m == edges[i + 1])]
            total += max(inside) - min(inside) if len(inside) > 1 else 0
        assert part["reconstruction_gap"] == pytest.approx(total) and part["n_runs"] == 15


@pytest.mark.slow
def test_with_three_seeds_there_is_an_interval_and_with_fewer_the_output_says_why_not(sweep, analysed, tmp_path):
    found = statistics(analysed[0])["over_seeds"]
    values = list(found["values"].values())
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    half = 4.302652729911275 * deviation / math.sqrt(3)  # t of two degrees of freedom, 97.5 %
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half))
    assert "95 % interval" in analysed[1].stdout and statistics(analysed[0])["noise_floor"]["n"] == 10
    for alpha in (0.0, 0.5):
        for seed in (0, 1):
            write_trajectory(tmp_path / "in", alpha, seed=seed)
    out = analyse(tmp_path / "in", tmp_path / "out").stdout
    assert "2 seeds, so no interval; it takes 3" in out
    found = statistics(tmp_path / "out")["over_seeds"]
    assert found["low"] is None and found["n"] == 2 and "it takes 3" in found["note"]


@pytest.mark.slow
def test_the_untrained_encoder_stands_beside_every_accuracy(sweep, analysed):
    out, result = analysed
    assert statistics(out)["untrained"]["mean"] == statistics(out, "_frozen")["untrained"]["mean"] == 45.0
    assert statistics(out, "_knn")["untrained"]["mean"] == 45.0
    assert result.stdout.count("untrained encoder: LayerNorm 45.0 %") == 3
    points = load_trajectories(sweep)
    found, _ = read_trajectories(sweep)
    for column in ("accuracy", "frozen_accuracy", "knn_accuracy"):
        these = points[points[column].notna()]
        for figure in (
            gap_figures.tube_scatter(these, gap.describe(these, column), column),
            gap_figures.negative_vs_positive(these, gap.describe(these, column), column),
            gap_figures.alpha_vs_final(these, gap.describe(these, column), found, column),
            gap_figures.over_epochs(these, found, column),
        ):
            legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
            assert any("untrained" in t.get_text() for legend in legends for t in legend.get_texts())


def test_the_table_has_a_row_per_norm_rate_and_alpha(sweep, analysed):
    with open(analysed[0] / "gap_table.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 10
    row = next(r for r in rows if r["norm"] == "DynamicTanh" and float(r["alpha"]) == 0.5)
    files = [json.loads(f.read_text()) for f in (sweep / "0.5").rglob("DynamicTanh*/trajectory.json")]
    for column, name in (("mse", "mse"), ("accuracy", "accuracy"), ("frozen_accuracy", "frozen_accuracy")):
        finals = [f["trajectory"][-1][name] for f in files]
        assert float(row[f"{column}_mean"]) == pytest.approx(np.mean(finals))
        assert float(row[f"{column}_std"]) == pytest.approx(np.std(finals, ddof=1))
    assert row["n_seeds"] == "3" and row["n_diverged"] == "0" and row["epochs"] == "6"
    assert float(row["untrained_frozen_accuracy_mean"]) == 45.0


@pytest.mark.slow
def test_every_figure_is_there_as_png_and_pdf_and_shows_something(sweep, tmp_path):
    analyse(sweep, tmp_path, draw=True)
    names = ["mse_over_epochs", *(name + suffix for name in FIGURES for suffix in ("", "_frozen", "_knn"))]
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert pixels.shape[1] >= 900 and pixels.std() > 10, name
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_points_have_one_size_and_hues_say_the_sign_of_alpha(sweep):
    points = load_trajectories(sweep)
    figure = gap_figures.tube_scatter(points, gap.describe(points, "accuracy"), "accuracy")
    sizes = {size for ax in figure.axes for c in ax.collections for size in np.ravel(getattr(c, "_sizes", []))}
    assert len(sizes - {36.0}) == 1  # 36: what boxes are said to have
    hues = gap_figures.Hues(points["alpha"])
    for alpha in (-10.0, -0.5, 0.00001, 0.5):
        red, _, blue = hues.rgb([alpha])[0]
        assert (red > blue) == (alpha < 0) and red != blue
    assert hues.rgb([0.0])[0].tolist() == [1, 1, 1]
    strengths = [1 - hues.rgb([a])[0][0] for a in (0.00001, 0.5)]
    assert strengths[0] < strengths[1]


def test_brightness_grows_with_the_epoch_and_the_learning_rate(tmp_path):
    for lr in (1e-4, 1e-3):
        write_trajectory(tmp_path, 0.5, lr=lr)
    points = load_trajectories(tmp_path)
    progress = gap_figures._progress(points, points)
    low, high = (progress[points["lr"] == lr].tolist() for lr in (1e-4, 1e-3))
    assert low == sorted(low) and high == sorted(high) and all(a < b for a, b in zip(low, high))
    assert min(low) == 0 and max(high) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("probe", "suffix"), [("joint", ""), ("frozen", "_frozen"), ("knn", "_knn")])
def test_accuracy_chooses_the_probe(probe, suffix, sweep, tmp_path):
    analyse(sweep, tmp_path, "--accuracy", probe)
    assert [f.name for f in tmp_path.glob("gap_statistics*.json")] == [f"gap_statistics{suffix}.json"]


@pytest.mark.slow
def test_n_bins_and_binning_change_the_gap(sweep, tmp_path):
    for name, flags in (("few", ("--n_bins", "4")), ("quantile", ("--binning", "quantile"))):
        analyse(sweep, tmp_path / name, *flags, "--accuracy", "joint")
    few, quantile = statistics(tmp_path / "few"), statistics(tmp_path / "quantile")
    assert few["reconstruction_gap"] == pytest.approx(plain_gap(all_points(sweep), 4)[0])
    counts = [b["n_points"] for b in quantile["bin_statistics"]]
    assert len(counts) == 15 and max(counts) - min(counts) <= 3 and quantile["binning"] == "quantile"


def test_bins_below_one_and_words_for_numbers(sweep, tmp_path):
    assert "--n_bins 0: must be 1 or more" in complaint(sweep, tmp_path, "--n_bins", "0")
    assert "--n_bins" in complaint(sweep, tmp_path, "--n_bins", "many")
    assert "--binning" in complaint(sweep, tmp_path, "--binning", "log")
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_written(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in complaint(sweep, tmp_path / "file" / "below")


# The original scripts' files


def test_the_original_scripts_files_are_read_and_drawn_beside_ours(tmp_path):
    write_original(tmp_path / "in", -0.5, lr=1e-4, folder="neg0.5_lr1eneg04")
    write_original(tmp_path / "in", 0.5, folder="deep/er/0.5")
    write_trajectory(tmp_path / "in", 0.1)
    points = load_trajectories(tmp_path / "in")
    assert len(points) == 2 + 2 + 6 and set(points["norm"]) == {"LayerNorm"}
    assert set(points[points["alpha"] == 0.5]["lr"]) == {1.5e-4} and set(points[points["alpha"] == -0.5]["lr"]) == {
        1e-4
    }
    analyse(tmp_path / "in", tmp_path / "out", "--accuracy", "joint")
    assert statistics(tmp_path / "out")["summary"]["n_experiments"] == 3


def test_a_folder_of_original_files_alone_has_the_joint_accuracy_only(tmp_path):
    for alpha in (-0.5, 0.0, 0.5):
        write_original(tmp_path / "in", alpha, points=((0.7, 20 + alpha), (0.5, 30 + alpha), (0.4, 40 + alpha)))
    analyse(tmp_path / "in", tmp_path / "out")
    found = statistics(tmp_path / "out")
    assert found["reconstruction_gap"] == pytest.approx(3.0) and found["n_bins"] == 3 and found["untrained"] is None
    assert not list(tmp_path.glob("out/*_frozen*")) and (tmp_path / "out/tube_scatter_signed_alpha.png").exists()
