"""What the pool says of its runs while they train, on a terminal and without one."""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pytest

from maekit import files, locks
from maekit.drivers import pool, tasks
from maekit.drivers.board import Board
from maekit.runs.status import DIVERGED, FAILED, FINISHED, RUNNING
from tests.support.pool import go, words
from tests.support.processes import start, wait_for


class TestProgress:
    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_without_a_terminal_there_is_a_block_now_and_then(self, grid, capsys):
        this = pool.Pool(2, 1)
        this.board.seconds = 0.5
        assert this.run(tasks.read_tasks(grid("--seconds 2.5", "--seconds 2.5", "--code 1")))
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "0 of 3 done, 0 failed, 2 running" in out
        assert "\n  |#####...............|  25% [1/3] c0, 50 images/s\n  |#####" in out

    @pytest.mark.slow
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

    @pytest.mark.parametrize(
        "name, value", [("JPY_PARENT_PID", "1"), ("MPLBACKEND", "module://ipykernel.backend_inline")]
    )
    def test_in_a_cell_of_a_notebook_nothing_is_refreshed_in_place(self, name, value, monkeypatch):
        """What a ! starts has a terminal there, whose cursor goes nowhere: each refresh would be lines more."""
        for other in ("JPY_PARENT_PID", "MPLBACKEND"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv("TERM", "xterm-color")
        master, slave = pty.openpty()
        with open(slave, "w") as stream:
            assert Board(stream).live
            monkeypatch.setenv(name, value)
            assert not Board(stream).live
        os.close(master)
