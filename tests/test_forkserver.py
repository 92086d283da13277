"""What tests start in place of Python is like Python, but for the time that it takes to start."""

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from maekit.analysis import figures
from tests.support import KIT, blank_figures, forkserver, run, started_as
from tests.support.processes import is_alive, start, wait_for

pytestmark = pytest.mark.slow

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
        env = started_as((), {"A_VARIABLE": "ä"})[1]
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
    code = "import os, subprocess, time\nprint(os.getpid(), subprocess.Popen(['sleep', '99']).pid, flush=True)\n"
    with start((sys.executable, script(code + "time.sleep(99)"))) as process:
        fork, child = map(int, process.stdout.readline().split())
        assert fork != process.pid
        process.send_signal(number)
        wait_for(lambda: not is_alive(fork), 5)
        if number == signal.SIGKILL:  # nobody else would end it
            wait_for(lambda: not is_alive(child), 5)
        else:
            assert is_alive(child)
            os.kill(child, signal.SIGKILL)
    assert process.returncode == -number


def test_an_exception_is_one_and_a_module_is_run(script, tmp_path):
    result = run(sys.executable, script("1 / 0"), check=1)  # where Python itself ends, triton reports leaks after it
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run(sys.executable, script("raise SystemExit('a reason')"), check=1).stderr == "a reason\n"
    script("import sys; print(sys.argv[1:], sys.path[0])")
    result = run(sys.executable, "-u", "-m", "script", "-x", cwd=tmp_path, check=0)
    assert result.stdout == f"['-x'] {tmp_path}\n"


def test_what_a_fork_cannot_do_python_does(script):
    torch_is_there = "import sys; print('torch' in sys.modules)"
    words = (sys.executable, script(torch_is_there))
    assert run(*words).stdout == "True\n"
    for other in (
        run(*words, cold=True),
        run(*words, env={"OMP_NUM_THREADS": "3"}),
        run(sys.executable, "-S", *words[1:]),
        run(sys.executable, "-c", torch_is_there),
    ):
        assert other.stdout == "False\n"


def test_figures_are_blank_unless_they_are_to_be_drawn(script, tmp_path):
    code = f"import pathlib, sys; sys.path.insert(0, {str(KIT)!r}); from maekit.analysis import figures\n"
    words = (sys.executable, script(code + "figures.save(figures.new_figure(2, 1), pathlib.Path(sys.argv[1]))"))
    for name in ("blank", "drawn"):
        run(*words, tmp_path / f"{name}.png", check=0, draw=name == "drawn")
    with blank_figures():
        figures.save(figures.new_figure(2, 1), tmp_path / "here.png")
    sizes = {name: Image.open(tmp_path / f"{name}.png").size for name in ("blank", "drawn", "here")}
    assert sizes == {"blank": (1, 1), "drawn": (600, 300), "here": (1, 1)}
    pages = [(tmp_path / f"{name}.pdf").stat().st_size for name in ("blank", "here", "drawn")]
    assert pages[0] == pages[1] < 100 < pages[2]
