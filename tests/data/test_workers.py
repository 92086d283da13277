"""The processes that decode images take what a container leaves them: shared memory, open files."""

import collections
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset

from maekit.data import loader, workers
from maekit.errors import InputError
from maekit.training import failures
from tests.support import KIT

MIB = 2**20


@pytest.mark.parametrize(
    "free, processes, expected",
    [(64, 1, 2), (200, 1, 4), (64, 2, 0), (29, 1, 0), (30, 1, 0), (40, 1, 1)],
)
def test_there_are_as_many_as_shared_memory_has_room_for(free, processes, expected, monkeypatch):
    """Batches of 10 MiB, two that wait for each worker, and two in use."""
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, free * MIB))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    said = []
    assert workers.with_room(4, 10 * MIB, said.append) == expected
    if expected == 4:
        assert not said
    else:
        assert said[0].startswith(f"num_workers: {expected} in place of 4") and "--shm-size" in said[0]


class Numbers(Dataset):
    """Samples as those of images are, tiny."""

    images = None

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return {"images": torch.zeros(3, 4, 4), "labels": index, "noise": torch.zeros(4), "index": index, "broken": -1}


def test_labels_that_are_kept_keep_no_file_open():
    """As k-NN keeps them. 1,024 files a process are the usual limit."""
    batches = loader.Batches(Numbers(), loader.BrokenImages(print), 2, pin=False, batch_size=1, sampler=range(400))
    kept, open_before = [], len(os.listdir("/proc/self/fd"))
    for batch in batches:
        kept.append((batch["labels"], batch["index"]))
    assert len(os.listdir("/proc/self/fd")) < open_before + 50
    batches.end_workers()
    assert torch.cat([label for label, _ in kept]).tolist() == list(range(400))


def test_a_worker_that_found_shared_memory_full_names_it():
    text = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit."
    )
    explained = failures.explained(RuntimeError(text), None)
    assert isinstance(explained, InputError) and "/dev/shm" in str(explained) and "--shm-size" in str(explained)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="takes root's right to mount")
def test_a_container_with_64_mib_of_shared_memory_trains(tmp_path):
    command = [sys.executable, KIT / "train.py", "--demo", "--input_size", 224, "--batch_size", 64, "--max_images", 128]
    command += [
        "--epochs",
        1,
        "--num_workers",
        4,
        "--device",
        "cpu",
        "--output_dir",
        tmp_path / "out",
        "--cache",
        "off",
    ]
    command += ["--model", "enc64d1h4p32", "--decoder_type", "dec64d1h4"]
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "-m", "bash", "-c", small, "bash", *map(str, command)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if "permission denied" in result.stderr.lower() and "mount" in result.stderr:
        pytest.skip("this machine lets nobody mount")
    assert result.returncode == 0, result.stderr
    assert "num_workers: 2 in place of 4, as many as /dev/shm has room for" in result.stdout + result.stderr
