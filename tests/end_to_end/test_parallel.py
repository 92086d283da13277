"""Several processes, started by the real torchrun, are one process with the same global batch."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from maekit import distributed, files
from maekit.data import loader
from tests.support import KIT, run, started_as, train
from tests.support.runs import losses

DATA = ("--demo", "--epochs", "2", "--max_images", "150", "--num_workers", "0")  # 2 does not divide 150 / 32
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
# train.py; a process that ended with gloo's threads still running would at times be aborted, one time in five
LEAVES_NO_GROUP = """
import sys, torch
sys.path.insert(0, {kit!r})
import train
from maekit import errors

code = errors.exit_code(train.main)
assert not torch.distributed.is_initialized()
sys.exit(code)
"""


def torchrun(*flags, nproc=2, options=(), script=None, **more):
    path = KIT / "train.py"
    if script is not None:
        path = flags[-1] / "script.py"
        path.write_text(script.format(kit=str(KIT)))
    return run(*TORCHRUN, "--nproc_per_node", nproc, *options, path, *flags, **more)


def launched(*words):
    """An ordinary torchrun: its ranks are its children, so that one can be found and killed."""
    env = started_as(TORCHRUN)[1]
    words = [str(word) for word in (*TORCHRUN, *words)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def assert_equal_curves(a, b, tolerance=1e-5):
    ours, theirs = losses(a), losses(b)
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse", "val_loss", "lr"):
            if row.get(name) is not None:
                assert row[name] == pytest.approx(other[name], rel=tolerance), (name, row["epoch"])


@pytest.mark.parametrize("norm", ["LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"])
def test_two_processes_equal_one_with_the_same_global_batch(norm, tmp_path):
    """All probes watch; the validation images are shared out, each counted once."""
    flags = (*DATA, "--norm", norm, "--alpha", "0.1", "--probes", "all", "--lr", "4e-3")
    train(*flags, "--batch_size", "32", "--output_dir", tmp_path / "one", check=0)
    torchrun(*flags, "--batch_size", "16", "--output_dir", tmp_path / "two", check=0)
    assert_equal_curves(tmp_path / "one", tmp_path / "two")
    one, two = (files.read_csv(tmp_path / name / "log.csv")[0] for name in ("one", "two"))
    for name in ("untrained_frozen_accuracy", "untrained_knn_accuracy"):  # of an encoder that does not move: equal
        assert one[name] == pytest.approx(two[name], abs=1e-4)
    assert abs(one["accuracy"] - two["accuracy"]) < 5 and abs(one["frozen_accuracy"] - two["frozen_accuracy"]) < 5


def test_with_gradient_accumulation_too(tmp_path):
    """Also where half of the classes have no label, and parts of a batch more of them than others."""
    flags = (*DATA, "--norm", "adyt", "--lr", "4e-3", "--probes", "frozen", "--alpha", "0.5", "--label_map", "half")
    train(*flags, "--batch_size", "32", "--output_dir", tmp_path / "one", check=0)
    torchrun(*flags, "--batch_size", "8", "--accum_iter", "2", "--output_dir", tmp_path / "two", check=0)
    assert_equal_curves(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("readout", ["cls", "attentive"])
def test_linear_probing_is_the_same_in_two_processes(readout, tmp_path):
    """Its batch normalisation sees the batches of both, and so do the gradients that go through it."""
    flags = (*DATA, "--task", "linprobe", "--init", "untrained", "--readout", readout)
    train(*flags, "--batch_size", "32", "--output_dir", tmp_path / "one", check=0)
    torchrun(*flags, "--batch_size", "16", "--output_dir", tmp_path / "two", check=0)
    assert_equal_curves(tmp_path / "one", tmp_path / "two")


def test_k_nn_is_the_same_in_three_processes(whole_demo, tmp_path):
    flags = shlex.split("--demo --max_images 100 --num_workers 0 --task knn --init untrained --layers all --output_dir")
    train(*flags, tmp_path / "one", check=0)
    torchrun(*flags, tmp_path / "three", nproc=3, check=0)
    one, three = (json.loads((tmp_path / name / "summary.json").read_text())["acc1"] for name in ("one", "three"))
    assert one == pytest.approx(three, abs=0.51)  # one image of 200 whose neighbours are a tie
    one, three = (files.read_csv(tmp_path / name / "accuracy_by_layer.csv") for name in ("one", "three"))
    assert [row["layer"] for row in one] == [row["layer"] for row in three] == [1, 2, "output"]
    assert all(a["accuracy"] == pytest.approx(b["accuracy"], abs=0.51) for a, b in zip(one, three))


def test_fine_tuning_learns_in_two_processes(tmp_path):
    flags = (*DATA, "--task", "finetune", "--init", "untrained", "--batch_size", "8", "--output_dir", tmp_path)
    torchrun(*flags, check=0)
    assert losses(tmp_path)[1]["val_loss"] < losses(tmp_path)[0]["val_loss"] + 0.1
    assert json.loads((tmp_path / "config.json").read_text())["effective_batch"] == 16


def test_the_rate_follows_the_global_batch(tmp_path):
    flags = shlex.split("--demo --epochs 1 --max_images 64 --batch_size 16 --num_workers 0 --lr 1e-3 --output_dir")
    torchrun(*flags, tmp_path, check=0)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["optim"]["processes"] == 2
    code = (
        "import os; os.environ['WORLD_SIZE'] = '4'\nfrom maekit.settings import parser, resolution\n"
        "print(resolution.resolve(parser.build_parser('', '').parse_args([])).optim.lr)"
    )
    assert float(run(sys.executable, "-c", code, check=0).stdout) == pytest.approx(1e-3 * 64 * 4 / 256)


def test_only_one_process_writes_and_speaks(tmp_path):
    result = torchrun(*DATA, "--batch_size", "16", "--output_dir", tmp_path, check=0)
    assert result.stdout.count("finished after 2 epochs") == 1 and result.stdout.count("epoch 1/2:") == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    again = torchrun(*DATA, "--batch_size", "16", "--output_dir", tmp_path, check=0, script=LEAVES_NO_GROUP)
    assert again.stdout.count("finished already") == 1
    changed = torchrun(
        *DATA, "--batch_size", "16", "--lr", "1", "--output_dir", tmp_path, check=1, script=LEAVES_NO_GROUP
    )
    assert changed.stderr.count("holds a run with --lr") == 1 and "AssertionError" not in changed.stderr


def test_bad_input_is_said_once(tmp_path):
    result = torchrun("--demo", "--batch_size", "5000", "--output_dir", tmp_path, check=1)
    assert (
        result.stderr.count("error: --batch_size 5000") == 1
        and "Traceback (most recent" not in result.stderr.split("torch/distributed")[0]
    )


def test_a_killed_rank_is_recovered_from(tmp_path):
    """torchrun starts all ranks again, which go on from the last checkpoint: the curve is that of an unbroken run."""
    flags = shlex.split("--demo --epochs 4 --max_images 96 --batch_size 8")
    flags += shlex.split("--num_workers 0 --probes frozen --norm adyt --output_dir")
    torchrun(*flags, tmp_path / "whole", check=0)
    options = ("--nproc_per_node", 2, "--max-restarts", 1)
    with launched(*options, KIT / "train.py", *flags, tmp_path / "killed") as launcher:
        while not (tmp_path / "killed/checkpoint.pth").exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        ranks = subprocess.run(
            ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        error = launcher.communicate(timeout=300)[1]
    assert launcher.returncode == 0, error[-3000:]
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_signal_to_torchrun_saves_the_epoch_in_all_ranks(tmp_path):
    flags = shlex.split("--demo --epochs 3 --max_images 320 --batch_size 8 --num_workers 0 --output_dir")
    torchrun(*flags, tmp_path / "whole", check=0)
    folder = tmp_path / "stopped"
    with launched("--nproc_per_node", 2, KIT / "train.py", *flags, folder) as launcher:
        while not (folder / "status.json").exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        time.sleep(0.4)
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
    assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    torchrun(*flags, folder, check=0)
    assert losses(tmp_path / "whole") == losses(folder)


def test_batches_are_shared_out_without_loss(monkeypatch):
    """Every image of one process's epoch is in exactly one process's, and the batches are cut from the same order."""
    alone = [index for batch in loader.BatchOrder(100, 12, 2, seed=3) for _, index in batch]
    shared = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shared.append([[index for _, index in batch] for batch in loader.BatchOrder(100, 4, 2, seed=3)])
    assert [i for batches in zip(*shared) for batch in batches for i in batch] == alone and len(alone) == 96


def test_interleaved_parts_come_back_in_order(monkeypatch):
    """gather_interleaved without processes: the inverse of sharing images out in turns."""
    parts = [torch.arange(10)[rank::3] for rank in range(3)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(distributed, "gather", lambda own: torch.cat([padded(part, len(own)) for part in parts]))
    assert distributed.gather_interleaved(parts[1], 10).tolist() == list(range(10))


def padded(part, n):
    return torch.cat([part, part.new_zeros(n - len(part))])
