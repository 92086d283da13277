"""A sweep whose points share a warm process, killed again and again, has the curves of one that nothing happens to."""

import json
import os
import random
import signal
import time

import pytest
import torch

from maekit import files
from maekit.runs.status import RUNNING
from tests.support import KIT, run
from tests.support.processes import is_alive, start, wait_for
from tests.support.runs import flat, losses

KILLS, EPOCHS = 10, 40
QUICK = KIT / "quick_sweep_test.sh"
SWEEP = (QUICK, "--demo", "--epochs", EPOCHS, "--max_images", "32", "--batch_size", "16", "--num_workers", "0")
SWEEP += ("--checkpoint_minutes", "0.003", "--probes", "frozen")
POINTS = ("-0.5", "0.0", "0.5")


def folder_of(root, alpha):
    return root / "demo-mae-reconstruction-gap/quick" / alpha / "LayerNorm_lr0.004_seed0"


def state_of(root, alpha):
    folder = root / f"checkpoints/demo-quick/demo_alpha-{alpha}_LayerNorm_lr0.004_seed0"
    return flat(torch.load(folder / "checkpoint.pth", weights_only=True))


class Sweep:
    """A sweep's folder, looked at from outside."""

    def __init__(self, root):
        self.root = root

    def epochs(self):
        """How many epochs all points have trained."""
        logs = [folder_of(self.root, alpha) / "log.csv" for alpha in POINTS]
        return sum(len(log.read_bytes().splitlines()) - 1 for log in logs if log.exists())

    def worker(self):
        """The process that is training, None if none is."""
        for alpha in POINTS:
            status = folder_of(self.root, alpha) / "status.json"
            known = json.loads(status.read_text()) if status.exists() else {}
            if known.get("status") == RUNNING and is_alive(known["process"]):
                return known["process"]
        return None

    def kill_worker(self, worker, epochs, seconds):
        """SIGKILL to a worker, so many epochs and seconds from now. False if it has ended by itself before."""
        until = self.epochs() + epochs
        wait_for(lambda: self.epochs() >= until or not is_alive(worker))
        time.sleep(seconds)
        killed = is_alive(worker)
        if killed:
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: not is_alive(worker))
        return killed


@pytest.mark.slow
def test_ten_kills_of_a_sweep_in_a_warm_process_change_nothing(tmp_path):
    """SIGKILL to the worker, every second time to the driver as well, between the start of a point and some epochs later."""
    run(*SWEEP, "--warm", "off", "--output_dir", tmp_path / "whole", check=0, timeout=600)
    root, draw, kills = tmp_path / "killed", random.Random(0), 0
    sweep = Sweep(root)
    while kills < KILLS:
        with start((*SWEEP, "--jobs", "1", "--output_dir", root)) as driver:
            while driver.poll() is None and kills < KILLS:
                worker = sweep.worker()
                if worker is None:  # between two points
                    time.sleep(0.02)
                    continue
                if sweep.kill_worker(worker, draw.randrange(4), draw.uniform(0, 0.1)):
                    kills += 1
                    if kills % 2 == 0:
                        os.killpg(driver.pid, signal.SIGKILL)
            said = driver.communicate(timeout=300)[0]
        assert driver.returncode in (1, -signal.SIGKILL), f"ended after {kills} kills: {said}"
    said = run(*SWEEP, "--jobs", "1", "--output_dir", root, check=0, timeout=600).stdout
    assert "goes on with epoch" in said
    for alpha in POINTS:
        ours, theirs = (folder_of(each, alpha) for each in (root, tmp_path / "whole"))
        assert losses(ours) == losses(theirs) and len(losses(ours)) == EPOCHS
        for name in ("trajectory.json", "norm_alpha.csv"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        assert files.read_json(ours / "status.json")["status"] == "finished"
        mine, others = (state_of(each, alpha) for each in (root, tmp_path / "whole"))
        assert mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
