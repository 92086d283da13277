"""Real runs in a pool, and a hundred quick ones."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from maekit import files, locks
from maekit.drivers import pool, tasks
from maekit.drivers.board import Board
from maekit.runs.folder import RunFolder
from maekit.runs.status import PREEMPTED
from tests.support import KIT, run, train
from tests.support.pool import words
from tests.support.processes import processes, start, wait_for


@pytest.mark.slow
def test_a_hundred_runs_leave_the_driver_as_it_was(tmp_path):
    """Its memory, its files, its processes, over 100 runs; in a process of its own, so that nothing else counts."""
    script = tmp_path / "quick.py"
    script.write_text(
        "import os, sys\nfolder = sys.argv[2]\nos.makedirs(folder, exist_ok=True)\nprint('x' * 1000)\n"
        "open(folder + '/summary.json', 'w').write('{\"status\": \"finished\"}')\n"
    )
    file = tmp_path / "commands.txt"
    file.write_text("".join(f"{sys.executable} -S {script} --output_dir {tmp_path}/r{i}\n" for i in range(100)))
    code = "import sys; from tests.drivers.pool import test_runs; test_runs.soak(sys.argv[1])"
    out = run(sys.executable, "-c", code, file, check=0).stdout
    print(out)
    assert "after 100 runs" in out


def soak(file):
    """Run a grid file of 100 runs, and look at this process meanwhile."""
    pool.POLL_SECONDS = 0.05
    this, figures, before = pool.Pool(4, 1), [], _children()
    this.board = Board(io.StringIO())

    def measure(original=this.collect):
        original()
        figures.append((this.done, _memory_kb(), len(os.listdir("/dev/fd")), len(_children() - before)))

    this.collect = measure
    assert this.run(tasks.read_tasks(file)) and this.done == 100 and not this.failed
    early = next(f for f in figures if f[0] >= 20)
    late = figures[-1]
    assert late[1] - early[1] < 2000
    assert late[2] <= max(f[2] for f in figures[: len(figures) // 2]) and late[3] == 0
    assert max(f[3] for f in figures) <= 4
    print(f"after {early[0]} runs: memory {early[1]} kB, files {early[2]}, children {early[3]}")
    print(f"after {late[0]} runs: memory {late[1]} kB, files {late[2]}, children {late[3]}")


def _memory_kb():
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(shown.stdout)


def _children():
    with subprocess.Popen(["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True) as pgrep:
        return set(pgrep.communicate()[0].split()) - {str(pgrep.pid)}


def test_the_commands_of_a_grid_are_read_back_as_they_were_meant():
    folder = "Ergebnisse ä/it's $x\t\"&\\*"
    for language in ("C", "C.UTF-8"):
        typed = (KIT / "run_comparison.sh", "--methods", "ln", "--output_dir", folder, "--dry_run")
        out = run(*typed, check=0, env={"LC_ALL": language}).stdout
        command = shlex.split(out)
        assert command[command.index("--output_dir") + 1] == f"{folder}/LayerNorm/seed0"


SMALL = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0")


@pytest.mark.slow
class TestRealRuns:
    def test_other_thread_counts_change_losses_by_rounding_alone(self, tmp_path):
        """--jobs 2 gives each run half the cores; sums are then added up in another order."""
        mse = []
        for threads in ("1", "2"):
            folder = tmp_path / threads
            flags = (*SMALL, "--norm", "adyt", "--alpha", "0.1", "--probes", "frozen", "--output_dir", folder)
            train(*flags, env={"OMP_NUM_THREADS": threads}, check=0)
            mse.append(files.read_csv(folder / "log.csv")[-1]["val_mse"])
        assert mse[0] == pytest.approx(mse[1], rel=1e-5)

    def test_side_by_side_or_by_two_drivers_the_curves_are_the_same(self, tmp_path):
        one, two = tmp_path / "one", tmp_path / "two"
        quick = [KIT / "quick_sweep_test.sh", *SMALL, "--alphas", "0 0.5"]
        run(*quick, "--jobs", "2", "--output_dir", one, env={"OMP_NUM_THREADS": "1"}, check=0)
        both = [start((*quick, "--jobs", "1", "--output_dir", two), OMP_NUM_THREADS="1") for _ in range(2)]
        outs = [driver.communicate(timeout=200)[0] for driver in both]
        assert [driver.returncode for driver in both] == [0, 0], outs
        assert sum(out.count("finished after 1 epochs") for out in outs) == 2, "each is trained once"
        assert all("2 trajectories with 2 points analysed, 0 left out" in out for out in outs)
        found = [sorted(folder.rglob("trajectory.json")) for folder in (one, two)]
        assert len(found[0]) == 2 and len(list(one.rglob("output.txt"))) == 2
        for mine, theirs in zip(*found):
            assert mine.read_bytes() == theirs.read_bytes()
        assert not [file for file in two.rglob("*") if file.suffix in (".tmp", ".lock")]

    def test_torchruns_processes_save_their_state_and_none_is_left(self, tmp_path):
        """Each of them has a session of its own. Asked twice, they are ended at once."""
        folder, file = RunFolder(tmp_path / "run"), tmp_path / "commands.txt"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        flags = [*SMALL, "--epochs", "400", "--batch_size", "8", "--probes", "none", "--output_dir", folder.path]
        file.write_text(shlex.join(str(word) for word in [*launcher, KIT / "train.py", *flags]))
        with start(words(file, 1, "--nproc", 2)) as driver:
            wait_for(folder.checkpoint.exists)
            os.kill(driver.pid, signal.SIGTERM)
            out = driver.communicate(timeout=60)[0]
        assert driver.returncode == 143 and "stopped: 0 of 1 done, 0 failed" in out, out
        assert files.read_json(folder.status)["status"] == PREEMPTED
        assert not processes(str(tmp_path)), out
        with start(words(file, 1, "--nproc", 2)) as driver:
            wait_for(lambda: locks.is_held(folder.lock))
            assert len(processes(str(tmp_path))) >= 4  # driver, torchrun, two of its
            os.kill(driver.pid, signal.SIGINT)
            time.sleep(0.1)
            os.kill(driver.pid, signal.SIGINT)
            driver.communicate(timeout=20)
        assert driver.returncode == 130 and not processes(str(tmp_path))
