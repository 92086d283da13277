"""Runs in processes of their own, and whether two are the same run."""

import subprocess
import sys
import time

import torch

from tests.support import KIT, started_as
from tests.support.runs import flat, losses

QUICK = ("--demo", "--max_images", "48", "--batch_size", "8", "--num_workers", "0")
ALL = ("--alpha", "0.1", "--probes", "all", "--eval_every", "2", "--norm", "adyt")


def start(*flags, cold=False, **options):
    """Start train.py and return when it trains. cold: see started_as."""
    folder = flags[flags.index("--output_dir") + 1]
    (folder / "status.json").unlink(missing_ok=True)
    words, env = started_as((sys.executable, KIT / "train.py", *flags), cold=cold)
    said = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(words, env=env, **said, **options)
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
