"""Runs that train upstream's model."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from maekit import files
from maekit.model import upstream
from tests.support import KIT, run, train_here
from tests.support.runs import summary
from tests.support.upstream import trained_by

QUICK = ("--demo", "--epochs", "2", "--max_images", "128", "--batch_size", "16", "--num_workers", "0")
NORMS = ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh")
CLOCK = ("epoch_time_s", "images_per_s", "peak_memory_mb")


def log(folder):
    """The log without its clock columns."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in files.read_csv(folder / "log.csv")]


def upstream_as_source(clone):
    return {"source": "upstream", "path": str(clone.path), "commit": clone.commit, "patched": True}


@pytest.fixture(scope="module", params=NORMS)
def two_runs(request, clone, theirs, tmp_path_factory):
    """(flags, {source: run folder}) of one norm: the same run of upstream's model and of ours."""
    root, command = tmp_path_factory.mktemp(request.param), [*QUICK, "--norm", request.param]
    folders = {"upstream": root / "upstream", "builtin": root / "builtin"}
    for source, folder in folders.items():
        place = "builtin" if source == "builtin" else clone.path
        train_here(*command, "--mae_dir", place, "--output_dir", folder, check=0)
    return command, folders


def test_a_run_of_upstreams_model_has_the_losses_of_ours(two_runs):
    _, folders = two_runs
    found, expected = (log(folders[source]) for source in ("builtin", "upstream"))
    assert len(found) == len(expected) == 2
    for ours, others in zip(found, expected):
        for name in ("train_loss", "val_mse", "lr"):
            assert ours[name] == pytest.approx(others[name], rel=1e-4, abs=0), name
    assert found[1]["train_loss"] < found[0]["train_loss"]


def test_a_run_says_whose_model_it_trained(two_runs, clone):
    _, folders = two_runs
    assert trained_by(folders["upstream"]) == upstream_as_source(clone)
    assert trained_by(folders["builtin"]) == {"source": "builtin"}


def test_a_folder_does_not_go_on_with_the_other_source(two_runs, clone):
    command, folders = two_runs
    for source, other in (("upstream", "builtin"), ("builtin", clone.path)):
        before = (folders[source] / "checkpoint.pth").read_bytes()
        error = train_here(*command, "--mae_dir", other, "--output_dir", folders[source], check=2).stderr
        assert f"--mae_dir upstream at {clone.commit[:12]}" in error and len(error.strip().splitlines()) == 1
        assert f"--output_dir {folders[source]}: holds a run with " in error
        assert (folders[source] / "checkpoint.pth").read_bytes() == before


def test_k_nn_finds_as_much_in_upstreams_encoder_as_in_ours(two_runs, tmp_path):
    _, folders = two_runs
    found = {}
    for source, folder in folders.items():
        out = tmp_path / source
        train_here(
            "--demo",
            "--task",
            "knn",
            "--init",
            folder,
            "--max_images",
            "128",
            "--num_workers",
            "0",
            "--output_dir",
            out,
            check=0,
        )
        found[source] = summary(out)["acc1"]
    assert found["upstream"] == found["builtin"] and 10 < found["upstream"] <= 100  # by chance 10


@pytest.mark.parametrize("decoder", [(), ("--decoder_type", "linear")], ids=["own decoder", "linear decoder"])
def test_alpha_and_all_probes_work_on_upstreams_model_and_say_what_they_say_on_ours(
    decoder, clone, theirs, whole_demo, tmp_path
):
    command = [*QUICK, *decoder, "--alpha", "0.1", "--probes", "all"]
    logs = []
    for name, place in (("upstream", clone.path), ("builtin", "builtin")):
        train_here(*command, "--mae_dir", place, "--output_dir", tmp_path / name, check=0)
        logs.append(log(tmp_path / name))
    for ours, others in zip(*logs):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse"):
            assert ours[name] == pytest.approx(others[name], rel=1e-4), name
    scores = ("accuracy", "frozen_accuracy", "knn_accuracy", "untrained_frozen_accuracy", "untrained_knn_accuracy")
    for name in scores:
        assert 0 < logs[0][-1][name] < 100
        assert logs[0][-1][name] == pytest.approx(logs[1][-1][name], abs=1), name  # two of 200 images may flip


def test_a_killed_run_of_upstreams_model_goes_on_to_the_same_curve(clone, theirs, tmp_path):
    command = [*QUICK, "--epochs", "4", "--norm", "adyt", "--alpha", "0.1", "--probes", "all", "--mae_dir", clone.path]
    train_here(*command, "--output_dir", tmp_path / "whole", check=0)
    killed = tmp_path / "killed"
    words = [str(word) for word in (sys.executable, KIT / "train.py", *command, "--output_dir", killed)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (killed / "checkpoint.pth").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "summary.json").exists()
    assert "goes on with epoch" in train_here(*command, "--output_dir", killed, check=0).stdout
    assert log(killed) == log(tmp_path / "whole")
    assert trained_by(killed)["source"] == "upstream"


def test_a_clone_on_pythonpath_is_trained(clone, demo_dir, tmp_path):
    """export PYTHONPATH=$PYTHONPATH:DIR, for a kit with no mae beside the scripts."""
    kit = tmp_path / "kit"
    shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "norms.py", upstream.PATCH.name):
        shutil.copy(KIT / name, kit / name)
    command = [sys.executable, kit / "train.py", "--imagenet_dir", demo_dir, "--model", "mae_vit_demo_patch8"]
    command += ["--input_size", "32", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0"]
    export = 'export PYTHONPATH="$PYTHONPATH:$1"; shift; exec "$@"'
    run("bash", "-c", export, "bash", clone.path, *command, "--output_dir", "run", cwd=tmp_path, check=0)
    assert trained_by(tmp_path / "run") == upstream_as_source(clone)
    run(*command, "--output_dir", "other", cwd=tmp_path, check=0)
    assert trained_by(tmp_path / "other") == {"source": "builtin"}
