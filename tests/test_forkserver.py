"""What tests start in place of Python is like Python, but for the time that it takes to start."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import forkserver
from tests.support.processes import is_alive, wait_for

SHOWN = """
import json, os, resource, signal, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "variable": os.environ.get("A_VARIABLE"),
    "limit": resource.getrlimit(resource.RLIMIT_FSIZE)[0], "hangs_up": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    "file": os.read(int(sys.argv[-1]), 9).decode(), "read": sys.stdin.read(), "torch": "torch" in sys.modules,
    "blocks": sys.stdout.line_buffering or sys.stdout.write_through,
}))
print("said", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    def write(code):
        (tmp_path / "script.py").write_text(code)
        return tmp_path / "script.py"

    return write


def test_a_fork_has_what_a_process_has(script, tmp_path):
    read, write = os.pipe()
    both = {}
    for python in (sys.executable, forkserver.python()):
        os.write(write, b"from file")
        words = f"ulimit -f 5000; trap '' HUP; exec {python} {script(SHOWN)} 'a b' {read}"
        env = {**os.environ, "A_VARIABLE": "ä"}
        result = subprocess.run(
            ["bash", "-c", words],
            input="typed",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            pass_fds=[read],
            check=False,
        )
        assert result.returncode == 7 and result.stderr == "said\n"
        both[python] = json.loads(result.stdout)
    ordinary, fork = both.values()
    assert (ordinary.pop("torch"), fork.pop("torch")) == (False, True)
    assert ordinary == fork and fork["file"] == "from file" and fork["hangs_up"] and fork["variable"] == "ä"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_it_ends_of_the_signal_and_with_all_that_it_started(number, script):
    code = "import os, subprocess, time\nprint(os.getpid(), subprocess.Popen(['sleep', '99']).pid, flush=True)\ntime.sleep(99)"
    with subprocess.Popen(
        [forkserver.python(), script(code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        fork, child = map(int, run.stdout.readline().split())
        assert fork != run.pid
        run.send_signal(number)
        run.wait()
        assert run.returncode == -number
        wait_for(lambda: not is_alive(fork), 5)
        if number == signal.SIGKILL:  # nobody else would end it
            wait_for(lambda: not is_alive(child), 5)
        else:
            assert is_alive(child)
            os.kill(child, signal.SIGKILL)


def test_an_exception_is_one_and_a_module_is_run(script, tmp_path):
    result = subprocess.run([forkserver.python(), script("1 / 0")], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr.endswith("ZeroDivisionError: division by zero\n")
    script("import sys; print(sys.argv[1:], sys.path[0])")
    words = [forkserver.python(), "-u", "-m", "script", "-x"]
    assert (
        subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == f"['-x'] {tmp_path}\n"
    )


def test_what_a_fork_cannot_do_python_does(script):
    is_there = script("import sys; print('torch' in sys.modules)")
    python = forkserver.python()
    for words, env in (
        ((python, is_there), {"OMP_NUM_THREADS": "3"}),
        ((python, "-S", is_there), {}),
        ((python, "-c", is_there.read_text()), {}),
    ):
        assert subprocess.check_output(words, env={**os.environ, **env}, text=True) == "False\n"


def test_it_is_there_soon(script):
    words = [forkserver.python(), script("import torch, timm.data")]
    subprocess.run(words, check=True)
    began = time.monotonic()
    subprocess.run(words, check=True)
    assert time.monotonic() - began < 2
