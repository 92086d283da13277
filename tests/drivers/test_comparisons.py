"""run_comparison.sh, as a user types it: what it trains, repeats, survives and shows."""

import csv
import json
import math
import os
import shlex
import signal
import statistics
import time

import pytest

from maekit import files
from tests.support import KIT, ended, run
from tests.support.processes import processes, start

DRIVER = KIT / "run_comparison.sh"
QUICK = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "32", "--num_workers", "0")


@pytest.mark.slow
def test_methods_with_options_run_side_by_side_are_counted_and_not_repeated(tmp_path):
    methods = ("--methods", "adyt", "--adyt_lambda", "0.01 0.5", "--control")
    flags = (*QUICK, *methods, "--output_dir", tmp_path, "--jobs", "2")
    run(DRIVER, *flags, check=0)
    names = ("AdaptiveDynamicTanh-lambda0.01", "AdaptiveDynamicTanh-lambda0.5", "DynamicTanh-alpha2.0")
    for name, flag, expected in zip(names, ("adyt_lambda", "adyt_lambda", "dyt_alpha_init"), (0.01, 0.5, 2.0)):
        assert json.loads((tmp_path / name / "seed0/config.json").read_text())["identity"][flag] == expected
    with open(tmp_path / "comparison_table.csv", newline="") as f:
        table = {row["model"]: float(row["val_mse"]) for row in csv.DictReader(f)}
    assert set(table) == set(names) and len(set(table.values())) == 3  # the options change the run
    assert "3 done" in run(DRIVER, "status", *flags, check=0).stdout
    assert ended(run(DRIVER, *flags, "--jobs", "1", check=0).stdout) == (0, 3)
    assert (tmp_path / "typed.txt").read_text().count("run_comparison.sh") == 2  # both commands
    assert "run_comparison.sh" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_comparison_goes_on_to_evaluations_and_repeats_none(tmp_path):
    """Pre-trained and untrained, for two seeds; a column each, and their difference paired by seed."""
    evaluations = ("--eval", "linprobe,knn_mean", "--linprobe_flags", "--epochs 1 --batch_size 16")
    evaluations += ("--knn_flags", "--layers all")
    flags = (*QUICK, "--methods", "dyt", "--seeds", "0 1 2", *evaluations, "--output_dir", tmp_path)
    result = run(DRIVER, *flags, check=0, draw=True)
    with open(tmp_path / "comparison_table.csv", newline="") as f:
        table = {(row["model"], row["seed"]): row for row in csv.DictReader(f)}
    for (method, seed), row in table.items():
        for name in ("linprobe", "untrained_linprobe"):
            if seed.isdecimal():
                summary = json.loads((tmp_path / method / f"seed{seed}" / name / "summary.json").read_text())
                assert float(row[f"{name}_accuracy"]) == summary["acc1"]
                assert summary["task"] in name and summary["status"] == "finished"
    differences = [
        float(table["DynamicTanh", seed]["linprobe_accuracy"])
        - float(table["DynamicTanh", seed]["untrained_linprobe_accuracy"])
        for seed in "012"
    ]
    mean, half = statistics.mean(differences), 4.302653 * statistics.stdev(differences) / math.sqrt(3)
    line = next(text for text in result.stdout.splitlines() if "DynamicTanh linprobe" in text)
    assert f"{mean:+.1f} (95 %: {mean - half:+.1f} to {mean + half:+.1f}), n = 3" in line
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"evaluation_comparison.{suffix}").stat().st_size > 5000
        assert (tmp_path / f"accuracy_over_depth.{suffix}").stat().st_size > 5000
    assert "not a fair comparison" not in result.stdout

    for name in ("knn_mean", "untrained_knn_mean"):
        layers = files.read_csv(tmp_path / "DynamicTanh/seed1" / name / "accuracy_by_layer.csv")
        assert [row["layer"] for row in layers] == [1, 2, "output"]
        assert layers[-1]["accuracy"] == float(table["DynamicTanh", "1"][f"{name}_accuracy"])

    assert ended(run(DRIVER, *flags, check=0).stdout) == (0, 3 + 12)


@pytest.mark.slow
def test_the_encoder_of_a_run_that_diverged_is_shown_as_such(tmp_path):
    flags = shlex.split("--batch_size 8 --methods ln --lr 1e18 --eval knn")
    result = run(DRIVER, *QUICK, *flags, "--output_dir", tmp_path, check=0)
    assert "has diverged in its first epoch, there is nothing to evaluate" in result.stdout
    assert "untrained_knn_accuracy" in (tmp_path / "comparison_table.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_bad_input_is_said_once_before_the_first_run(tmp_path):
    for flags in (("--imagenet_dir", tmp_path / "none"), ("--no_such_flag",), ("--demo", "--lr", "-1")):
        result = run(DRIVER, *flags, "--output_dir", tmp_path / "out", check=2)
        assert len(result.stderr.strip().splitlines()) == 1 and "[1/3]" not in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_failed_method_does_not_stop_the_others_and_is_listed_last(tmp_path):
    blocked = tmp_path / "LayerNorm"
    blocked.mkdir()
    (blocked / "seed0").write_text("in the way")
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=1)
    for method in ("DynamicTanh", "AdaptiveDynamicTanh"):
        assert json.loads((tmp_path / method / "seed0/summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "loss_comparison.png").exists()
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("exit code 2:") and "--norm LayerNorm" in last

    (blocked / "seed0").unlink()  # out of the way: the same command trains what is missing, and only that
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=0)
    assert ended(result.stdout) == (1, 2)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.pth")}
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=0)
    assert ended(result.stdout) == (0, 3)
    assert kept == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.pth")}


@pytest.mark.slow
def test_when_every_run_fails_each_is_listed(tmp_path):
    for method in ("LayerNorm", "DynamicTanh"):
        (tmp_path / method).write_text("in the way")
    result = run(DRIVER, *QUICK, "--methods", "ln dyt", "--output_dir", tmp_path, check=1)
    assert [line.split(":")[0] for line in result.stderr.strip().splitlines()[-2:]] == ["exit code 2"] * 2


@pytest.mark.slow
def test_imagenet_as_kaggle_lays_it_out(ilsvrc, tmp_path):
    """Wnid folders, flat val, LOC_val_solution.csv, photographs at full size; the README's second command, shortened."""
    flags = shlex.split("--epochs 1 --max_images 64 --batch_size 16 --model mae_vit_tiny_patch16 --input_size 96")
    run(DRIVER, "--imagenet_dir", ilsvrc, *flags, "--output_dir", tmp_path, check=0)
    for method in ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"):
        config = json.loads((tmp_path / method / "seed0/config.json").read_text())
        assert config["data"]["source"] == "ILSVRC" and config["data"]["classes"] == 3
        (row,) = files.read_csv(tmp_path / method / "seed0/log.csv")
        assert 0 < row["val_mse"] < 10
    assert (tmp_path / "reconstruction_comparison.pdf").exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_driver_and_its_run(tmp_path):
    flags = shlex.split("--demo --epochs 200 --max_images 64 --num_workers 1 --jobs 1")
    with start([DRIVER, *flags, "--output_dir", tmp_path]) as driver:
        while not (tmp_path / "LayerNorm/seed0/checkpoint.pth").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130 and "stopped: 0 of 3 done, 0 failed; the same command goes on from there" in out
    assert not (tmp_path / "DynamicTanh").exists()
    for _ in range(50):
        left = processes(str(tmp_path))
        if not left:
            break
        time.sleep(0.1)
    assert not left
