"""A run on a GPU that is stopped goes on to the numbers of one that is not."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.cuda.conftest import DEMO, checkpoint_of, stop_request, train_on
from tests.support import KIT
from tests.support.runs import flat, losses

RUN = (
    "--epochs",
    "3",
    "--max_images",
    "96",
    "--batch_size",
    "16",
    "--norm",
    "adyt",
    "--alpha",
    "0.1",
    "--probes",
    "joint frozen",
)


def tensors(folder):
    return flat(checkpoint_of(folder))


def differing(a, b):
    """Names of the tensors of two checkpoints, weights and states of optimizers, that are not bitwise equal."""
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def assert_same(stopped, whole, again):
    """To the last bit, where the same command twice gives the same bits; where it does not, nearly."""
    other = differing(again, whole)
    for ours, theirs in zip(losses(stopped), losses(whole), strict=True):
        for name in ("train_loss", "val_mse"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3 if other else 1e-6), (name, theirs["epoch"])
    if other:
        pytest.xfail(f"the same command twice differs here in {len(other)} tensors, such as {other[0]}")
    assert differing(stopped, whole) == []


@pytest.fixture(scope="session")
def whole(device, tmp_path_factory):
    """Folders of the same run twice, to which nothing happens."""
    folders = [tmp_path_factory.mktemp("whole") / "run" for _ in range(2)]
    for folder in folders:
        train_on(device, folder, *RUN)
    return folders


def test_the_same_command_twice_gives_the_same_losses(whole):
    assert_same(*whole, whole[1])


@pytest.mark.parametrize("share", [None, 0.5], ids=["between two epochs", "within an epoch"])
def test_a_run_that_was_asked_to_stop_goes_on_to_the_same_numbers(share, device, whole, tmp_path):
    with stop_request(epoch=1, share=share):
        train_on(device, tmp_path, *RUN, check=143)
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"
    run = train_on(device, tmp_path, *RUN)
    assert "goes on with epoch" in run.result.stdout
    assert_same(tmp_path, *whole)


def test_a_process_that_gets_sigterm_saves_its_state_and_another_one_goes_on(device, whole, tmp_path):
    """With worker processes, as by default."""
    words = [word for word in DEMO if word not in ("--num_workers", "0")]
    command = [sys.executable, KIT / "train.py", *words, "--device", device.type, *RUN, "--output_dir", tmp_path]
    with subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "status.json").exists():  # written when it is about to train
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.005)
        run.send_signal(signal.SIGTERM)
        error = run.communicate(timeout=100)[1]
    assert run.returncode == 143, error
    assert "stopped by SIGTERM; the same command goes on from there" in error and "Traceback" not in error
    assert not (tmp_path / "summary.json").exists()
    train_on(device, tmp_path, *RUN)
    assert_same(tmp_path, *whole)
