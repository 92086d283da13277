"""Runs of a pool that fail, and what a signal or a fault of its own ends."""

import io
import os
import re
import signal
import sys
import threading
import time

import pytest

from maekit import files
from maekit.drivers import pool, tasks
from tests.support.pool import go, trainings, words
from tests.support.processes import processes, start, wait_for


class TestFailing:
    @pytest.mark.slow
    def test_a_failed_run_does_not_stop_the_rest_and_is_listed_last(self, grid):
        file = grid("--say fine", "--say so_bad --code 3", "--say one --code 137", "")
        result = go(file, 2, analysis=grid.analysis, check=1)
        assert [folder.summary.exists() for folder in grid.folders] == [True, False, False, True]
        assert "THE ANALYSIS" in result.stdout
        *_, first, second = result.stderr.strip().splitlines()
        assert sorted(line.split(":")[0] for line in (first, second)) == ["exit code 137", "exit code 3"]
        assert (grid.folders[1].path / "output.txt").read_text() == "so_bad\n"
        assert re.search(r"^\[2/4\] c1: failed, exit code 3: so_bad$", result.stdout, re.MULTILINE)
        assert "so_bad" not in result.stderr.replace("--say so_bad", "")

        counted = go(file, 1, "--status", check=0).stdout.splitlines()
        assert counted[0] == "4 runs: 2 done, 0 running, 2 failed, 0 diverged, 0 left"
        assert counted[2] == f"  failed: {grid.folders[2].path}: exit code 137", "killed: could not say so itself"
        assert trainings(grid) == [1] * 4
        go(file, 2, check=1)
        assert trainings(grid) == [1, 2, 2, 1], "tried again, and only what failed"
        assert (grid.folders[0].path / "output.txt").read_text() == "fine\nfinished already\n"

    @pytest.mark.slow
    def test_what_a_run_says_is_seen_as_before_where_one_runs_at_a_time(self, grid):
        result = go(grid("--say hello", "--say so_bad --code 3"), 1, check=1)
        assert re.search(r"^\[1/2\] \S+ .*--say hello\nhello$", result.stdout, re.MULTILINE)
        assert not (grid.folders[0].path / "output.txt").exists()

    def test_a_folder_that_cannot_be_made_is_told_of(self, grid):
        file = grid("", "")
        grid.folders[0].path.write_text("in the way")
        out = go(file, 2, check=1).stdout
        assert re.search(r"\[1/2\] c0: failed, exit code 2: error: --output_dir .*c0: is a file", out)
        assert grid.folders[1].summary.exists()

    def test_of_what_torchrun_prints_the_error_is_shown(self, tmp_path):
        task = tasks.Task(f"x --output_dir {tmp_path}")
        task.output = io.BytesIO(
            b"an earlier start\n\rbar 1\rbar 2\nerror: --lr -1: must be positive.\nTraceback\n=====\n"
        )
        assert task.last_words() == "error: --lr -1: must be positive."
        task.output = io.BytesIO(b"error: of an earlier start\nbar 1\rbar 2\nValueError: 7\n====\n\n")
        task.words_from = 27
        assert task.last_words() == "ValueError: 7"

    def test_a_line_that_is_no_run_is_one_line(self, grid):
        file = grid("")
        file.write_text(file.read_text() + "\necho 'hello\n")
        error = go(file, 2, check=2).stderr
        assert "line 3" in error and len(error.strip().splitlines()) == 1 and not grid.folders[0].path.exists()

    def test_the_second_file_comes_after_the_first(self, grid):
        both = [grid("--seconds 0.5", "--code 1"), grid("", name="evaluations")]
        go(both, 2, check=1)
        ended = [files.read_json(f.with_name(name) / "summary.json") for f, name in zip(both, ("c0", "e0"))]
        assert ended[1]["from"] > ended[0]["to"]

    def test_what_the_analysis_says_counts(self, grid):
        go(grid(""), 2, analysis=(sys.executable, "-c", "import sys; sys.exit(2)"), check=2)


@pytest.mark.slow
class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_they_reach_the_runs_and_leave_no_process(self, grid, number, code, jobs):
        file = grid("--code 3", "", *["--seconds 61.5 --child 62.5"] * 2, "")
        with start(words(file, jobs, analysis=grid.analysis)) as driver:
            wait_for(lambda: len(processes(str(file.parent))) == 1 + jobs and processes("sleep 62.5"))
            wait_for(lambda: all((f.path / "trained.txt").exists() for f in grid.folders[2 : 2 + jobs]))
            os.kill(driver.pid, number)
            out = driver.communicate(timeout=30)[0]
        assert driver.returncode == code
        assert out.strip().splitlines()[-1] == "stopped: 1 of 5 done, 1 failed; the same command goes on from there."
        assert "exit code 3: " in out and "THE ANALYSIS" not in out
        assert not processes(str(file.parent)) and not processes("sleep 62.5")
        assert not grid.folders[4].path.exists()
        preempted = 0 if number == signal.SIGINT else jobs
        counted = go(file, 1, "--status", check=0).stdout.splitlines()[0]
        counts = dict(reversed(part.split()) for part in counted.partition(": ")[2].split(", "))
        assert int(counts.get("preempted", 0)) == preempted and int(counts["left"]) == 3 - preempted
        assert (counts["done"], counts["failed"]) == ("1", "1")

    def test_the_second_does_not_wait(self, grid):
        file = grid(*["--seconds 63.5 --deaf 1 --child 64.5"] * 2)
        with start(words(file, 2)) as driver:
            wait_for(lambda: all((f.path / "trained.txt").exists() for f in grid.folders))
            wait_for(lambda: len(processes("sleep 64.5")) == 2)
            os.kill(driver.pid, signal.SIGINT)
            seen = []
            while "does not wait" not in "".join(seen):
                seen.append(driver.stdout.readline())
                assert seen[-1]
            assert driver.poll() is None and len(processes(str(file.parent))) == 3
            since = time.monotonic()
            os.kill(driver.pid, signal.SIGINT)
            out = driver.communicate(timeout=30)[0]
        assert driver.returncode == 130 and "stopped: 0 of 2 done" in out and time.monotonic() - since < 5
        assert not processes(str(file.parent)) and not processes("sleep 64.5")

    def test_one_that_does_not_end_is_killed_in_time(self, grid, monkeypatch):
        monkeypatch.setattr(pool, "PATIENCE", 0.5)
        this = pool.Pool(1, 1)
        later = threading.Timer(2.0, this.note, (signal.SIGTERM, None))
        later.start()
        assert not this.run(tasks.read_tasks(grid("--seconds 65.5 --deaf 1")))
        assert not processes(str(grid.folders[0].path))

    def test_the_analysis_is_ended_too(self, grid):
        analysis = (sys.executable, "-c", "import time; print('BEGUN', flush=True); time.sleep(66.5)")
        with start(words(grid(""), 2, analysis=analysis)) as driver:
            while "BEGUN" not in (line := driver.stdout.readline()):
                assert line
            os.kill(driver.pid, signal.SIGTERM)
            driver.communicate(timeout=20)
        assert driver.returncode == 143 and not processes("sleep[(]66.5")

    def test_a_fault_of_the_pool_itself_leaves_no_process(self, grid, monkeypatch):
        def broken(*_):
            raise RuntimeError("the pool")

        monkeypatch.setattr(pool.Pool, "collect", broken)
        with pytest.raises(RuntimeError, match="the pool"):
            pool.Pool(2, 1).run(tasks.read_tasks(grid("--seconds 67.5", "--seconds 67.5")))
        assert not processes(str(grid.folders[0].path.parent))
