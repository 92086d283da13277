"""A worker takes one run after the other: a script cannot tell, and nothing of it is there for the next."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from maekit.drivers import workers
from tests.support import KIT, run
from tests.support.processes import is_alive, wait_for

# what a script does: how it is run must not show
SCRIPTS = {
    "prints": "import os, sys; print('out', sys.argv[1:]); print('err', file=sys.stderr); os.system('echo from below')",
    "prints without an end": "import ctypes; print('x', end=''); ctypes.CDLL(None).printf(b'from C')",
    "reads": "import sys; print(repr(sys.stdin.read()))",
    "exits with 0": "import sys; sys.exit(0)",
    "is busy": "import sys; sys.exit(75)",
    "exits with 3": "import sys; print('three'); sys.exit(3)",
    "exits with a text": "import sys; sys.exit('a text')",
    "raises": "def f():\n    raise ValueError('no') from KeyError(1)\n\nf()\n",
    "is interrupted": "raise KeyboardInterrupt",
    "is not Python": "print(",
    "is killed": "import os; os.kill(os.getpid(), 9)",
    "ends at once": "import os; os._exit(7)",
    "knows itself": "import os, sys\nif __name__ == '__main__': print(sys.modules['__main__'].__file__, __file__, sys.argv[0])",
}


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture
def worker(tmp_path):
    """worker(): a new one; what it prints before its first command goes to nowhere.txt."""
    made = []

    def make():
        with open(tmp_path / "nowhere.txt", "wb") as output:
            made.append(workers.Worker(BUFFERED, output))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def end_of(worker, script, *flags):
    """(exit code, what it has printed) of a script that a worker runs."""
    with open(script.with_suffix(".txt"), "w+b") as output:
        given = workers.Run(worker, [sys.executable, str(script), *flags], output)
        wait_for(lambda: given.poll() is not None, 20)
        output.seek(0)
        return given.poll(), output.read().decode()


class TestWorker:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", SCRIPTS)
    def test_a_script_cannot_tell_and_ends_as_ever(self, tmp_path, worker, name):
        script, before = tmp_path / "script.py", tmp_path / "before.py"
        script.write_text(SCRIPTS[name])
        before.write_text("print('before')")
        apart = subprocess.run(
            [sys.executable, script, "--flag"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=BUFFERED,
        )
        code = apart.returncode if apart.returncode >= 0 else 128 - apart.returncode
        this = worker()
        assert end_of(this, before) == (0, "before\n")
        assert end_of(this, script, "--flag") == (code, apart.stdout)
        assert before.with_suffix(".txt").read_text() == "before\n"
        if code in (0, 75):
            assert this.is_idle and end_of(this, before) == (0, "before\n")
        else:
            assert this.process.poll() is not None

    def test_a_command_may_end_before_its_giver_goes_on(self, tmp_path, worker, monkeypatch):
        """It has been run then, and is not to be given to another worker."""
        script, this, send = tmp_path / "script.py", worker(), workers.socket.send_fds

        def send_and_sleep(*what):
            sent = send(*what)
            wait_for(lambda: this.process.poll() is not None, 20)
            return sent

        script.write_text(SCRIPTS["exits with 3"])
        monkeypatch.setattr(workers.socket, "send_fds", send_and_sleep)
        assert end_of(this, script) == (3, "three\n")

    def test_one_that_left_a_process_or_upstreams_model_behind_is_the_last(self, tmp_path, worker):
        script = tmp_path / "script.py"
        fork = "import multiprocessing as m, time; m.get_context('fork').Process(target=time.sleep, args=(9,), daemon=1).start()"
        for text in (fork, "import sys; sys.modules['models_mae'] = sys"):
            this = worker()
            script.write_text(text)
            assert end_of(this, script)[0] == 0 and this.process.poll() == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_between_two_runs_a_signal_ends_it_quietly(self, tmp_path, worker, number):
        script = tmp_path / "script.py"
        script.write_text("print('said')")
        this = worker()
        end_of(this, script)
        this.signal(number)
        this.wait(10)
        assert this.poll() == 128 + number and script.with_suffix(".txt").read_text() == "said\n"

    @pytest.mark.slow
    def test_without_a_pool_it_ends_after_the_run_that_it_is_at(self, tmp_path):
        script, pool = tmp_path / "script.py", tmp_path / "pool.py"
        script.write_text(f"import time; time.sleep(3); open({str(tmp_path / 'ended')!r}, 'w').close()")
        pool.write_text(
            f"import os, sys, time\nsys.path.insert(0, {str(KIT)!r})\nfrom maekit.drivers import workers\n"
            f"worker = workers.Worker(dict(os.environ), None)\nworkers.Run(worker, ['python', {str(script)!r}], None)\n"
            "print(worker.process.pid, flush=True)\ntime.sleep(0.7)\nos.kill(os.getpid(), 9)\n"
        )
        with open(tmp_path / "said.txt", "w+") as said:  # no pipe, which the worker would hold open
            assert subprocess.run([sys.executable, pool], stdout=said, check=False).returncode == -signal.SIGKILL
            said.seek(0)
            pid = int(said.read())
        assert is_alive(pid) and not (tmp_path / "ended").exists()
        wait_for(lambda: not is_alive(pid), 20)
        assert (tmp_path / "ended").exists()

    def test_it_ends_when_it_is_let_go(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text("")
        every = workers.Workers()
        for slot in (0, 1):
            given = every.run(slot, ["python", str(script)], dict(os.environ), None)
            wait_for(lambda given=given: given.poll() is not None, 20)
        processes = [worker.process for worker in every.slots.values()]
        other = every.run(0, ["python", str(script)], {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}, None)
        assert every.slots[0].process is not processes[0], "other variables are another process"
        wait_for(lambda: other.poll() is not None, 20)
        every.close()
        assert [process.poll() for process in processes] == [0, 0] and not every.slots


REMAINS = """
import os, random, signal, sys, warnings
sys.path.insert(0, KIT)
from maekit.drivers.remains import Remains
os.environ["BEFORE"] = "1"
remains = Remains()
import numpy, torch
import norms
from maekit import errors
from maekit.data.workers import tell_of_one_dead_worker
from torch.utils.data import DataLoader

def dirty():
    os.environ["GOMP_SPINCOUNT"] = "1"
    del os.environ["BEFORE"]
    sys.path.insert(0, "/somewhere")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in DataLoader([1, 2], num_workers=1):
        tell_of_one_dead_worker()
    global handler
    handler = signal.getsignal(signal.SIGCHLD)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(5)
    numpy.random.seed(5)
    random.seed(5)
    errors.each_for_itself()
    norms.FUSED["cuda"] = object()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(2):
            warnings.warn("once")
    assert len(seen) == 1
    return torch.rand(3)

def state():
    return (dict(os.environ), list(sys.path), [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGCHLD)],
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), dict(norms.FUSED),
            list(errors._ALIKE))

fresh = state()
dirty()
assert state() != fresh and handler not in (signal.SIG_DFL, None)
assert remains.clear()
assert state() == fresh, [(a, b) for a, b in zip(state(), fresh) if a != b]
drawn = random.random(), numpy.random.rand(), torch.rand(1)
random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
assert drawn[0] != random.random() and drawn[1] != numpy.random.rand() and drawn[2] != torch.rand(1)
dirty()
assert callable(handler) and hasattr(handler, "is_ours"), "a worker that dies is noticed in the second run as well"
print("clean")
"""


def test_nothing_of_a_run_is_there_for_the_next(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"KIT = {str(KIT)!r}\n{REMAINS}")
    assert run(sys.executable, script, check=0).stdout == "clean\n"


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ((sys.executable, KIT / "train.py", "--demo"), True),
        (("/usr/bin/env", KIT / "train.py", "--demo"), False),
        ((sys.executable, "elsewhere/train.py", "--demo"), False),
        ((sys.executable, "-m", "torch.distributed.run", KIT / "train.py"), False),
        ((sys.executable, KIT / "train.py", "--wandb"), False),
        ((sys.executable, KIT / "train.py", "--wandb_project=p"), False),
        ((sys.executable, KIT / "train.py", "--mae_dir", "mae"), False),
        ((sys.executable,), False),
    ],
)
def test_which_commands_a_worker_takes(words, taken):
    assert workers.takes([str(word) for word in words]) is taken


@pytest.mark.slow
def test_the_drivers_pass_warm_on(tmp_path):
    """To pool.py, of which nothing is run here."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *pool.py*) echo "POOL $*" ;; *) exec {shlex.quote(sys.executable)} "$@" ;; esac\n'
    )
    python.chmod(0o755)
    for flags, warm in (((), "auto"), (("--warm", "off"), "off"), (("--warm=off",), "off")):
        for driver in ("quick_sweep_test.sh", "run_comparison.sh"):
            flags = (*flags, "--demo", "--output_dir", tmp_path / driver)
            out = run(KIT / driver, *flags, check=0, env={"PYTHON": str(python)}).stdout
            assert f" --warm {warm} " in out.splitlines()[-1], out
    for driver in ((KIT / "quick_sweep_test.sh",), (sys.executable, KIT / "maekit/drivers/windows.py")):
        wrong = run(*driver, "--warm", "maybe", check=2)
        assert wrong.stderr == "error: --warm maybe: must be auto or off.\n"
