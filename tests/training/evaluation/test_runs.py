"""Evaluations as runs: nothing is lost, nothing is left to chance, every norm, every precision."""

import math
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import train as train_module
from maekit.settings import methods
from maekit.training import checkpoint
from tests.support import train_here
from tests.support.commands import complaint
from tests.support.evaluation import CLASSES, DEPTH, FINETUNE, KNN, LINPROBE, QUICK, open_job, train_epoch
from tests.support.runs import losses, same, state, summary

# Accuracies


@pytest.mark.parametrize(
    ("task", "batch_size", "classes"), [(FINETUNE, 16, 10), (LINPROBE, 48, 10), (LINPROBE, 5, 3)], ids=str
)
def test_every_validation_image_counts_once(task, batch_size, classes, plain, ilsvrc):
    """Also those of the last, smaller batch. Image by image, by the rank of the true class; top-5 of 3 classes is all."""
    where = ("--demo", "--max_images", "64") if classes == 10 else ("--imagenet_dir", ilsvrc)
    job = open_job(
        *where, *task, "--init", plain, "--batch_size", batch_size, "--num_workers", "0", "--accum_iter", "1"
    )
    head = job.network.head if task == FINETUNE else job.network.head[1]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    dataset = job.loaders.validation.dataset
    assert len(dataset) % batch_size and job.classes == classes
    ranks, losses = [], []
    job.network.eval()
    for i in range(len(dataset)):
        with torch.no_grad():
            logits = job.logits(job.pixels.normalize(dataset[i]["images"][None]))[0].double().tolist()
        label = dataset[i]["labels"]
        ranks.append(sum(value > logits[label] for value in logits))
        losses.append(math.log(sum(math.exp(value - logits[label]) for value in logits)))
    job.network.train()
    found = job.validate(0)
    assert found["acc1"] == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
    assert found["acc5"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
    assert found["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert 0 < found["acc1"] < found["acc5"] and (found["acc5"] == 100) == (classes == 3)


# Nothing is lost, nothing is left to chance


@pytest.mark.slow
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_a_run_killed_in_the_middle_ends_as_the_unbroken_one(task, norm, pretrained, processes, tmp_path):
    """SIGKILL after the first epoch; the log and the last state are equal to the last bit."""
    epochs = 30 if "linprobe" in task else 5  # of a few hundredths of a second, or of some tenths
    flags = (*QUICK, *task, "--init", pretrained[norm], "--epochs", epochs, "--input_size", "32")
    train_here(*flags, "--output_dir", tmp_path / "whole", check=0)
    killed = tmp_path / "killed"
    command = [str(part) for part in (*flags, "--output_dir", killed)]
    run = processes.Process(target=train_module.main, args=(command,))
    run.start()
    while not (killed / "checkpoint.pth").exists():
        assert run.is_alive()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    torch.manual_seed(5)  # where the global stream is does not matter
    assert "goes on with epoch" in train_here(*flags, "--output_dir", killed, check=0).stdout
    assert losses(killed) == losses(tmp_path / "whole") and len(losses(killed)) == epochs
    ours, theirs = (state(folder) for folder in (killed, tmp_path / "whole"))
    assert all(same(ours[part], theirs[part]) for part in ("model", "optimizer", "epoch", "scaler", "args"))
    assert ours["optimizer"]["state"]


@pytest.mark.slow
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
def test_the_same_command_gives_the_same_numbers_with_and_without_workers(task, plain, tmp_path):
    flags = (*QUICK, *task, "--init", plain, "--epochs", "1")
    for workers in (0, 2):
        torch.manual_seed(workers)
        train_here(*flags, "--num_workers", workers, "--output_dir", tmp_path / str(workers), check=0)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    assert same(state(tmp_path / "0")["model"], state(tmp_path / "2")["model"])


def test_a_diverging_fine_tuning_is_a_result(plain, tmp_path):
    flags = (*QUICK, *FINETUNE, "--init", plain, "--epochs", "2", "--lr", "1e30", "--output_dir", tmp_path)
    assert "diverged" in train_here(*flags, check=0).stdout
    assert summary(tmp_path)["status"] == "diverged"


# Every norm, every precision


@pytest.mark.slow
@pytest.mark.parametrize("norm", methods.NORMS)
def test_fine_tuning_trains_every_weight_of_every_norm_and_adapts(norm, pretrained, tmp_path):
    flags = (*QUICK, *FINETUNE, "--init", pretrained[norm], "--epochs", "1", "--layer_decay", "0.9")
    train_here(*flags, "--output_dir", tmp_path, check=0)
    before, after = open_job(*flags).network.state_dict(), state(tmp_path)["model"]
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    (row,) = losses(tmp_path)
    learned = 0.005 if norm in ("BHyT", "NoNorm") else 0.01  # blocks that begin as little or nothing
    assert row["val_loss"] < math.log(CLASSES) - learned and row["train_loss"] < math.log(CLASSES) + 0.01
    assert (row["norm_alpha_mean"] is not None) == (norm not in ("LayerNorm", "RMSNorm", "NoNorm"))
    known = checkpoint.norm_of(after, state(tmp_path)["args"])
    assert known == norm == summary(tmp_path)["model"]
    if norm in ("LayerNorm", "RMSNorm", "DynamicTanh", "AdaptiveDynamicTanh", "BHyT"):  # whose parameters no other has
        assert checkpoint.norm_of(after) == norm
    adapted = len([name for name in after if name.endswith("grad_norm_smoothed")])
    assert adapted == (2 * DEPTH + 1 if norm == "AdaptiveDynamicTanh" else 0)


def test_an_evaluation_leaves_its_files(finetuned):
    """No trajectory: its epochs are no points of the reconstruction gap."""
    expected = {
        "config.json",
        "log.csv",
        "norm_alpha.csv",
        "summary.json",
        "checkpoint.pth",
        "tensorboard",
        "checkpoint.previous.pth",
        "status.json",
        "loss_curve.png",
        "loss_curve.pdf",
    }
    assert {f.name for f in finetuned.iterdir()} == expected
    found, rows = summary(finetuned), losses(finetuned)
    assert found["task"] == "finetune" and found["total_epochs"] == 2 == len(rows)
    assert found["max_acc1"] == max(row["acc1"] for row in rows) and found["acc1"] == rows[-1]["acc1"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("task", [FINETUNE, LINPROBE], ids=" ".join)
def test_half_precision_trains_much_as_float32_does(task, precision, pretrained):
    flags = (*QUICK, *task, "--init", pretrained["AdaptiveDynamicTanh"])
    name = "blocks.0.attn.qkv.weight" if task == FINETUNE else "head.1.weight"
    losses, weights = {}, [open_job(*flags).network.state_dict()[name]]
    for kind in ("float32", precision):
        job = open_job(*flags, "--precision", kind)
        losses[kind] = train_epoch(job)["train_loss"]
        assert job.device.scaler.is_enabled() == (kind == "float16")
        assert all(value.dtype in (torch.float32, torch.int64) for value in job.network.state_dict().values())
        weights.append(job.network.state_dict()[name])
    assert losses[precision] == pytest.approx(losses["float32"], abs=0.05)
    fresh, full, half = weights
    assert 0 < (full - half).norm() < (full - fresh).norm(), "nearer to each other than to where both started"


def test_knn_in_half_precision_is_another_run(plain, tmp_path):
    flags = (*QUICK, *KNN, "--init", plain, "--output_dir", tmp_path)
    train_here(*flags, "--precision", "bfloat16", check=0)
    assert summary(tmp_path)["acc1"] == pytest.approx(summary(plain)["knn_accuracy"], abs=5)
    assert "--precision bfloat16" in complaint(*flags, "--precision", "float32")
