"""A run is never lost: killed, stopped, out of disk or memory, with damaged files or data that goes away."""

import json
import math
import os
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
from maekit.data import loader
from maekit.errors import InputError
from maekit.runs.folder import RunFolder
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.training import checkpoint, failures, saving
from maekit.training.saving import Keeper
from maekit.training.signals import StopRequest
from tests.support import KIT, train, train_here, write_ilsvrc
from tests.support.runs import flat, losses

QUICK = ("--demo", "--max_images", "48", "--batch_size", "8", "--num_workers", "0")
ALL = ("--alpha", "0.1", "--probes", "all", "--eval_every", "2", "--norm", "adyt")
EVERY_STEP = ("--checkpoint_minutes", "1e-9")


def start(*flags, **options):
    """Start train.py and return when it trains."""
    folder = flags[flags.index("--output_dir") + 1]
    (folder / "status.json").unlink(missing_ok=True)
    run = subprocess.Popen(
        [str(part) for part in (sys.executable, KIT / "train.py", *flags)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    while not (folder / "status.json").exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.005)
    return run


def state_of(folder):
    """Every tensor of the last checkpoint, by name."""
    return flat(torch.load(folder / "checkpoint.pth", weights_only=True))


def assert_same_run(a, b):
    """Equal logs and trajectories apart from clocks and memory, and every tensor of the checkpoints bitwise."""
    assert losses(a) == losses(b)
    assert (a / "trajectory.json").read_text() == (b / "trajectory.json").read_text()
    assert (a / "norm_alpha.csv").read_text() == (b / "norm_alpha.csv").read_text()
    ours, theirs = state_of(a), state_of(b)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def stray_files(folder):
    return [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or ".lock" in path.name]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 6 epochs with all probes that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(*QUICK, *ALL, "--epochs", "6", "--output_dir", folder, check=0)
    return folder


def test_twenty_kills_at_any_moment_change_nothing(tmp_path):
    """SIGKILL between the start of the process and two epochs later; state is saved within epochs as well."""
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
            run = subprocess.Popen([str(w) for w in (sys.executable, KIT / "train.py", *flags, killed)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            time.sleep(draw.uniform(0, beginning + epoch))
        else:
            run = start(*flags, killed)
            time.sleep(draw.uniform(0, 3 * epoch))
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
    after_step = Keeper.after_step

    def stop_after_three_steps(self, position, epoch, share):
        if share > 0.45:
            self.stop.name = "SIGTERM"
        after_step(self, position, epoch, share)

    monkeypatch.setattr(Keeper, "after_step", stop_after_three_steps)
    for _ in range(2):
        stopped += train_here(*flags, tmp_path / "stopped").returncode == 143
    monkeypatch.setattr(Keeper, "after_step", after_step)
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
    """The last finished epochs of the checkpoints that are saved."""
    epochs, save = [], Keeper.save
    monkeypatch.setattr(
        Keeper, "save", lambda self, epoch, position=None: (epochs.append(epoch), save(self, epoch, position))
    )
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
    first = start(*flags)
    try:
        second = train(*flags, check=75)
        assert f"process {first.pid} on " in second.stderr and "is training it" in second.stderr
    finally:
        first.kill()
        first.communicate()
    again = start(*flags)  # the lock went with its holder
    again.kill()
    again.communicate()


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
    flags = ("--imagenet_dir", root, "--model", "mae_vit_demo_patch8", "--input_size", "32", "--epochs", "30",
             "--batch_size", "12", "--num_workers", "0", "--cache", "off", "--output_dir", tmp_path / "run")  # fmt: skip
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
    run = start(*flags)
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
    def __getitem__(self, i): return torch.zeros(1)

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


def resolved(*flags):
    return resolve(build_parser("", "").parse_args(list(flags)))


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "20.00 GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes."), "1024 MiB"),
        (MemoryError(), "some memory"),
    ],
)  # fmt: skip
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
    assert "--batch_size 64: out of memory, 1073741824 MiB more were needed. Try --batch_size 32 --accum_iter 2" in told


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
