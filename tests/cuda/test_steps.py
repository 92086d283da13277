"""What a training step on a GPU waits for, which is nothing, and what it is in a group of processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from maekit.training.trainer import Trainer
from tests.cuda.conftest import DEMO, QUICK, Bar, Idle, open_job, train_on
from tests.support import KIT, run
from tests.support.runs import losses

STEPS = ("--epochs", "2", "--max_images", "96", "--batch_size", "16")
LOSSES = ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse")


@pytest.mark.parametrize(
    "flags",
    [
        ("--norm", "LayerNorm"),
        ("--norm", "RMSNorm"),
        ("--norm", "derf", "--precision", "float32"),
        ("--norm", "adyt", "--accum_iter", "2"),
        ("--norm", "adyt", "--alpha", "0.1", "--probes", "joint"),
        ("--norm", "adyt", "--precision", "float16"),
        ("--norm", "adyt", "--alpha", "0.1", "--probes", "joint frozen"),
        ("--task", "finetune", "--init", "untrained"),
        ("--task", "linprobe", "--init", "untrained"),
    ],
    ids=" ".join,
)
def test_a_step_does_not_wait_for_the_device(flags, device):
    """From the third on, when all memory is had; what a bar shows is read seldom, and an epoch's means at its end."""
    job = open_job(device, *STEPS, *flags)
    watched = []

    def after(batches):
        watched.append(2 < batches)
        if device.type == "cuda" and batches in (2, 6):
            torch.cuda.set_sync_debug_mode("error" if batches == 2 else "default")

    try:
        row = Trainer(job, saver=Idle(), bar=Bar(after)).train_epoch(0)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert watched == [False] * 2 + [True] * 4 and row["train_loss"] > 0


def test_torchrun_with_one_process_is_python(device, tmp_path):
    flags = (
        *DEMO,
        "--device",
        device.type,
        *QUICK,
        "--norm",
        "adyt",
        "--alpha",
        "0.1",
        "--probes",
        "joint frozen",
        "--precision",
        "float32",
    )
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1)
    run(*launcher, KIT / "train.py", *flags, "--output_dir", tmp_path / "torchrun", check=0)
    plain = train_on(device, tmp_path / "plain", *flags[len(DEMO) + 2 :])
    launched = train_on(device, tmp_path / "torchrun", *flags[len(DEMO) + 2 :])
    assert "finished already" in launched.result.stdout and len(launched.log) == 2
    for ours, theirs in zip(launched.log, plain.log):
        assert all(ours[name] == pytest.approx(theirs[name], rel=1e-5) for name in LOSSES)


IN_A_GROUP = """
import json, os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {kit!r})
from maekit.training.task import OWN_BUFFERS
from maekit.training.trainer import Trainer
from tests.cuda.conftest import Bar, Idle, open_job

device, folder, flags = torch.device({device!r}), {folder!r}, {flags!r}
backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
found = []
for group in (False, True):
    if group:
        store = torch.distributed.FileStore(os.path.join(folder, "store"), 1)
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    job = open_job(device, *flags)
    if group:
        job.parallel_model = DistributedDataParallel(job.model, **OWN_BUFFERS)
    found.append([Trainer(job, saver=Idle(), bar=Bar()).train_epoch(epoch)["train_loss"] for epoch in range(2)])
    row = job.validate(1)
    found[-1] += [row["val_mse"], row["frozen_accuracy"]]
numbers = torch.tensor([3.0], device=device)
torch.distributed.all_reduce(numbers)
torch.distributed.all_reduce(torch.tensor(1), torch.distributed.ReduceOp.MAX)
torch.distributed.destroy_process_group()
print(json.dumps(found))
"""


def test_in_a_group_of_processes_the_losses_are_the_same(device, tmp_path):
    """NCCL where the device is a GPU, with gradient accumulation and the frozen probes' sums over all processes."""
    flags = (*STEPS, "--accum_iter", "2", "--norm", "adyt", "--alpha", "0.1", "--probes", "joint frozen")
    script = IN_A_GROUP.format(kit=str(KIT), device=device.type, folder=str(tmp_path), flags=flags)
    environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    result = run(sys.executable, "-c", script, env=environment, check=0)
    alone, grouped = json.loads(result.stdout.splitlines()[-1])
    assert grouped[:3] == pytest.approx(alone[:3], rel=1e-3) and abs(grouped[3] - alone[3]) < 5


def test_two_runs_side_by_side_on_one_device_have_the_losses_of_each_alone(device, tmp_path):
    flags = (*DEMO, "--device", device.type, *QUICK, "--norm", "adyt", "--precision", "float32", "--output_dir")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, KIT / "train.py", *flags, tmp_path / "alone"]
    both = [[sys.executable, KIT / "train.py", *flags, tmp_path / name] for name in "ab"]
    for commands in ([alone], both):
        processes = [subprocess.Popen([str(word) for word in words], env=environment) for words in commands]
        assert [process.wait(timeout=300) for process in processes] == [0] * len(commands)
    expected = losses(tmp_path / "alone")
    for name in "ab":
        for ours, theirs in zip(losses(tmp_path / name), expected, strict=True):
            assert all(ours[column] == pytest.approx(theirs[column], rel=1e-4) for column in ("train_loss", "val_mse"))
