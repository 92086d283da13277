"""A run is never lost: out of disk or memory, dead workers, data that goes away."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from maekit import files
from maekit.data import loader
from maekit.errors import InputError
from maekit.runs.folder import RunFolder
from maekit.training import checkpoint, failures
from tests.support import KIT, train, train_here, write_ilsvrc
from tests.support.commands import resolved
from tests.support.faults import ALL, QUICK, assert_same_run, start, stray_files
from tests.support.runs import losses


def test_a_disk_that_fills_up_in_the_middle_of_a_run_loses_nothing(unbroken, tmp_path):
    """A tmpfs with a ballast file that leaves no room for another checkpoint; then the ballast goes."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=False).returncode:
        pytest.skip("NOT TESTED: mounting a small file system needs to be root")
    flags = (*QUICK, *ALL, "--epochs", "6", "--output_dir", small / "run")
    try:
        run = start(*flags)
        while not (small / "run/checkpoint.pth").exists():
            assert run.poll() is None
            time.sleep(0.005)
        with open(small / "ballast", "wb", buffering=0) as f, pytest.raises(OSError):
            while True:
                f.write(bytes(1 << 16))
        error = run.communicate(timeout=120)[1].strip().splitlines()[-1]
        assert run.returncode == 2 and error.startswith("error: ") and "Make room" in error
        checkpoint.verified(small / "run/checkpoint.pth")
        json.loads((small / "run/trajectory.json").read_text())
        assert not stray_files(small / "run")
        (small / "ballast").unlink()
        train(*flags, check=0)
        assert_same_run(unbroken, small / "run")
    finally:
        subprocess.run(["umount", small], check=True)


def test_data_that_disappears_is_said_and_the_run_goes_on_when_it_is_back(tmp_path):
    root = write_ilsvrc(tmp_path / "ILSVRC", train_images=24, val_images=3)
    flags = (
        "--imagenet_dir",
        root,
        "--model",
        "mae_vit_demo_patch8",
        "--input_size",
        "32",
        "--epochs",
        "30",
        "--batch_size",
        "12",
        "--num_workers",
        "0",
        "--cache",
        "off",
        "--output_dir",
        tmp_path / "run",
    )
    run = start(*flags)
    while not (tmp_path / "run/checkpoint.pth").exists():
        assert run.poll() is None
        time.sleep(0.005)
    root.rename(tmp_path / "away")
    error = run.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert run.returncode == 2 and "is not there any more" in error and str(root) in error
    (tmp_path / "away").rename(root)
    assert "goes on with epoch" in train(*flags, check=0).stdout


def test_a_dead_worker_is_named_with_the_way_out(tmp_path):
    flags = (*QUICK[:-1], "1", "--epochs", "200", "--output_dir", tmp_path)
    run = start(*flags, cold=True)  # whose children are its workers
    while not (tmp_path / "checkpoint.pth").exists():
        assert run.poll() is None
        time.sleep(0.005)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    error = run.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert run.returncode == 2 and "--num_workers 1: a worker process" in error and "lower --num_workers" in error
    known = json.loads((tmp_path / "status.json").read_text())
    assert known["status"] == "failed" and "worker" in known["error"]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_a_dead_worker(error):
    class Images(torch.utils.data.Dataset):
        images = None

        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise error

    with pytest.raises(RuntimeError) as raised:
        next(iter(loader.Batches(Images(), loader.BrokenImages(print), 1, False)))
    explained = failures.explained(raised.value, resolved("--num_workers", "1"))
    assert str(explained).startswith(
        "--num_workers 1: a worker process that decodes images has died (DataLoader worker"
    )


def test_a_second_dead_worker_does_not_break_into_what_is_done_about_the_first():
    script = """
import multiprocessing, os, signal, sys, time, torch
sys.path.insert(0, sys.argv[1])
from maekit.data import loader

class Zeros(torch.utils.data.Dataset):
    images = None
    def __len__(self): return 1000
    def __getitem__(self, i): return {"labels": 0}

class Whole:
    def check(self, images, batch): pass

def error_of_killing(workers):
    until = time.monotonic() + 2
    try:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        while time.monotonic() < until:
            time.sleep(0.01)
    except RuntimeError as error:
        return "killed by signal" in str(error)

workers = []
batches = [iter(loader.Batches(Zeros(), Whole(), 1, False)) for _ in range(2)]
for each in batches:
    next(each)
    workers.append({child.pid for child in multiprocessing.active_children()}.difference(*workers))
print(*map(len, workers), *map(error_of_killing, workers), flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", script, KIT], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "1 1 True None\n", run.stderr


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "20.00 GiB"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes."
            ),
            "1024 MiB",
        ),
        (MemoryError(), "some memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"), "some memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "some memory"),
        (RuntimeError("CUDA driver error: out of memory"), "some memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "some memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "some memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "some memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB). Tried to allocate 1.50 GB"), "1.50 GB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "some memory"),
        (RuntimeError("std::bad_alloc"), "some memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(error, size):
    told = failures.explained(error, resolved("--demo", "--batch_size", "64", "--accum_iter", "2"))
    assert isinstance(told, InputError)
    assert str(told).startswith(
        f"--batch_size 64: out of memory, {size} more"
    ) and "--batch_size 32 --accum_iter 4" in str(told)


def test_a_real_allocation_that_fails_is_explained():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 50, dtype=torch.uint8)
    told = str(failures.explained(failed.value, resolved("--demo")))
    assert "--batch_size 32: out of memory, 1073741824 MiB more were needed. Try --batch_size 16 --accum_iter 2" in told


def test_after_out_of_memory_a_smaller_batch_needs_no_other_folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim({"batch_size": 512})
    files.write_json(folder.config, {"identity": {"batch_size": 512}})
    assert folder.claim({"batch_size": 256}) is None


def test_other_errors_stay_what_they_are():
    error = RuntimeError("something else")
    assert failures.explained(error, resolved("--demo")) is error


def test_a_tensorboard_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    result = train_here(*QUICK, "--epochs", "2", "--output_dir", tmp_path, check=0)
    assert "training goes on without TensorBoard" in result.stdout and len(losses(tmp_path)) == 2


def test_a_clock_that_jumps_back_does_not_show_in_the_times(tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    train_here(*QUICK, "--epochs", "2", "--output_dir", tmp_path, check=0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 < summary["total_time"] < 600 and all(r["epoch_time_s"] > 0 for r in files.read_csv(tmp_path / "log.csv"))
