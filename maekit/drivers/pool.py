"""Run the commands of grid files, a line each, some at a time, then the analysis. What the shell drivers end in.

    python maekit/drivers/pool.py [--jobs J] [--nproc N] FILE ... [-- ANALYSIS COMMAND]
    python maekit/drivers/pool.py --line K FILE          the K-th command alone, from 0; for a cluster's array job
    python maekit/drivers/pool.py --status FILE ...      how far they are

A command is one of train.py: its --output_dir is asked whether the run is done. A failed one does not stop the rest. One
that another process is training is come back to. Exit codes: 0, 1 if a run failed, 130 or 143 after a signal.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started by path, so that runs keep the user's PYTHONPATH

from maekit import errors, files, locks, runs, settings

POLL_SECONDS = 0.2
TOTAL_SECONDS = 60  # between two lines on the whole, where there is no terminal
PATIENCE = 60  # seconds that a run is given to save its state before it is killed


class Task:
    """One command of a grid file."""

    def __init__(self, line):
        self.line = line
        self.words = shlex.split(line)
        self.folder = runs.RunFolder(self.words[self.words.index("--output_dir") + 1])
        self.name = os.path.join(*self.folder.path.parts[-2:])
        self.process = self.output = None

    def start(self, env, output=None):
        """Start it in a process group of its own; output: file for what it prints, None for where this prints."""
        self.output = output
        self.process = subprocess.Popen(
            self.words, env=env, stdout=output, stderr=output and subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
        )  # fmt: skip

    def signal(self, number):
        """Send a signal to its processes."""
        try:
            if os.name == "posix":
                os.killpg(self.process.pid, number)
            else:
                self.process.terminate()
        except (ProcessLookupError, PermissionError):
            pass

    def state(self):
        """One of finished, diverged, running, preempted, failed, left."""
        if self.folder.summary.exists():
            return files.read_json(self.folder.summary).get("status", runs.FINISHED)
        if locks.is_held(self.folder.lock):
            return runs.RUNNING
        known = self.progress().get("status", LEFT)
        return known if known in (runs.FAILED, runs.PREEMPTED) else LEFT

    def progress(self):
        """status.json, {} if there is none that can be read."""
        try:
            return files.read_json(self.folder.status)
        except (OSError, errors.InputError):
            return {}

    def share(self):
        """How much of its epochs is done, 0 to 1."""
        known = self.progress()
        return min(1.0, (known.get("epoch", 0) + known.get("share", 0)) / max(1, known.get("epochs") or 1))


LEFT = "left"


class Pool:
    """Runs tasks, `jobs` at a time, each with its part of the GPUs, or of the cores."""

    def __init__(self, jobs, nproc):
        self.jobs, self.nproc = jobs, nproc
        self.failed, self.done, self.total = [], 0, 0
        self.running = {}  # slot: Task
        self.signalled = None

    def run(self, tasks):
        """Run a list of tasks to their ends. Returns False if a signal ended it before."""
        self.total, self.done = len(tasks), 0
        failed_before = len(self.failed)
        waiting, busy, started = deque(enumerate(tasks, start=1)), deque(), time.monotonic()
        told = time.monotonic()
        while (waiting or busy or self.running) and not self.signalled:
            for slot in range(self.jobs):
                if slot not in self.running and (waiting or (busy and busy[0][0] < time.monotonic())):
                    number, task = waiting.popleft() if waiting else busy.popleft()[1]
                    self.start(slot, number, task)
            for slot, (number, task) in list(self.running.items()):
                code = task.process.poll()
                if code is None:
                    continue
                del self.running[slot]
                if code == errors.BUSY:
                    busy.append((time.monotonic() + 2.0, (number, task)))
                else:
                    self.ended(number, task, code)
            if self.jobs > 1 and time.monotonic() - told > TOTAL_SECONDS:
                told = time.monotonic()
                print(self.overview(started, len(self.failed) - failed_before), flush=True)
            time.sleep(POLL_SECONDS)
        if self.signalled:
            self.stop()
            failed = len(self.failed) - failed_before
            print(f"stopped: {self.done} of {self.total} done, {failed} failed; the same command goes on from there.",
                  file=sys.stderr)  # fmt: skip
        return not self.signalled

    def start(self, slot, number, task):
        output = None
        if self.jobs == 1:
            print(f"\n[{number}/{self.total}] {task.line}", flush=True)
        else:
            print(f"[{number}/{self.total}] {task.name}: started", flush=True)
            output = _output_file(task)
        task.start(self.environment(slot), output)
        if output is not None:
            output.close()
        self.running[slot] = (number, task)

    def environment(self, slot):
        """Variables of the runs in a slot: its GPUs; threads, so that runs side by side do not fight for the cores."""
        env = dict(os.environ)
        gpus, together = visible_gpus(), self.jobs * self.nproc
        if gpus and self.jobs > 1:
            own = [gpus[(slot * self.nproc + i) % len(gpus)] for i in range(self.nproc)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        if together > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, settings.available_cores() // together)))
        return env

    def ended(self, number, task, code):
        if code == 0:
            self.done += 1
            if self.jobs > 1:
                print(f"[{number}/{self.total}] {task.name}: {task.state()}", flush=True)
            return
        self.failed.append((code, task))
        if self.jobs > 1:
            print(f"[{number}/{self.total}] {task.name}: failed, exit code {code}: {_last_words(task)}", flush=True)

    def overview(self, started, failed):
        """A line on the whole and, for each running task, one on itself."""
        shares = {slot: task.share() for slot, (_, task) in self.running.items()}
        finished = self.done + failed
        spent, whole = time.monotonic() - started, finished + sum(shares.values())
        left = f", about {_duration(spent / whole * (self.total - whole))} left" if whole > 0.05 else ""
        lines = [f"{self.done} of {self.total} done, {failed} failed, {len(self.running)} running{left}"]
        for slot, (number, task) in sorted(self.running.items()):
            known = task.progress()
            speed = f", {known['images_per_s']:.0f} images/s" if known.get("images_per_s") else ""
            lines.append(f"  [{number}/{self.total}] {task.name}: {shares[slot]:.0%}{speed}")
        return "\n".join(lines)

    def note(self, number, _):
        """Signal handler. The second signal does not wait for runs to save their state."""
        if self.signalled:
            for _, task in self.running.values():
                task.signal(signal.SIGKILL)
        self.signalled = number

    def stop(self):
        """End what is running: as it was asked for, by force after PATIENCE seconds."""
        for _, task in self.running.values():
            task.signal(self.signalled)
        deadline = time.monotonic() + PATIENCE
        for _, task in self.running.values():
            try:
                task.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            task.signal(signal.SIGKILL)  # and what it may have left behind
            task.process.wait()


def visible_gpus():
    """Names of the NVIDIA GPUs that runs may use, as CUDA_VISIBLE_DEVICES has them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True,
                            text=True, check=False)  # fmt: skip
    return listed.stdout.split() if listed.returncode == 0 else []


def read_tasks(path):
    """Tasks of a grid file."""
    return [Task(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def show_status(paths):
    """Print how many runs are done, running, failed, diverged, left, and where those are that run or failed."""
    tasks = [task for path in paths for task in read_tasks(path)]
    states = [(task, task.state()) for task in tasks]
    counts = {state: sum(s == state for _, s in states) for state in
              (runs.FINISHED, runs.RUNNING, runs.FAILED, runs.PREEMPTED, runs.DIVERGED, LEFT)}  # fmt: skip
    print(
        f"{len(tasks)} runs: "
        + ", ".join(f"{n} {state}" for state, n in counts.items() if n or state != runs.PREEMPTED)
    )
    for task, state in states:
        if state == runs.RUNNING:
            print(f"  running: {task.folder.path} {task.share():.0%}")
        elif state == runs.FAILED:
            print(f"  failed: {task.folder.path}: {task.progress().get('error', 'see its output')}")


def run_line(path, number, reword=list):
    """Run one command in place of this process's own work, as a cluster's task. Returns its exit code.

    reword: function that makes other words of the command's. 143 if it was preempted, whatever the code that a launcher in between made of it; 0 if another task is training it.
    """
    task = read_tasks(path)[number]
    task.words = reword(task.words)
    print(shlex.join(task.words), flush=True)
    task.start(dict(os.environ))
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        signal.signal(getattr(signal, name), lambda number, _: task.signal(number))
    while True:
        try:
            code = task.process.wait()
            break
        except InterruptedError:
            continue
    if code == errors.BUSY:
        return 0
    return 143 if code != 0 and task.state() == runs.PREEMPTED else code


def main(argv):
    words, _, analysis = (
        (argv, "", []) if "--" not in argv else (argv[: argv.index("--")], "", argv[argv.index("--") + 1 :])
    )
    parser = argparse.ArgumentParser(prog="pool.py")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--line", type=int)
    parser.add_argument("--status", action="store_true")
    parser.add_argument("files", nargs="+")
    typed = parser.parse_args(words)
    if typed.status:
        show_status(typed.files)
        return 0
    if typed.line is not None:
        return run_line(typed.files[0], typed.line)
    pool = Pool(typed.jobs, typed.nproc)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pool.note)
    for path in typed.files:
        if not pool.run(read_tasks(path)):
            return 128 + pool.signalled
    code = subprocess.run(analysis, check=False).returncode if analysis else 0
    if pool.failed:
        print("\nfailed; the same command tries again:", file=sys.stderr)
        for failed_code, task in pool.failed:
            print(f"exit code {failed_code}: {task.line}", file=sys.stderr)
        return 1
    return code


def _output_file(task):
    """File in the run's folder for what it prints; nowhere if that cannot be written, which the run then says itself."""
    try:
        task.folder.path.mkdir(parents=True, exist_ok=True)
        return open(task.folder.output, "ab")
    except OSError:
        return open(os.devnull, "ab")


def _last_words(task):
    try:
        lines = task.folder.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else ""
    except OSError:
        return ""


def _duration(seconds):
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
