"""analysis.py gap: what cannot be used, runs that did not end well, and odd mixtures."""

import csv
import re
import resource
import sys

import pytest

from maekit.analysis import gap, gap_figures
from maekit.runs.trajectories import load_trajectories, read_trajectories
from tests.support import KIT, run
from tests.support.gap import analyse, complaint, statistics
from tests.support.runs import write_original, write_trajectory

CLASH = 0.35  # a value that several MSE share


def test_a_log_folder_without_trajectories(tmp_path):
    assert "no such folder" in complaint(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no trajectory.json in it" in complaint(tmp_path / "empty", tmp_path / "out")
    write_trajectory(tmp_path / "bad", 0.5).write_text("{")
    assert "1 that cannot be used" in complaint(tmp_path / "bad", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "no JSON, or cut off"),
        (lambda text: "hello", "no JSON"),
        (lambda text: "", "no JSON"),
        (lambda text: "[]", "no trajectory"),
        (lambda text: text.replace('"mse"', '"error"', 1), "lacks the key mse in point 0"),
        (lambda text: text.replace('"accuracy"', '"acc"', 1), "lacks the key accuracy in point 0"),
        (lambda text: text.replace('"epoch": 3', '"time": 3'), "lacks the key epoch in point 3"),
        (lambda text: text.replace('"alpha": 0.5', '"a": 0.5', 1), "lacks the key alpha"),
        (lambda text: text.replace('"trajectory"', '"points"'), "lacks the key trajectory"),
        (lambda text: re.sub(r'"mse": [\d.]+', '"mse": NaN', text, count=1), "holds NaN"),
        (lambda text: re.sub(r'"frozen_accuracy": [\d.]+', '"frozen_accuracy": Infinity', text), "holds Infinity"),
        (lambda text: re.sub(r'"mse": [\d.]+', '"mse": 1e999', text, count=1), "holds inf for mse in point 0"),
        (lambda text: re.sub(r'"mse": [\d.]+', '"mse": "low"', text, count=1), "holds 'low' for mse in point 0"),
        (lambda text: re.sub(r'"trajectory": .*', '"trajectory": []}', text), "has no points"),
        (lambda text: text.replace('"seed": 0', '"seed": "a"'), "holds 'a' for seed"),
        (lambda text: text.replace('"model": "vit_tiny"', '"model": ["a"]'), "holds ['a'] for model"),
        (lambda text: text.replace('"epoch": 3', '"epoch": 0.5'), "holds 0.5 for epoch in point 3"),
        (lambda text: text.replace('"status"', '"flat_colour": "x", "status"'), "holds 'x' for flat_colour"),
    ],
)
def test_a_trajectory_that_cannot_be_used_is_named_and_the_rest_is_analysed(damage, says, tmp_path):
    for alpha in (-0.5, 0.0):
        write_trajectory(tmp_path / "in", alpha)
    bad = write_trajectory(tmp_path / "in", 0.5)
    bad.write_text(damage(bad.read_text()))
    result = analyse(tmp_path / "in", tmp_path / "out", "--accuracy", "joint")
    assert f"{bad}: " in result.stdout and says in result.stdout
    assert "2 trajectories with 12 points analysed, 1 left out" in result.stdout
    found = statistics(tmp_path / "out")
    assert found["summary"]["n_runs"] == 2 and len(found["skipped"]) == 1 and str(bad) in found["skipped"][0]


@pytest.mark.parametrize(
    "content", ['{"identity": {', '{"identity": [1]}', '{"identity": "\xff"}'.encode("latin-1"), '{"identity": null}']
)
def test_a_damaged_config_is_named_once_and_everything_is_written(content, tmp_path):
    for alpha in (0.0, 0.5):
        write_trajectory(tmp_path / "in", alpha)
    bad = write_trajectory(tmp_path / "in", -0.5).with_name("config.json")
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    (bad.parents[1] / "config.json").write_text("[]")  # of another program's, perhaps
    result = analyse(tmp_path / "in", tmp_path / "out", "--accuracy", "joint")
    lines = [line for line in result.stdout.splitlines() if str(bad.parent) in line]
    assert len(lines) == 1 and lines[0].startswith("note: ") and "is damaged" in lines[0] and "eft out" in lines[0]
    assert (tmp_path / "out/report.html").exists() and statistics(tmp_path / "out")["summary"]["n_runs"] == 3


def test_one_mse_value_has_no_gap_and_the_statistics_say_so(tmp_path):
    for alpha in (0.0, 0.5):
        write_original(tmp_path / "in", alpha, points=((CLASH, 20.0 + alpha),))
    error = complaint(tmp_path / "in", tmp_path / "out")
    assert "1 distinct MSE value in 2 points" in error and "Warning" not in error
    found = statistics(tmp_path / "out")
    assert found["reconstruction_gap"] is None and "1 distinct MSE value" in found["note"]
    assert (tmp_path / "out/tube_scatter_signed_alpha.png").exists() and (tmp_path / "out/gap_table.csv").exists()


@pytest.mark.slow
def test_open_shows_what_was_written_for_a_sweep_without_a_gap_too(tmp_path):
    """BROWSER is what Python's webbrowser starts; where nothing was written, an old page is not shown."""
    (tmp_path / "see").write_text('#!/bin/sh\necho "$1" >> "$0.out"\n')
    (tmp_path / "see").chmod(0o755)
    write_original(tmp_path / "in", 0.5, points=((CLASH, 20.0),))
    for flags in ([], ["--accuracy", "knn"]):
        run(
            sys.executable,
            KIT / "analysis.py",
            "gap",
            "--log_dir",
            tmp_path / "in",
            "--output_dir",
            tmp_path / "out",
            "--open",
            *flags,
            check=2,
            env={"BROWSER": f"{tmp_path}/see %s"},
        )
    assert (tmp_path / "see.out").read_text() == (tmp_path / "out/report.html").as_uri() + "\n"


def test_an_accuracy_that_no_run_measured(tmp_path):
    write_original(tmp_path / "in", 0.5)
    error = complaint(tmp_path / "in", tmp_path / "out", "--accuracy", "knn")
    assert "--accuracy knn" in error and "they have joint" in error
    write_trajectory(tmp_path / "none", 0.5, probes=False)
    assert "no trajectory has an accuracy" in complaint(tmp_path / "none", tmp_path / "out")


# Runs that did not end well, and odd mixtures


@pytest.mark.slow
def test_diverged_and_unended_runs_are_drawn_and_named(tmp_path):
    for alpha in (-0.5, 0.0, 0.5):
        write_trajectory(tmp_path / "in", alpha)
    cut = write_trajectory(tmp_path / "in", -10.0, epochs=2, status="diverged")
    gone = write_trajectory(tmp_path / "in", -5.0, epochs=0, status="diverged")
    going = write_trajectory(tmp_path / "in", 5.0, epochs=3, status="running")
    out = analyse(tmp_path / "in", tmp_path / "out").stdout
    assert f"{cut.parent}: diverged, 2 finite epochs" in out and f"{gone.parent}: diverged, 0 finite epochs" in out
    assert f"{going.parent}: not ended, 3 finite epochs" in out
    found = statistics(tmp_path / "out")
    assert set(found["diverged"]) == {str(cut.parent), str(gone.parent)}
    assert found["summary"]["total_points"] == 21 and found["summary"]["n_runs"] == 4  # those of diverged runs in none
    with open(tmp_path / "out/gap_table.csv", newline="") as f:
        rows = {float(row["alpha"]): row for row in csv.DictReader(f)}
    assert rows[-10.0]["n_diverged"] == "1" and rows[-10.0]["mse_mean"] == "" and rows[-5.0]["n_seeds"] == "0"
    assert rows[5.0]["n_unended"] == "1" and rows[5.0]["mse_mean"] == "" and rows[0.5]["n_unended"] == "0"
    trajectories, _ = read_trajectories(tmp_path / "in")
    points = load_trajectories(tmp_path / "in")
    figure = gap_figures.alpha_vs_final(points, gap.describe(points, "accuracy"), trajectories, "accuracy")
    assert any("2 diverged" in t.get_text() for legend in figure.legends for t in legend.get_texts())
    tube = gap_figures.tube_scatter(points, gap.describe(points, "accuracy"), "accuracy")
    assert "points, 1 diverged" in tube.axes[0].get_title(loc="left")


@pytest.mark.slow
def test_a_point_of_a_diverged_run_does_not_move_the_bins(tmp_path):
    for alpha in (-0.5, 0.0, 0.5):
        write_trajectory(tmp_path / "in", alpha)
    analyse(tmp_path / "in", tmp_path / "before", "--accuracy", "joint")
    far = write_trajectory(tmp_path / "in", -10.0, epochs=1, status="diverged")
    far.write_text(re.sub(r'"mse": [\d.]+', '"mse": 350.0', far.read_text()))
    analyse(tmp_path / "in", tmp_path / "after", "--accuracy", "joint")
    before, after = (statistics(tmp_path / name) for name in ("before", "after"))
    assert after["bin_statistics"] == before["bin_statistics"] and len(after["diverged"]) == 1


def test_the_baseline_is_that_of_the_longest_run(tmp_path):
    """The probe of an untrained encoder gets better with every epoch; a run that ended early must not lower it."""
    write_trajectory(tmp_path / "in", 0.5)
    write_trajectory(tmp_path / "in", -10.0, epochs=1, status="diverged")
    write_trajectory(tmp_path / "in", 0.1, epochs=2, status="running")
    analyse(tmp_path / "in", tmp_path / "out", "--accuracy", "frozen")
    assert statistics(tmp_path / "out", "_frozen")["untrained"]["mean"] == 45.0


@pytest.mark.slow
def test_a_run_that_has_no_epoch_yet_does_not_stop_the_analysis(tmp_path):
    for alpha in (0.0, 0.5):
        write_trajectory(tmp_path / "in", alpha)
    going = write_trajectory(tmp_path / "in", -0.5, epochs=0, status="running")
    out = analyse(tmp_path / "in", tmp_path / "out").stdout
    assert f"{going.parent}: not ended, 0 finite epochs" in out


@pytest.mark.slow
def test_a_folder_where_every_run_diverged_at_once_says_so(tmp_path):
    for alpha in (-10.0, 10.0):
        write_trajectory(tmp_path / "in", alpha, epochs=0, status="diverged")
    for flags in ((), ("--accuracy", "joint")):
        assert "Every run diverged" in complaint(tmp_path / "in", tmp_path / "out", *flags)
    write_trajectory(tmp_path / "in", 5.0, epochs=3, status="diverged")
    assert "every run diverged" in complaint(tmp_path / "in", tmp_path / "out", "--accuracy", "joint")
    assert (tmp_path / "out/gap_table.csv").exists()


def test_sweeps_of_different_lengths_and_copies_of_a_run_are_pooled_with_a_notice(tmp_path):
    write_trajectory(tmp_path / "in/quick", 0.5, epochs=3)
    first = write_trajectory(tmp_path / "in/full", 0.5)
    out = analyse(tmp_path / "in", tmp_path / "out", "--accuracy", "joint").stdout
    assert "runs of 3, 6 epochs are pooled" in out
    assert f"and {first.parent} are the same run, counted twice" in out


@pytest.mark.slow
def test_a_thousand_trajectories_of_fifty_epochs_take_at_most_a_minute(tmp_path):
    for seed in range(10):
        for norm in ("LayerNorm", "DynamicTanh"):
            for lr in (1e-3, 1e-4):
                for i in range(25):
                    write_trajectory(tmp_path / "in", (i - 12) / 4, lr=lr, norm=norm, seed=seed, epochs=50)
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    flags = ("--log_dir", tmp_path / "in", "--output_dir", tmp_path / "out")
    out = run(sys.executable, KIT / "analysis.py", "gap", *flags, check=0, cold=True, draw=True).stdout
    assert "1000 trajectories with 50000 points analysed" in out
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert took.ru_utime - began.ru_utime < 2 * 60  # of two cores, and whatever else they do
    assert (tmp_path / "out/tube_scatter_signed_alpha.pdf").stat().st_size < 5e6
