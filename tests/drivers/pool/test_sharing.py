"""What each run of a pool gets of the machine, and what drivers get that run one grid at once."""

import os
import shlex
import sys

import pytest

from maekit import errors, files, locks
from maekit.drivers import tasks
from maekit.machine import available_cores, visible_gpus
from tests.conftest import hide_gpus
from tests.support.pool import POOL, go, trainings, words
from tests.support.processes import start, wait_for


def summaries(grid):
    return [files.read_json(folder.summary) for folder in grid.folders]


def most_at_once(grid):
    spans = [(found["from"], found["to"]) for found in summaries(grid)]
    return max(sum(a <= moment < b for a, b in spans) for moment, _ in spans)


class TestSharing:
    """Which run gets what."""

    @pytest.mark.slow
    @pytest.mark.parametrize("jobs", [1, 3])
    def test_as_many_run_at_once_as_was_asked_for(self, grid, jobs):
        out = go(grid(*["--seconds 0.6"] * 4), jobs, analysis=grid.analysis, check=0).stdout
        assert most_at_once(grid) == jobs and trainings(grid) == [1] * 4
        assert out.strip().splitlines()[-1] == "THE ANALYSIS"

    @pytest.mark.parametrize(
        ("visible", "jobs", "nproc", "shares"),
        [
            ("4,5,6,7", 2, 2, {"4,5", "6,7"}),
            ("4,5,6,7", 2, 1, {"4", "5"}),
            ("GPU-a,GPU-b,GPU-c", 2, 2, {"GPU-a,GPU-b", "GPU-c,GPU-a"}),
            ("1", 2, 1, {"1"}),
            ("0,3", 1, 2, {"0,3"}),  # a run alone has all
            ("", 2, 1, {""}),
            ("0,-1,2", 2, 1, {"0"}),  # CUDA stops at -1
        ],
    )
    def test_gpus_are_dealt_over_the_jobs(self, grid, visible, jobs, nproc, shares):
        go(grid(*["--seconds 0.4"] * 2), jobs, "--nproc", nproc, CUDA_VISIBLE_DEVICES=visible, check=0)
        assert {found["CUDA_VISIBLE_DEVICES"] for found in summaries(grid)} == shares

    def test_a_device_that_was_typed_is_not_dealt_away(self, grid):
        go(grid("--device cuda:1", "--device cuda"), 2, CUDA_VISIBLE_DEVICES="0,1", check=0)
        assert [found["CUDA_VISIBLE_DEVICES"] for found in summaries(grid)] == ["0,1", "1"]

    def test_the_gpus_are_nvidia_smis_where_nothing_is_chosen(self, grid, tmp_path):
        smi = tmp_path / "bin/nvidia-smi"
        smi.parent.mkdir()
        smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
        smi.chmod(0o755)
        go(grid(*["--seconds 0.4"] * 2), 2, PATH=f"{smi.parent}:{os.environ['PATH']}", check=0)
        assert {found["CUDA_VISIBLE_DEVICES"] for found in summaries(grid)} == {"0", "1"}

    def test_on_a_machine_with_gpus_tests_see_none(self, tmp_path, monkeypatch):
        smi = tmp_path / "nvidia-smi"
        smi.write_text("#!/bin/sh\nprintf '0\n1\n'\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert visible_gpus() == ["0", "1"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        (tmp_path / "hidden").mkdir()
        hide_gpus(tmp_path / "hidden")
        assert visible_gpus() == []
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert visible_gpus() == []

    @pytest.mark.slow
    def test_threads_are_shared_out_unless_they_were_chosen(self, grid):
        cores = available_cores()
        for jobs, nproc, chosen, expected in (
            (2, 1, None, max(1, cores // 2)),
            (2, 4, None, max(1, cores // 8)),
            (1, 1, None, None),
            (2, 1, 5, 5),
        ):
            go(grid("", name=f"x{jobs}{nproc}{chosen}"), jobs, "--nproc", nproc, OMP_NUM_THREADS=chosen, check=0)
            (found,) = summaries(grid)
            for folder in grid.folders:
                folder.clear()
            assert found["OMP_NUM_THREADS"] == (None if expected is None else str(expected))


@pytest.mark.slow
class TestTwoDrivers:
    def test_they_share_the_work_and_both_analyse_it_all(self, grid):
        file = grid(*["--seconds 0.6"] * 12)
        count = f"import glob; print('ANALYSED', len(glob.glob({str(file.parent / '*/summary.json')!r})))"
        both = [start(words(file, jobs, analysis=(sys.executable, "-c", count))) for jobs in (1, 2, 2)]
        outs = [driver.communicate(timeout=100)[0] for driver in both]
        assert [driver.returncode for driver in both] == [0, 0, 0], outs
        assert trainings(grid) == [1] * 12
        assert all("ANALYSED 12" in out and "failed" not in out for out in outs)
        drivers = {(folder.path / "trained.txt").read_text() for folder in grid.folders}
        assert len(drivers) > 1, "they share it"

    def test_one_that_another_trains_is_waited_for_and_that_is_said_once(self, grid):
        file = grid("--seconds 5", "")
        with start([sys.executable, *shlex.split(file.read_text().splitlines()[0])[1:]], cold=True) as other:
            wait_for(lambda: locks.is_held(grid.folders[0].lock))
            out = go(file, 2, analysis=grid.analysis, check=0).stdout
            assert other.wait() == 0
        assert out.count("[1/2] c0: process") == 1 and f"process {other.pid} on" in out
        assert out.index("[2/2] c1: done") < out.index("[1/2] c0: done") < out.index("THE ANALYSIS")
        assert trainings(grid) == [1, 1]

    def test_one_whose_trainer_is_killed_is_taken_over(self, grid):
        file = grid("--seconds 30")
        with start([sys.executable, *shlex.split(file.read_text())[1:]]) as other:
            wait_for(lambda: (grid.folders[0].path / "trained.txt").exists())
            file.write_text(file.read_text().replace("--seconds 30", "--seconds 0"))
            with start(words(file, 1)) as driver:
                assert "is training it" in driver.stdout.readline()
                other.kill()
                driver.communicate()
        assert driver.returncode == 0 and trainings(grid) == [2]

    def test_a_run_that_finds_the_folder_locked_is_no_failure(self, grid):
        """The other one began between the pool's look and the run's; torchrun makes 1 of its exit code."""
        for flags in ("--seconds 1.5", "--seconds 1.5 --launcher 1"):
            file = grid(flags, name=f"n{len(flags)}")
            both = [start([sys.executable, POOL, file]) for _ in range(4)]
            outs = [driver.communicate(timeout=60)[0] for driver in both]
            assert [driver.returncode for driver in both] == [0] * 4, outs
            assert trainings(grid) == [1]

    def test_a_launcher_whose_run_found_it_locked_and_then_ended_by_another_is_no_failure(self, tmp_path):
        task = tasks.Task(f"sh -c 'exit 1' --output_dir {tmp_path}")
        task.start(dict(os.environ))
        task.child.wait(10)
        assert not task.was_taken(1) and task.was_taken(errors.BUSY)
        files.write_json(task.folder.summary, {"status": "finished"})
        assert task.was_taken(1)
        task.start(dict(os.environ))
        task.child.wait(10)
        assert not task.was_taken(1), "ended before it was started: another reason, such as other settings"
