"""Runs side by side: the pool of the drivers, with real runs, and with quick ones that look like train.py to it."""

import fcntl
import io
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from maekit import errors, files, locks
from maekit.drivers import pool, tasks
from maekit.drivers.board import Board
from maekit.machine import available_cores
from maekit.runs.folder import RunFolder
from maekit.runs.status import DIVERGED, FAILED, FINISHED, PREEMPTED, RUNNING
from tests.support import KIT, run, train

POOL = KIT / "maekit/drivers/pool.py"

# What train.py is to the pool: claims its folder, says where it is, saves its state on SIGTERM, leaves a summary.
STAND_IN = """
import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path
flag = argparse.ArgumentParser().add_argument
for name, default in dict(output_dir="", seconds=0.0, code=0, say="", child="", deaf=0, device="", launcher=0).items():
    flag("--" + name, type=type(default), default=default)
typed = flag.__self__.parse_args()
sys.path.insert(0, KIT)
from maekit import errors
from maekit.runs.folder import RunFolder
from maekit.runs.status import PREEMPTED, RUNNING, Status
folder = RunFolder(typed.output_dir)
shown = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}

def main():
    if folder.claim({}) is not None:
        print("finished already", flush=True)
        return 0
    (folder.path / "config.json").write_text('{"identity": {}}')
    status = Status(folder, 4)
    status.write(RUNNING, 1, 0.0, 50.0)
    def stop(*_):
        status.write(PREEMPTED, 1)
        folder.release()
        os._exit(143)
    if typed.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, stop)
    if typed.child:
        subprocess.Popen(["sleep", typed.child], start_new_session=True, stdout=subprocess.DEVNULL)
    started = time.time()
    with open(folder.path / "trained.txt", "a") as f:
        f.write(f"{os.getppid()}\\n")
    print(typed.say, flush=True)
    time.sleep(typed.seconds)
    if typed.code > 128:
        os.kill(os.getpid(), typed.code - 128)
    if typed.code == 0:
        ended = {"status": "finished", "from": started, "to": time.time(), **shown}
        folder.summary.write_text(json.dumps(ended))
    folder.release()
    return typed.code

code = errors.exit_code(main)
sys.exit(min(code, 1) if typed.launcher else code)  # torchrun makes 1 of every code
"""


@pytest.fixture
def grid(tmp_path):
    """grid(flags, flags, ...): a grid file of stand-in runs with these flags; their folders are grid.folders."""
    script = tmp_path / "stand_in.py"
    script.write_text(f"KIT = {str(KIT)!r}\n{STAND_IN}")
    root = tmp_path / "out"
    root.mkdir()

    def write(*every, name="commands"):
        write.folders = [RunFolder(root / f"{name[0]}{i}") for i in range(len(every))]
        lines = [
            shlex.join([sys.executable, str(script), "--output_dir", str(folder.path), *flags.split()])
            for folder, flags in zip(write.folders, every)
        ]
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        return root / f"{name}.txt"

    write.analysis = (sys.executable, "-c", "print('THE ANALYSIS')")
    return write


def words(file, jobs, *flags, analysis=()):
    files_ = file if isinstance(file, (list, tuple)) else [file]
    return [
        str(w)
        for w in (sys.executable, POOL, "--jobs", jobs, *flags, *files_, *(("--", *analysis) if analysis else ()))
    ]


def go(file, jobs, *flags, analysis=(), check=None, **env):
    """Run a pool to its end."""
    without = {"OMP_NUM_THREADS": None, "CUDA_VISIBLE_DEVICES": None, **env}
    return run(
        "env",
        *(f"-u{name}" for name, value in without.items() if value is None),
        *(f"{name}={value}" for name, value in without.items() if value is not None),
        *words(file, jobs, *flags, analysis=analysis),
        check=check,
    )


def start(command):
    return subprocess.Popen(
        [str(w) for w in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHON": sys.executable},
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def summaries(grid):
    return [files.read_json(folder.summary) for folder in grid.folders]


def most_at_once(grid):
    spans = [(found["from"], found["to"]) for found in summaries(grid)]
    return max(sum(a <= moment < b for a, b in spans) for moment, _ in spans)


def trainings(grid):
    return [len((folder.path / "trained.txt").read_text().splitlines()) for folder in grid.folders]


def processes(text):
    found = subprocess.run(["pgrep", "-f", "--", text], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


class TestSharing:
    """Which run gets what."""

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


class TestFailing:
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
        with start([sys.executable, *shlex.split(file.read_text().splitlines()[0])[1:]]) as other:
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


class TestProgress:
    def test_status_tells_every_state_while_another_driver_runs(self, grid):
        file = grid(*[""] * 3, *["--seconds 60"] * 2, *[""] * 3)
        states = (FINISHED, DIVERGED, FINISHED, None, None, FAILED, RUNNING, None)
        for folder, state in zip(grid.folders, states):
            if state:
                folder.path.mkdir()
                files.write_json(
                    folder.status if state in (FAILED, RUNNING) else folder.summary,
                    {"status": state, "error": "OSError: gone"},
                )
        only = file.with_name("slow.txt")
        only.write_text("".join(file.read_text().splitlines(keepends=True)[3:5]))
        with start(words(only, 2)) as driver:
            wait_for(lambda: all(locks.is_held(f.lock) for f in grid.folders[3:5]))
            wait_for(lambda: all(f.status.exists() for f in grid.folders[3:5]))
            for _ in range(5):
                counted, *rest = go(file, 1, "--status", check=0).stdout.splitlines()
            driver.terminate()
            out = driver.communicate()[0]
        assert counted == "8 runs: 2 done, 2 running, 1 failed, 1 diverged, 2 left"
        assert rest[0] == "  |#####...............|  25% c3, 50 images/s"
        assert rest[2] == f"  failed: {grid.folders[5].path}: OSError: gone"
        assert driver.returncode == 143 and "is training it" not in out

    def test_without_a_terminal_there_is_a_block_now_and_then(self, grid, capsys):
        this = pool.Pool(2, 1)
        this.board.seconds = 0.5
        assert this.run(tasks.read_tasks(grid("--seconds 2.5", "--seconds 2.5", "--code 1")))
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "0 of 3 done, 0 failed, 2 running" in out
        assert "\n  |#####...............|  25% [1/3] c0, 50 images/s\n  |#####" in out

    def test_on_a_terminal_lines_are_refreshed_in_place(self, grid):
        file = grid(*["--seconds 3.5"] * 2, "--say " + "long" * 50 + " --code 1")
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        env = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(words(file, 2), stdout=slave, stderr=slave, env=env) as driver:
            os.close(slave)
            text = b""
            try:
                while part := os.read(master, 65536):
                    text += part
            except OSError:  # the end of a terminal
                pass
        assert driver.returncode == 1
        text = text.decode().replace("\r\n", "\n")
        assert text.count("\x1b[3A\r\x1b[J") >= 2  # three lines of progress, over themselves
        for line in re.findall(r"^(?:\x1b\[.A\r\x1b\[J)?(  \|.*|\d of .*)$", text, re.MULTILINE):
            assert len(line) < 40, line
        screen = []
        for piece in re.split(r"(\x1b\[\dA\r\x1b\[J)", text):  # what is left to read in the end
            up = re.fullmatch(r"\x1b\[(\d)A\r\x1b\[J", piece)
            screen = screen[: -int(up.group(1))] if up else screen + piece.split("\n")[:-1]
        assert [line[:17] for line in screen if line.startswith("[")] == [
            "[1/3] c0: started",
            "[2/3] c1: started",
            *sorted(["[1/3] c0: done", "[2/3] c1: done"]),
            "[3/3] c2: started",
            "[3/3] c2: failed,",
        ] or len(screen) >= 6
        assert not any(line.startswith("  |") for line in screen)

    def test_the_time_left_is_that_of_what_is_left_to_train(self, grid, monkeypatch):
        """Half of the runs were done before: they took no time of this start."""
        file = grid(*[""] * 8)
        for folder in grid.folders[:4]:
            folder.path.mkdir()
            files.write_json(folder.summary, {"status": "finished"})
        every = tasks.read_tasks(file)
        this = pool.Pool(2, 1)
        monkeypatch.setattr(this, "start_some", lambda: None)
        monkeypatch.setattr(this, "stop", lambda: None)
        this.signalled = signal.SIGTERM
        this.run(every)  # counts what there is to do
        this.waiting.clear()
        this.waiting.extend(every[6:])  # 2 of the 4 are done
        this.done, this.started = 6, time.monotonic() - 600
        assert this.overview() == ["6 of 8 done, 0 failed, 0 running, about 10 min left"]

    def test_a_board_that_is_no_terminal_or_a_dumb_one_only_adds_lines(self):
        board = Board(io.StringIO())
        board.say("a")
        board.show(["b", "c"])
        board.clear()
        assert not board.live and board.stream.getvalue() == "a\nb\nc\n"


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
    code = "import sys; from tests.drivers.pool import test_faults; test_faults.soak(sys.argv[1])"
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
        both = [
            subprocess.Popen(
                [str(w) for w in (*quick, "--jobs", "1", "--output_dir", two)],
                text=True,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            )
            for _ in range(2)
        ]
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
