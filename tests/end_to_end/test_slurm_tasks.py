"""What --slurm makes of a task, on a machine without a SLURM: its command, its signals, its end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from maekit.drivers import pool, slurm
from maekit.runs.status import PREEMPTED
from tests.support import KIT, run
from tests.support.cluster import grid_of, pool_here
from tests.support.processes import wait_for

QUICK = KIT / "quick_sweep_test.sh"
SMALL = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")


def test_without_slurm_it_is_one_line(tmp_path):
    """A machine without SLURM: a PATH with what the driver needs, and no sbatch."""
    for name in ("bash", "dirname", "sed", "mkdir", "mv", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    flags = ("--slurm", "--time 5", "--output_dir", tmp_path / "out")
    result = run("bash", QUICK, *SMALL, "--epochs", "1", *flags, env={"PATH": str(tmp_path)}, check=2)
    assert result.stderr.strip() == (
        "error: --slurm: there is no sbatch here. Run on a login node of the cluster, or without --slurm."
    )


def test_a_command_across_nodes_is_torchrun_on_each(monkeypatch, tmp_path):
    line = ["/my python", "/kit/train.py", "--output_dir", "a/train.py", "--seed", "0"]
    torchrun = ["/my python", "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "8", *line[1:]]
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert slurm.across_nodes(torchrun, 8) == torchrun
    monkeypatch.delenv("SLURM_NNODES")
    assert slurm.across_nodes(line, 1) == line
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\necho node9\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("SLURM_NNODES", "3"), ("SLURM_JOB_NODELIST", "node[7-9]"), ("SLURM_JOB_ID", "123456")):
        monkeypatch.setenv(name, value)
    words = slurm.across_nodes(torchrun, 8)
    assert words[:2] == ["bash", "-c"]
    assert words[4:9] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "/my python"]
    meeting = "--rdzv_backend=c10d --rdzv_id=123456 --rdzv_endpoint=node7:23456"
    torchrun = f"-P -m torch.distributed.run --nnodes=3 --nproc_per_node=8 {meeting}"
    assert words[9:] == f"{torchrun} /kit/train.py --output_dir a/train.py --seed 0".split()
    assert slurm.across_nodes(line, 8) == words


def test_a_signal_to_all_processes_of_a_run_still_saves_it(tmp_path):
    """SLURM tells every process of a job, those that decode images as well, and the task passes on what it is told."""
    flags = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "2", "--epochs", "500")
    process = subprocess.Popen(
        [sys.executable, KIT / "train.py", *flags, "--output_dir", tmp_path],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for((tmp_path / "checkpoint.pth").exists)
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode in (143, -signal.SIGTERM) and "Traceback" not in error
    assert "worker" not in error and json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"


def test_a_run_that_fails_after_it_was_preempted_once_is_not_preempted_again(tmp_path):
    """What status.json says of an earlier start does not have the task queued again and again."""
    before = {"status": PREEMPTED, "epoch": 1, "epochs": 2, "time": time.time() - 60}
    (folder,) = grid_of(tmp_path / "grid.txt", ["exit 2"])
    (folder / "status.json").write_text(json.dumps(before))
    assert run(*pool_here("--line", "0", tmp_path / "grid.txt")).returncode == 2
    now = {**before, "time": time.time() + 60}
    (folder / "status.json").write_text(json.dumps(now))
    assert run(*pool_here("--line", "0", tmp_path / "grid.txt")).returncode == pool.INTERRUPTED
