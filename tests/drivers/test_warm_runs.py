"""Runs that share a process are those of processes of their own, in what they compute, leave, print, and how they end."""

import json
import os
import re
import shlex
import signal
import sys

import pytest
import torch

from maekit import files
from maekit.runs.status import FAILED, PREEMPTED
from tests.support import KIT, forkserver, run, train
from tests.support.pool import POOL
from tests.support.processes import is_alive, start, wait_for
from tests.support.runs import losses

SMALL = ("--demo", "--epochs", "2", "--max_images", "96", "--batch_size", "32")
LONG = ("--demo", "--epochs", "20", "--max_images", "32", "--batch_size", "16", "--probes", "none", "--norm", "adyt")
POINTS = {  # of a sweep and of a comparison, with and without processes that decode
    "a": ("--alpha", "-0.5", "--probes", "all"),
    "b": ("--norm", "adyt", "--num_workers", "1"),
    "c": ("--alpha", "0.5", "--probes", "all"),
    "d": ("--alpha", "0.1", "--probes", "all"),
    "e": ("--norm", "adyt", "--num_workers", "1", "--seed", "1"),
}


def write_grid(root, points):
    """A grid file of train.py commands; points: {name of the folder: flags}."""
    root.mkdir(exist_ok=True)
    lines = [
        shlex.join(map(str, (forkserver.python(), KIT / "train.py", *flags, "--output_dir", root / name)))
        for name, flags in points.items()
    ]
    (root / "commands.txt").write_text("".join(f"{line}\n" for line in lines))
    return root / "commands.txt"


def go(*words, **options):
    return run(sys.executable, POOL, *words, env={"OMP_NUM_THREADS": "1"}, draw=True, **options)


def process_of(folder):
    return files.read_json(folder / "status.json")["process"]


def assert_same_run(mine, theirs):
    """Two folders hold the same results, bit for bit."""
    one, two = (torch.load(folder / "checkpoint.pth", weights_only=False) for folder in (mine, theirs))
    for part in ("model", "probes", "optimizer"):
        assert_same(one.get(part), two.get(part), part)
    logs = [losses(folder) for folder in (mine, theirs)]
    assert logs[0] == logs[1] and logs[0]
    for name in ("trajectory.json", "norm_alpha.csv", "loss_curve.png"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name


def assert_same(one, two, where):
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert list(one) == list(two), where
        for key in one:
            assert_same(one[key], two[key], f"{where} {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, parts in enumerate(zip(one, two)):
            assert_same(*parts, f"{where} {i}")
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(folder of POINTS run by two warm processes, folder of the same each by a process of its own)."""
    folders = []
    for warm in ("auto", "off"):
        root = tmp_path_factory.mktemp(warm) / "out"
        go(
            "--jobs",
            "2",
            "--warm",
            warm,
            write_grid(root, {n: (*SMALL, *flags) for n, flags in POINTS.items()}),
            check=0,
        )
        folders.append(root)
    return folders


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder of LONG, without an interruption."""
    folder = tmp_path_factory.mktemp("reference") / "long"
    train(*LONG, "--output_dir", folder, check=0, env={"OMP_NUM_THREADS": "1"}, draw=True)
    return folder


@pytest.mark.slow
class TestResults:
    def test_they_are_the_same_bit_for_bit(self, both):
        warm, apart = both
        assert len({process_of(warm / name) for name in POINTS}) == 2, "two processes for five runs"
        assert len({process_of(apart / name) for name in POINTS}) == 5, "--warm off"
        for name in POINTS:
            assert_same_run(warm / name, apart / name)

    def test_so_is_what_is_known_of_them(self, both):
        """Its own command as well, and the same figures and arrays."""
        for name in POINTS:
            one, two = ((folder / name / "config.json").read_text() for folder in both)
            one, two = (json.loads(text.replace(str(root), "")) for text, root in zip((one, two), both))
            assert one["command"][0] == str(KIT / "train.py") and f"/{name}" in one["command"]
            assert {**one, "git_commit": None} == {**two, "git_commit": None}
            peaks = [files.read_json(folder / name / "summary.json")["peak_memory_mb"] for folder in both]
            assert peaks[0] == pytest.approx(peaks[1], rel=0.2)

    def test_a_run_prints_to_its_own_file_what_it_would_print(self, both):
        for name in POINTS:
            one, two = (self.lines(folder / name / "output.txt", folder) for folder in both)
            assert (
                one == two
                and len(one) == 4
                and one[0].startswith("96 training images of")
                and one[-1] == f"/{name}: finished after 2 epochs."
            )

    @staticmethod
    def lines(file, root):
        """What a run says, without folders and times, and without what only the first of all says: that there is a cache."""
        text = file.read_text().replace(str(root), "")
        said = [line for line in re.split(r"[\r\n]+", text) if line.strip() and "img/s" not in line]
        return [re.sub(r"[\d.]+ s$", "", line.strip()) for line in said if not line.startswith(("cache", "demo"))]

    def test_a_second_time_all_are_done_already(self, both):
        out = go(both[0] / "commands.txt", check=0).stdout
        assert len(re.findall("finished already, nothing to do", out)) == len(POINTS)


@pytest.mark.slow
class TestEndings:
    def test_a_signal_saves_the_state_and_the_same_command_goes_on(self, tmp_path, reference):
        file = write_grid(tmp_path / "out", {"short": (*LONG[:2], "1", *LONG[3:]), "long": LONG})
        long = tmp_path / "out/long"
        with start((sys.executable, POOL, file), OMP_NUM_THREADS="1") as driver:
            wait_for(lambda: (long / "log.csv").exists() and len((long / "log.csv").read_text().splitlines()) > 2)
            worker = process_of(long)
            assert worker == process_of(tmp_path / "out/short")
            driver.terminate()
            out = driver.communicate(timeout=60)[0]
        assert driver.returncode == 143 and "stopped by SIGTERM; the same command goes on from there." in out, out
        assert out.splitlines()[-1] == "stopped: 1 of 2 done, 0 failed; the same command goes on from there."
        assert files.read_json(long / "status.json")["status"] == PREEMPTED and not is_alive(worker)
        assert not (long / "summary.json").exists() and not (long / "run.lock").exists()
        assert "goes on with epoch" in go(file, check=0).stdout
        assert_same_run(long, reference)

    def test_a_killed_worker_is_its_runs_death_and_the_next_run_gets_another(self, tmp_path, reference):
        short = (*LONG[:2], "1", *LONG[3:])
        file = write_grid(tmp_path / "out", {"short": short, "long": LONG, "next": short})
        folders = [tmp_path / "out" / name for name in ("short", "long", "next")]
        with start((sys.executable, POOL, file), OMP_NUM_THREADS="1") as driver:
            log = folders[1] / "log.csv"
            wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 2)
            worker = process_of(folders[1])
            os.kill(worker, signal.SIGKILL)
            out = driver.communicate(timeout=100)[0]
        command = file.read_text().splitlines()[1]
        assert driver.returncode == 1 and out.splitlines()[-1] == f"exit code 137: {command}"
        known = files.read_json(folders[1] / "status.json")
        assert (known["status"], known["error"]) == (FAILED, "exit code 137")
        assert process_of(folders[0]) == worker != process_of(folders[2])
        assert (folders[2] / "summary.json").exists()
        go(file, check=0)
        assert_same_run(folders[1], reference)

    def test_bad_input_is_told_as_ever_and_the_rest_goes_on(self, tmp_path):
        good = (*SMALL, "--dry_run")
        file = write_grid(
            tmp_path / "out", {"a": good, "b": (*good, "--alpha", "x"), "c": (*good, "--lr", "-1"), "d": good}
        )
        warm, apart = (go("--warm", how, file, check=1) for how in ("auto", "off"))
        assert (warm.stdout, warm.stderr) == (apart.stdout, apart.stderr)
        assert warm.stdout.count("96 training images") == 2 and warm.stderr.count("exit code 2: ") == 2
