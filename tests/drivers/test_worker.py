"""Runs that share a process are those of processes of their own, in what they compute, leave, print, and how they end."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from maekit import files
from maekit.drivers import workers
from maekit.runs.status import FAILED, PREEMPTED
from tests.support import KIT, run, train

POOL = KIT / "maekit/drivers/pool.py"
SMALL = ("--demo", "--epochs", "2", "--max_images", "96", "--batch_size", "32")
LONG = ("--demo", "--epochs", "20", "--max_images", "32", "--batch_size", "16", "--probes", "none", "--norm", "adyt")
POINTS = {  # of a sweep and of a comparison, with and without processes that decode
    "a": ("--alpha", "-0.5", "--probes", "all"),
    "b": ("--norm", "adyt", "--num_workers", "1"),
    "c": ("--alpha", "0.5", "--probes", "all"),
    "d": ("--alpha", "0.1", "--probes", "all"),
    "e": ("--norm", "adyt", "--num_workers", "1", "--seed", "1"),
}
CLOCKS = ("epoch_time_s", "images_per_s", "peak_memory_mb")


def write_grid(root, points):
    """A grid file of train.py commands; points: {name of the folder: flags}."""
    root.mkdir(exist_ok=True)
    lines = [
        shlex.join(map(str, (sys.executable, KIT / "train.py", *flags, "--output_dir", root / name)))
        for name, flags in points.items()
    ]
    (root / "commands.txt").write_text("".join(f"{line}\n" for line in lines))
    return root / "commands.txt"


def go(*words, **options):
    return run(sys.executable, POOL, *words, env={"OMP_NUM_THREADS": "1"}, **options)


def start(*words):
    return subprocess.Popen(
        [str(w) for w in (sys.executable, POOL, *words)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def process_of(folder):
    return files.read_json(folder / "status.json")["process"]


def is_alive(pid):
    """Whether a process runs, a zombie not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def assert_same_run(mine, theirs):
    """Two folders hold the same results, bit for bit."""
    one, two = (torch.load(folder / "checkpoint.pth", weights_only=False) for folder in (mine, theirs))
    for part in ("model", "probes", "optimizer"):
        assert_same(one.get(part), two.get(part), part)
    logs = [
        [{k: v for k, v in row.items() if k not in CLOCKS} for row in files.read_csv(folder / "log.csv")]
        for folder in (mine, theirs)
    ]
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
    train(*LONG, "--output_dir", folder, check=0, env={"OMP_NUM_THREADS": "1"})
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
            assert one == two and len(one) == 3 and one[-1] == f"/{name}: finished after 2 epochs."

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
        with start(file) as driver:
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
        with start(file) as driver:
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
    norms.FUSED["cuda"] = norms.FUSED["cpu"]
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
