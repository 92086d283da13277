"""train.py on a GPU: the CPU's losses, every precision, every task, and what goes wrong as one line."""

import math
from functools import partial

import pytest
import torch

from maekit.data import resident
from maekit.settings import methods
from maekit.training.trainer import Trainer
from tests.cuda.conftest import QUICK, Bar, checkpoint_of, open_job, train_on

ALL = ("--probes", "all", "--alpha", "0.1")
LOSSES = ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse")


@pytest.mark.parametrize("norm", methods.NORMS)
def test_a_run_has_the_losses_of_the_same_run_on_the_cpu(norm, device, tmp_path):
    """In float32 to 2 %, in the device's own precision to 5 %: of crops that are rounded elsewhere, and of TF32."""
    flags = (*QUICK, *ALL, "--norm", norm)
    expected = train_on(torch.device("cpu"), tmp_path / "cpu", *flags, "--precision", "float32").log
    for precision, tolerance in (("float32", 2e-2), ("auto", 5e-2)):
        run = train_on(device, tmp_path / precision, *flags, "--precision", precision)
        assert run.summary["status"] == "finished" and len(run.log) == len(expected) == 2
        for ours, theirs in zip(run.log, expected):
            assert all(math.isfinite(ours[name]) for name in LOSSES)
            for name in LOSSES:
                assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (precision, name)
            assert ours["peak_memory_mb"] > 1
            assert all(0 <= ours[name] <= 100 for name in ("accuracy", "frozen_accuracy", "untrained_frozen_accuracy"))
        assert run.log[-1]["knn_accuracy"] > 10 and abs(run.log[-1]["knn_accuracy"] - expected[-1]["knn_accuracy"]) < 10
        if device.type == "cuda":
            assert run.job.loaders.images.kernels is not None and run.config["device"].startswith("cuda")
            assert run.config["hardware"] == torch.cuda.get_device_name(0)
            assert run.job.device.precision == ("bfloat16" if precision == "auto" else "float32")


def test_where_triton_does_not_work_a_run_says_so_once_and_has_the_same_losses(gpu, tmp_path, monkeypatch):
    """Norm layers and crops by torch's own operations."""
    flags = (*QUICK, "--norm", "adyt", "--precision", "float32")
    expected = train_on(gpu, tmp_path / "triton", *flags)

    def fail(device):
        raise RuntimeError("no C compiler\nand more")

    from maekit.model import kernels

    monkeypatch.setattr(kernels, "try_out", fail)
    monkeypatch.setattr(resident, "_kernels", lambda device: None)
    run = train_on(gpu, tmp_path / "plain", *flags)
    said = "norm layers: torch's own kernels, as Triton does not work here (no C compiler).\n"
    assert run.result.stdout.count(said) == 1 and run.job.loaders.images.kernels is None
    for ours, theirs in zip(run.log, expected.log, strict=True):
        assert all(ours[name] == pytest.approx(theirs[name], rel=5e-3) for name in ("train_loss", "val_mse"))


@pytest.mark.parametrize("flags", [("--grad_checkpointing",), ("--resident", "off")], ids=" ".join)
def test_less_memory_changes_the_losses_by_rounding_at_most(flags, device, tmp_path):
    """Crops by the CPU are other ones by a level here and there."""
    shared = (*QUICK, "--norm", "adyt", "--alpha", "0.1", "--probes", "joint frozen", "--precision", "float32")
    plain, run = train_on(device, tmp_path / "plain", *shared), train_on(device, tmp_path / "less", *shared, *flags)
    for ours, theirs in zip(run.log, plain.log, strict=True):
        assert all(ours[name] == pytest.approx(theirs[name], rel=5e-3) for name in LOSSES)
    if device.type == "cuda":
        assert (run.job.loaders.images is None) == ("off" in flags)


def test_float16_trains_with_both_probes(device, tmp_path):
    run = train_on(
        device,
        tmp_path,
        *QUICK,
        "--norm",
        "adyt",
        "--precision",
        "float16",
        "--alpha",
        "0.1",
        "--probes",
        "joint frozen",
    )
    assert all(math.isfinite(row[name]) for row in run.log for name in LOSSES)
    state = checkpoint_of(tmp_path)
    assert 0 < state["scaler"]["scale"] <= 65536 and all(p.isfinite().all() for p in state["model"].values())


def test_a_step_in_which_float16_overflows_is_skipped(device, monkeypatch):
    """Weights, and what AdaptiveDynamicTanh keeps of the gradients, stay; the scale of the losses is halved."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**100))
    flags = ("--epochs", "2", "--max_images", "24", "--batch_size", "8", "--decoder_type", "linear", "--norm", "adyt")
    job = open_job(device, *flags, "--precision", "float16", "--alpha", "0.1", "--probes", "joint frozen")
    before = {name: t.clone() for name, t in job.network.state_dict().items()}
    losses = Trainer(job, bar=Bar()).train_epoch(0)
    assert math.isfinite(losses["train_loss"]) and job.device.scaler.get_scale() == 2.0**97
    assert all(torch.equal(t, before[name]) for name, t in job.network.state_dict().items())


@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_a_run_s_weights_are_fine_tuned_and_probed(task, device, trained, tmp_path):
    run = train_on(
        device,
        tmp_path,
        "--task",
        task,
        "--init",
        trained.folder,
        "--epochs",
        "1",
        "--max_images",
        "64",
        "--batch_size",
        "32",
    )
    (row,) = run.log
    assert run.summary["status"] == "finished" and run.summary["model"] == "DynamicTanh"
    assert (
        math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]) and 0 <= row["acc1"] <= row["acc5"] <= 100
    )
    if device.type == "cuda" and task == "linprobe":
        assert run.job.loaders.images is not None


def test_a_run_s_encoder_is_scored_by_k_nn(device, trained, tmp_path):
    flags = ("--task", "knn", "--init", trained.folder, "--max_images", "64", "--batch_size", "32")
    ours, cpu = (
        train_on(where, tmp_path / where.type / name, *flags, "--precision", precision)
        for where, name, precision in ((device, "own", "auto"), (torch.device("cpu"), "cpu", "float32"))
    )
    assert ours.summary["status"] == "finished" and ours.summary["acc1"] > 10
    assert abs(ours.summary["acc1"] - cpu.summary["acc1"]) <= 5  # of 200 images, some that lie between two classes


def test_a_run_that_diverges_is_a_result(device, tmp_path):
    run = train_on(device, tmp_path, *QUICK, "--alpha", "-10", "--lr", "1e3", check=0)
    assert "diverged" in run.result.stdout and run.summary["status"] == "diverged"


def test_memory_that_does_not_suffice_is_one_line_that_names_the_batch_size(gpu, trained, tmp_path):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(gpu) + 120 * 2**20) / total, gpu)
    try:
        run = train_on(gpu, tmp_path, "--epochs", "1", "--max_images", "512", "--batch_size", "512", check=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
        torch.cuda.empty_cache()
    complaints = [line for line in run.result.stderr.splitlines() if line.startswith("error: ")]
    (line,) = complaints
    assert "--batch_size 512: out of memory" in line and "--batch_size 256 --accum_iter 2" in line
    assert "Traceback" not in run.result.stderr
