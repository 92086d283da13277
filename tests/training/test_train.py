"""One run: equal where it must be equal, different where a flag says so, and never lost."""

import hashlib
import json
import math
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

import train as train_module
from maekit import files
from maekit.data import loader
from maekit.settings import methods
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.settings.typed import OptimSettings
from maekit.training.trainer import learning_rate
from tests.support import WNIDS, train, train_here, write_ilsvrc
from tests.support.faults import start
from tests.support.runs import QUICK, flat, losses, weights


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A quick run with no flag beyond QUICK."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train_here(*QUICK, "--output_dir", folder, check=0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_the_same_command_twice_gives_the_same_numbers_to_the_last_digit(norm, tmp_path):
    flags = (*QUICK, "--norm", norm, "--num_workers", "2")
    for name in "ab":
        train(*flags, "--output_dir", tmp_path / name, check=0)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_all_methods_see_the_same_images_crops_and_masks(tmp_path, monkeypatch):
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))  # where no run has left its baselines
    seen = {}
    iterate = loader.Batches.__iter__

    def hashed(self):
        for batch in iterate(self):
            digest = seen.setdefault(current, hashlib.sha256())
            for name in ("images", "noise", "index"):
                digest.update(batch[name].numpy().tobytes())
            yield batch

    monkeypatch.setattr(loader.Batches, "__iter__", hashed)
    for current in methods.NORMS:
        train_here(*QUICK, "--norm", current, "--output_dir", tmp_path / current, check=0)
    current = "another seed"
    train_here(*QUICK, "--seed", "1", "--output_dir", tmp_path / current, check=0)
    digests = {name: digest.hexdigest() for name, digest in seen.items()}
    assert len({digests[norm] for norm in methods.NORMS}) == 1
    assert digests["another seed"] != digests["LayerNorm"]
    pictures = [np.load(tmp_path / norm / "reconstructions.npz") for norm in methods.NORMS]
    assert all(np.array_equal(p[name], pictures[0][name]) for p in pictures for name in ("image", "mask", "masked"))


def test_all_methods_start_from_the_same_weights():
    models = {}
    for norm in methods.NORMS:
        run = resolve(build_parser("", "").parse_args(["--demo", "--norm", norm]))
        models[norm] = dict(train_module.build_model(run).named_parameters())
    shared = [name for name in models["LayerNorm"] if "norm" not in name]
    assert len(shared) == 2 + 2 + 3 * 2 + 3 * 8  # tokens, tables, embeddings and prediction, blocks
    for norm in methods.NORMS:
        assert all(torch.equal(models[norm][name], models["LayerNorm"][name]) for name in shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--norm", "RMSNorm"),
        ("--norm", "DynamicTanh"),
        ("--norm", "DynamicErf"),
        ("--norm", "AdaptiveDynamicTanh"),
        ("--decoder_type", "linear"),
        ("--decoder_type", "tiny-1b"),
        ("--mask_ratio", "0.5"),
        ("--norm_pix_loss",),
        ("--input_size", "32"),
        ("--batch_size", "32"),
        ("--accum_iter", "2"),
        ("--lr", "1e-3"),
        ("--min_lr", "2e-3"),
        ("--warmup_epochs", "1"),
        ("--weight_decay", "0.5"),
        ("--seed", "1"),
        ("--max_images", "48"),
        ("--precision", "bfloat16"),
        ("--alpha", "0.5"),
        ("--alpha", "-1e-1"),
    ],
    ids=" ".join,
)
def test_a_flag_changes_the_weights(flags, plain, tmp_path):
    train_here(*QUICK, *flags, "--output_dir", tmp_path, check=0)
    ours, theirs = (weights(f)["blocks.0.attn.qkv.weight"] for f in (tmp_path, plain))
    assert ours.isfinite().all() and not torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "flags"),
    [
        ("dyt", ("--dyt_alpha_init", "2")),
        ("adyt", ("--adyt_lambda", "0.5")),
        ("adyt", ("--adyt_smooth", "0.5")),
        ("adyt", ("--adyt_alpha_min", "0.9")),
        ("adyt", ("--adyt_alpha_max", "0.6")),
    ],
    ids=str,
)
def test_a_flag_of_a_norm_changes_its_runs(norm, flags, tmp_path):
    for name, more in (("plain", ()), ("changed", flags)):
        train_here(*QUICK, "--norm", norm, *more, "--output_dir", tmp_path / name, check=0)
    ours, theirs = (weights(tmp_path / name)["blocks.0.attn.qkv.weight"] for name in ("plain", "changed"))
    assert not torch.equal(ours, theirs)


@pytest.mark.slow
def test_blr_and_epochs_decide_rate_and_length(demo_dir, tmp_path):
    flags = ["--imagenet_dir", demo_dir, "--model", "mae_vit_demo_patch8", "--input_size", "64"]
    flags += ["--batch_size", "16", "--max_images", "32", "--num_workers", "0", "--epochs", "3", "--blr", "0.01"]
    train_here(*flags, "--output_dir", tmp_path, check=0)
    rows = files.read_csv(tmp_path / "log.csv")
    assert len(rows) == 3
    peak, warm_up = 0.01 * 16 / 256, 0.3  # a tenth of three epochs; two steps an epoch
    at = [e + 0.5 for e in range(3)]
    expected = [peak * 0.5 * (1 + math.cos(math.pi * (e - warm_up) / (3 - warm_up))) for e in at]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-12)


def test_the_rate_is_upstreams_linear_warm_up_and_half_cosine():
    optim = OptimSettings(100, 64, 1, 2e-3, 1e-5, 10, 0.05)
    at = {0: 0.0, 5: 1e-3, 10: 2e-3, 55: 1e-5 + (2e-3 - 1e-5) / 2, 100: 1e-5}
    for epoch, rate in at.items():
        assert learning_rate(epoch, optim) == pytest.approx(rate, rel=1e-12, abs=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_accumulated_batches_equal_one_large_batch(norm, tmp_path):
    """Per epoch, and for AdaptiveDynamicTanh its G, which sees the gradient of the whole step."""
    for name, more in (("one", ("--batch_size", "32")), ("four", ("--batch_size", "8", "--accum_iter", "4"))):
        train_here(*QUICK, "--norm", norm, *more, "--output_dir", tmp_path / name, check=0)
    one, four = (losses(tmp_path / name) for name in ("one", "four"))
    for a, b in zip(one, four):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["lr"] == b["lr"]
    if norm == "AdaptiveDynamicTanh":
        g, h = (weights(tmp_path / name)["blocks.0.norm1.grad_norm_smoothed"] for name in ("one", "four"))
        assert g.item() == pytest.approx(h.item(), rel=1e-3) and g.item() != 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_float16_trains_under_a_grad_scaler(norm, tmp_path):
    train_here(*QUICK, "--norm", norm, "--precision", "float16", "--output_dir", tmp_path, check=0)
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert state["scaler"]["scale"] > 0 and all(row["train_loss"] < 2 for row in losses(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--alpha", "-0.5", "--probes", "all", "--eval_every", "2", "--norm", "adyt")])
def test_a_run_killed_in_the_middle_goes_on_to_the_same_curve(more, tmp_path):
    """SIGKILL after the first epoch; the rest of the curve and the last weights are those of the unbroken run."""
    flags = [*QUICK, "--epochs", "6", *more]
    train(*flags, "--output_dir", tmp_path / "whole", check=0)
    killed = tmp_path / "killed"
    with start(*flags, "--output_dir", killed) as run:
        while not (killed / "checkpoint.pth").exists():
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert not (killed / "summary.json").exists()
    trajectory = json.loads((killed / "trajectory.json").read_text())
    assert trajectory["status"] == "running" and 1 <= len(trajectory["trajectory"]) < 6
    result = train(*flags, "--output_dir", killed, check=0)
    assert "goes on with epoch" in result.stdout
    assert losses(killed) == losses(tmp_path / "whole")
    a, b = (flat(torch.load(f / "checkpoint.pth", weights_only=True)) for f in (killed, tmp_path / "whole"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any("probes" in name for name in a) == bool(more)


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path):
    with start(*QUICK, "--epochs", "200", "--output_dir", tmp_path) as run:
        while not (tmp_path / "checkpoint.pth").exists():
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "interrupted" in error and "Traceback" not in error


def test_a_run_that_diverges_is_a_result(tmp_path):
    result = train_here(*QUICK, "--lr", "1e18", "--output_dir", tmp_path, check=0)
    assert "diverged" in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "diverged" and summary["total_epochs"] < 2
    assert json.loads((tmp_path / "trajectory.json").read_text())["status"] == "diverged"
    assert "diverged already" in train_here(*QUICK, "--lr", "1e18", "--output_dir", tmp_path, check=0).stdout


def test_a_batch_larger_than_the_data_set_is_named(tmp_path):
    result = train_here(*QUICK, "--batch_size", "65", "--output_dir", tmp_path, check=2)
    assert "--batch_size 65: the data set has 64 training images" in result.stderr
    result = train_here(*QUICK, "--accum_iter", "5", "--output_dir", tmp_path, check=2)
    assert "--accum_iter 5: 80 images a step" in result.stderr
    assert not os.listdir(tmp_path)


def test_labels_that_are_missing_or_of_one_class_are_said_where_they_are_needed(tmp_path):
    root = write_ilsvrc(tmp_path / "ILSVRC", train_images=6, val_images=3)
    (root / "LOC_val_solution.csv").unlink()
    flags = ["--imagenet_dir", root, "--model", "mae_vit_demo_patch8", "--input_size", "32", "--epochs", "1"]
    flags += ["--batch_size", "6", "--num_workers", "0", "--output_dir", tmp_path / "run"]
    for more, name in ((("--alpha", "-0.5"), "--alpha -0.5"), (("--probes", "frozen,knn"), "--probes frozen knn")):
        error = train_here(*flags, *more, check=2).stderr
        assert f"error: {name}: the validation images in {root}" in error and "LOC_val_solution.csv" in error
        assert len(error.strip().splitlines()) == 1 and not (tmp_path / "run").exists()
    train_here(*flags, check=0)  # not needed

    for wnid in WNIDS[1:]:
        shutil.rmtree(root / "Data/CLS-LOC/train" / wnid)
    (root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_{i:08d},{WNIDS[0]} 1 1 2 2\n" for i in (1, 2, 3))
    )
    flags[flags.index("--batch_size") + 1] = "2"
    error = train_here(*flags, "--alpha", "0.5", check=2).stderr
    assert "--alpha 0.5: the data set has 1 class, classification needs 2 or more" in error


def test_a_device_that_is_not_there_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = train_here(*QUICK, "--device", "cuda", "--output_dir", tmp_path, check=2)
    assert "--device cuda" in result.stderr and "cpu" in result.stderr


@pytest.mark.slow
def test_a_broken_image_in_a_run_is_named_counted_and_replaced(tmp_path):
    root = write_ilsvrc(tmp_path / "ILSVRC", train_images=6, val_images=3)
    folder = root / "Data/CLS-LOC/train" / WNIDS[0]
    small = folder / f"{WNIDS[0]}_0.JPEG"
    for i in range(100):  # 1 of 106 is less than 1 %
        (folder / f"copy_{i}.JPEG").write_bytes(small.read_bytes())
    broken = folder / "copy_50.JPEG"
    broken.write_bytes(broken.read_bytes()[:2000])
    flags = ["--imagenet_dir", root, "--model", "mae_vit_demo_patch8", "--input_size", "32", "--epochs", "2"]
    flags += ["--batch_size", "53", "--num_workers", "0"]
    result = train_here(*flags, "--output_dir", tmp_path / "run", check=0)
    assert result.stdout.count(f"broken image {broken}") == 1
    assert json.loads((tmp_path / "run/summary.json").read_text())["broken_images"] == 1
    for i in range(3):
        (folder / f"copy_{i}.JPEG").write_bytes(b"")
    result = train_here(*flags, "--output_dir", tmp_path / "more", check=2)
    assert "images cannot be read, more than 1%" in result.stderr and "copy_1.JPEG" in result.stderr


@pytest.mark.slow
def test_reconstructions_of_a_norm_pix_loss_run_are_pictures_not_noise(tmp_path):
    """Undone with each patch's own mean and deviation, even a hardly trained decoder keeps every patch's brightness."""
    train_here(*QUICK, "--norm_pix_loss", "--output_dir", tmp_path, check=0)
    arrays = np.load(tmp_path / "reconstructions.npz")
    image, drawn = (patch_means(arrays[name]) for name in ("image", "reconstruction"))
    assert np.abs(image - drawn).mean() < 0.2 * np.abs(image - image.mean()).mean()


def patch_means(images):
    """(n, 64, 64, 3) -> mean of each 8-pixel patch, (n, 8, 8)."""
    return images.astype(float).reshape(-1, 8, 8, 8, 8, 3).mean((2, 4, 5))
