"""A run is never lost: killed, stopped by a signal, with damaged files, on one folder twice."""

import json
import math
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

from maekit import files
from maekit.errors import InputError
from maekit.training import checkpoint, saving
from maekit.training.saving import Saver
from maekit.training.signals import StopRequest
from tests.support import KIT, started_as, train, train_here
from tests.support.faults import ALL, QUICK, assert_same_run, start, state_of, stray_files
from tests.support.runs import losses

EVERY_STEP = ("--checkpoint_minutes", "1e-9")


def let_it_train(folder, seconds):
    """So long, but for one epoch at most, however fast it has become."""

    def epochs():
        return len((folder / "log.csv").read_bytes().splitlines()) if (folder / "log.csv").exists() else 0

    until, before = time.monotonic() + seconds, epochs()
    while time.monotonic() < until and epochs() <= before:
        time.sleep(0.005)


def test_twenty_kills_at_any_moment_change_nothing(tmp_path):
    """SIGKILL between the start of the process and an epoch later; state is saved within epochs as well."""
    flags = (*QUICK, *ALL, "--epochs", "24", "--checkpoint_minutes", "0.0003", "--output_dir")
    began = time.monotonic()
    whole = start(*flags, tmp_path / "whole")
    beginning = time.monotonic() - began
    assert whole.communicate() and whole.returncode == 0
    epoch = statistics.median(row["epoch_time_s"] for row in files.read_csv(tmp_path / "whole/log.csv"))
    killed, draw = tmp_path / "killed", random.Random(0)
    within = 0
    for i in range(20):
        if i % 5 == 0:  # before it trains, too
            words, env = started_as((sys.executable, KIT / "train.py", *flags, killed))
            run = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            let_it_train(killed, draw.uniform(0, beginning + epoch))
        else:
            run = start(*flags, killed)
            let_it_train(killed, draw.uniform(0, 2 * epoch))
        run.kill()
        run.communicate()
        if (killed / "checkpoint.pth").exists():
            within += bool(checkpoint.read(killed / "checkpoint.pth").get("position"))
        if (killed / "summary.json").exists():
            break
    assert i > 10, "most kills came while it trained"
    assert within > 2, "some kills came when an epoch was saved in part"
    train(*flags, killed, check=0)
    assert_same_run(tmp_path / "whole", killed)
    assert not stray_files(killed)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, unbroken, tmp_path):
    flags = (*QUICK, *ALL, "--epochs", "6", "--output_dir", tmp_path)
    run = start(*flags)
    while not (tmp_path / "checkpoint.previous.pth").exists():
        assert run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.communicate()
    file = tmp_path / "checkpoint.pth"
    content = bytearray(file.read_bytes() if file.exists() else (tmp_path / "checkpoint.previous.pth").read_bytes())
    if damage == "flipped":
        for at in range(len(content) // 3, len(content) // 3 + 64):
            content[at] ^= 0x10
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    if damage == "missing":
        file.unlink()
    result = train(*flags, check=0)
    assert "checkpoint.previous.pth: goes on with epoch" in result.stdout
    if damage != "missing":
        assert "damaged" in result.stdout and "the checkpoint before it is taken" in result.stdout
        assert (tmp_path / "checkpoint.damaged.pth").exists()
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize(("field", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_a_flipped_field_of_the_archive_is_damage(field, value, unbroken, tmp_path):
    """Of its central directory: zipfile then asks for a password, or does not know how to unpack."""
    content = bytearray((unbroken / "checkpoint.pth").read_bytes())
    content[content.index(b"PK\x01\x02") + field] = value
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match="truncated, damaged or no checkpoint"):
        checkpoint.verified(file)


def test_torch_alone_would_have_taken_flipped_bytes(unbroken, tmp_path):
    """Which is why the checksums of the file are looked at."""
    content = bytearray((unbroken / "checkpoint.pth").read_bytes())
    weights = torch.load(unbroken / "checkpoint.pth", weights_only=True)["model"]["blocks.0.mlp.fc1.weight"]
    at = content.find(weights.numpy().tobytes()[:64])
    content[at + 3] ^= 0x10
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(content)
    torch.load(file, weights_only=True)
    with pytest.raises(InputError, match="damaged, the checksum of"):
        checkpoint.verified(file)


def test_two_damaged_checkpoints_are_an_error_that_deletes_nothing(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / "summary.json").unlink()
    for name in ("checkpoint.pth", "checkpoint.previous.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    before = sorted(path.name for path in folder.iterdir())
    result = train_here(*QUICK, *ALL, "--epochs", "6", "--output_dir", folder, check=2)
    assert "checkpoint.previous.pth: truncated, damaged" in result.stderr
    assert set(before) <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_middle_of_an_epoch_saves_it(number, unbroken, tmp_path):
    flags = (*QUICK, *ALL, "--epochs", "6", "--output_dir", tmp_path)
    run = start(*flags)
    time.sleep(0.15)
    began = time.monotonic()
    run.send_signal(number)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 143 and time.monotonic() - began < 10
    assert f"stopped by {number.name}; the same command goes on from there" in error and "Traceback" not in error
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"
    assert not (tmp_path / "summary.json").exists()
    train(*flags, check=0)
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_evaluations_stop_and_go_on_within_an_epoch_as_well(task, tmp_path, monkeypatch):
    flags = (*QUICK, "--task", task, "--init", "untrained", "--epochs", "2", "--batch_size", "8", "--output_dir")
    train_here(*flags, tmp_path / "whole", check=0)
    stopped = 0
    after_step = Saver.after_step

    def stop_after_three_steps(self, position, epoch, share):
        if share > 0.45:
            self.stop.name = "SIGTERM"
        after_step(self, position, epoch, share)

    monkeypatch.setattr(Saver, "after_step", stop_after_three_steps)
    for _ in range(2):
        stopped += train_here(*flags, tmp_path / "stopped").returncode == 143
    monkeypatch.setattr(Saver, "after_step", after_step)
    assert stopped == 2
    train_here(*flags, tmp_path / "stopped", check=0)
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    a, b = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_request_does_not_wait_but_two_signals_at_once_are_one():
    code = (
        "import os, signal, sys, time; sys.path.insert(0, sys.argv[1]); from maekit.training import signals\n"
        "signals.SAME_SECONDS = 0.5\n"
        "with signals.StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    assert stop.name == 'SIGTERM'; print('one', flush=True); time.sleep(0.6)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(9); print('still here')"
    )
    result = subprocess.run([sys.executable, "-c", code, KIT], capture_output=True, text=True, check=False)
    assert result.returncode == 143 and result.stdout == "one\n"


def test_handlers_of_others_are_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def saved(monkeypatch):
    """The last finished epochs of the checkpoints that are saved, each of them before the training goes on."""
    epochs, save = [], Saver.save

    def save_at_once(self, epoch, position=None):
        epochs.append(epoch)
        save(self, epoch, position)
        self.finish()

    monkeypatch.setattr(Saver, "save", save_at_once)
    return epochs


def test_checkpoint_every_saves_so_often_and_at_the_end(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SHARE_OF_TIME", math.inf)
    train_here(*QUICK, "--epochs", "5", "--checkpoint_every", "2", "--output_dir", tmp_path / "a", check=0)
    assert saved == [1, 3, 4]
    saved.clear()
    train_here(*QUICK, "--epochs", "2", *EVERY_STEP, "--output_dir", tmp_path / "b", check=0)
    assert saved == [-1] * 5 + [0] * 6 + [1]  # 6 steps an epoch, and none within after the last
    assert losses(tmp_path / "b") == losses(tmp_path / "b")


def test_saving_takes_a_small_share_of_the_time_and_a_minute_s_training_is_the_most_that_is_not_saved(
    saved, tmp_path, monkeypatch
):
    monkeypatch.setattr(saving, "SHARE_OF_TIME", 1e-9)  # as for a checkpoint that takes hours to write
    train_here(*QUICK, "--epochs", "4", "--output_dir", tmp_path / "a", check=0)
    assert saved == [0, 3]  # how long it takes is not known before the first
    saved.clear()
    monkeypatch.setattr(saving, "MOST_SECONDS", 0.0)
    train_here(*QUICK, "--epochs", "4", "--output_dir", tmp_path / "b", check=0)
    assert saved == [0, 1, 2, 3] and losses(tmp_path / "a") == losses(tmp_path / "b")


def test_how_often_it_saves_is_no_other_run(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    result = train_here(
        *QUICK, *ALL, "--epochs", "6", "--checkpoint_every", "3", *EVERY_STEP, "--output_dir", folder, check=0
    )
    assert "finished already" in result.stdout


def test_two_processes_on_one_folder_do_not_meet(tmp_path):
    flags = (*QUICK, "--epochs", "200", "--output_dir", tmp_path)
    first = start(*flags, cold=True)  # the process that is named
    try:
        second = train(*flags, check=75)
        assert f"process {first.pid} on " in second.stderr and "is training it" in second.stderr
    finally:
        first.kill()
        first.communicate()
    again = start(*flags)  # the lock went with its holder
    again.kill()
    again.communicate()
