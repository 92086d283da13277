"""Run the commands of grid files, a line each, some at a time, then the analysis. What the shell drivers end in.

    python maekit/drivers/pool.py [--jobs J|auto] [--nproc N] [--warm auto|off] FILE ... [-- ANALYSIS COMMAND]
    python maekit/drivers/pool.py --line K FILE          the K-th command alone, from 0; for a cluster's array job
    python maekit/drivers/pool.py --status FILE ...      how far they are

A command is one of train.py: its --output_dir is asked whether the run is done. A failed one does not stop the rest.
One that another process is training is come back to. Exit codes: 0, 1 if a run failed, 130 or 143 after a signal.
Where there are more commands than run at a time, those of train.py are run one after the other in processes that stay
warm, see worker.py; with --warm off each is a process of its own, as it is with --line.
"""

import argparse
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter, deque
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started by path, so that runs keep the user's PYTHONPATH

from maekit import errors, locks
from maekit.drivers.board import Board
from maekit.drivers.processes import Child
from maekit.drivers.tasks import DONE, LEFT, read_tasks
from maekit.drivers.workers import Workers, takes
from maekit.machine import available_cores, visible_gpus
from maekit.runs.status import DIVERGED, FAILED, PREEMPTED, RUNNING

POLL_SECONDS = 0.2
COME_BACK_SECONDS = 2.0  # between two looks at a run that another process is training
PATIENCE = 60.0  # seconds that a run is given to save its state before it is killed
DEMO_MEMORY = 3 << 29  # bytes that a run of the demo takes, evaluations too, and some more
INTERRUPTED = 143  # exit code of a run that was asked to stop


class Pool:
    """Runs tasks, `jobs` at a time, each with its part of the GPUs, or of the cores.

    warm: in processes that stay warm, where that pays; they are there until `workers` is closed.
    """

    def __init__(self, jobs, nproc, *, warm=False):
        self.jobs, self.nproc = jobs, nproc
        self.warm, self.workers = warm, Workers()
        self.gpus = visible_gpus()
        self.board = Board(sys.stdout)
        self.failed = []  # (exit code, task), of all grid files
        self.waiting, self.taken, self.running = deque(), deque(), {}  # tasks, (when to come back, task), slot: task
        self.signalled, self.hurry = None, False

    def note(self, number, _):
        """Signal handler. With the second signal runs are not given time to save their state."""
        self.hurry = self.signalled is not None
        self.signalled = self.signalled or number

    def run(self, tasks):
        """Run a list of tasks to their ends. Returns False if a signal ended it before."""
        self.total, self.done, self.failed_before = len(tasks), 0, len(self.failed)
        for number, task in enumerate(tasks, start=1):
            task.label = f"[{number}/{self.total}] {task.name}"
            task.share_before = task.share()
        self.waiting.extend(tasks)
        self.one_after_the_other = len(tasks) > self.jobs
        self.work, self.started = sum(1 - task.share_before for task in tasks), time.monotonic()  # in runs
        try:
            while (self.waiting or self.taken or self.running) and not self.signalled:
                self.start_some()
                self.collect()
                if self.jobs > 1 and self.board.is_due():
                    self.board.show(self.overview())
                time.sleep(POLL_SECONDS)
            if self.signalled:
                self.stop()
            self.board.clear()
        finally:  # whatever happens here, nothing runs on
            for task in self.running.values():
                task.child.kill()
        return not self.signalled

    def start_some(self):
        for slot in range(self.jobs):
            if slot not in self.running:
                task = self.next_task()
                if task is None:
                    for idle in set(range(self.jobs)) - set(self.running):
                        self.workers.dismiss(idle)
                    return
                self.start(slot, task)

    def next_task(self):
        """The next one that nobody else is training, None if there is none at the moment."""
        while self.waiting:
            task = self.waiting.popleft()
            if not task.is_taken():
                return task
            self.postpone(task)
        for _ in range(len(self.taken)):
            if self.taken[0][0] > time.monotonic():
                return None
            task = self.taken.popleft()[1]
            if not task.is_taken():
                return task
            self.postpone(task)
        return None

    def postpone(self, task):
        if not task.told:
            holder = locks.Lock(task.folder.lock).holder()
            self.board.say(f"{task.label}: {holder} is training it; this waits and comes back to it")
            task.told = True
        self.taken.append((time.monotonic() + COME_BACK_SECONDS, task))

    def start(self, slot, task):
        alone = self.jobs == 1
        self.board.say(f"\n{task.label.split()[0]} {task.line}" if alone else f"{task.label}: started")
        try:
            task.start(self.environment(slot, task), aside=not alone, start=self.starter(slot, task))
        except OSError as error:  # no memory, or no more processes
            self.fail(task, 126, str(error))
        else:
            self.running[slot] = task

    def starter(self, slot, task):
        """What starts a task's command: in the worker of the slot, or as a process of its own."""
        if self.warm and self.one_after_the_other and takes(task.words):
            return partial(self.workers.run, slot)
        self.workers.dismiss(slot)
        return Child

    def environment(self, slot, task):
        """Variables of a run in a slot: its GPUs; threads, so that runs side by side do not fight for the cores."""
        env = {**os.environ, "MAEKIT_RUNS_AT_A_TIME": str(self.jobs)}
        if self.gpus and self.jobs > 1 and not re.search(r"--device[ =]cuda:", task.line):
            own = [self.gpus[(slot * self.nproc + i) % len(self.gpus)] for i in range(self.nproc)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        together = self.jobs * self.nproc
        if together > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // together)))
        return env

    def collect(self):
        """See to the tasks that have ended."""
        for slot, task in list(self.running.items()):
            code = task.child.poll()
            if code is None:
                continue
            del self.running[slot]
            if code == 0:
                self.done += 1
                if self.jobs > 1:
                    already = " already" if task.ending_before and task.ending() == task.ending_before else ""
                    self.board.say(f"{task.label}: {task.state()}{already}")
            else:
                task.child.kill()  # what it may have left behind
                if not self.signalled:
                    self.fell(task, code)
            task.close()

    def fell(self, task, code):
        """See to a task that ended with another exit code than 0."""
        if task.was_taken(code):
            self.postpone(task)
        else:
            task.note_death(code)
            self.fail(task, code, task.last_words())

    def fail(self, task, code, why):
        self.failed.append((code, task))
        if self.jobs > 1:
            self.board.say(f"{task.label}: failed, exit code {code}{': ' if why else ''}{why}")

    def overview(self):
        """A line on the whole and, for each running task, one on itself."""
        shares = {task: task.share() for _, task in sorted(self.running.items())}
        not_begun = [*self.waiting, *(task for _, task in self.taken)]
        left = sum(1 - share for share in shares.values()) + sum(1 - task.share_before for task in not_begun)
        own, spent = self.work - left, time.monotonic() - self.started  # what earlier starts did says nothing on time
        eta = f", about {_duration(spent / own * left)} left" if own > 0.02 else ""
        return [
            f"{self.count()}, {len(self.running)} running{eta}",
            *(_line(task, share) for task, share in shares.items()),
        ]

    def count(self):
        return f"{self.done} of {self.total} done, {len(self.failed) - self.failed_before} failed"

    def stop(self):
        """End what is running: as it was asked for, by force after PATIENCE seconds or another signal."""
        for task in self.running.values():
            task.child.signal(signal.SIGINT if self.signalled == signal.SIGINT else signal.SIGTERM)
        asked, told = time.monotonic(), False
        while self.running and not self.hurry and time.monotonic() < asked + PATIENCE:
            time.sleep(POLL_SECONDS / 2)
            self.collect()
            if self.running and not told and time.monotonic() > asked + 2:
                told = True
                _complain(f"waiting for {_runs(len(self.running))} to end; the same signal again does not wait")
        for task in self.running.values():
            task.child.kill()
        self.board.clear()

    def analyse(self, words):
        """Run the analysis. Returns its exit code."""
        child = Child(words)
        try:
            while child.poll() is None:
                if self.signalled:
                    child.signal(signal.SIGINT)
                    child.wait(5)
                    break
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
        return child.poll()


def auto_jobs(tasks, nproc):
    """How many tasks run at a time if nobody says: without a GPU the demo's, whose models are small, one a core; else one.

    If there are less than two for each core, all: a last one by itself would leave cores idle.
    """
    if nproc > 1 or visible_gpus() or not all("--demo" in task.words for task in tasks):
        return 1
    cores = available_cores()
    wanted = len(tasks) if len(tasks) < 2 * cores else cores
    return max(1, min(wanted, _free_memory() // DEMO_MEMORY))


def _free_memory():
    """Bytes of memory that are free, files' pages included; without bound where that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            known = dict(line.split(":") for line in f)
        return int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 1 << 62


def show_status(paths):
    """Print how many runs are done, running, failed, diverged, left, and where those are that run or failed."""
    states = [(task, task.state()) for path in paths for task in read_tasks(path)]
    counts = Counter(state for _, state in states)
    shown = [f"{counts[name]} {name}" for name in (DONE, RUNNING, FAILED, DIVERGED, PREEMPTED, LEFT)]
    shown = [text for text in shown if text != f"0 {PREEMPTED}"]
    print(f"{_runs(len(states))}: {', '.join(shown)}")
    for task, state in states:
        if state == RUNNING:
            print(_line(task, task.share()))
        elif state == FAILED:
            print(f"  failed: {task.folder.path}: {task.progress().get('error', 'see its output')}")


class Asked:
    """Listens from its making on to what asks a cluster's task to stop; name: the first such signal, None before."""

    def __init__(self):
        self.name = None
        self.waiting = []  # not passed on yet
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number, _):
        self.name = self.name or signal.Signals(number).name
        self.waiting.append(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)  # torchrun knows no SIGUSR1

    def pass_on(self, child):
        """Tell a child what came."""
        while self.waiting:
            child.signal(self.waiting.pop(0))


def run_line(path, number, asked, nproc=1, reword=list):
    """Run one command and nothing else, as a cluster's task. Returns its exit code.

    asked: Asked. reword: function that makes other words of the command's. INTERRUPTED if it has more to do,
    whatever a launcher in between made of that; 0 if another process goes on training it.
    """
    task = read_tasks(path)[number]
    task.words = reword(task.words)
    print(shlex.join(task.words), flush=True)
    patience = time.monotonic() + PATIENCE
    while not asked.name:
        began = time.time()
        task.start(Pool(1, nproc).environment(0, task))
        while (code := task.child.poll()) is None:
            asked.pass_on(task.child)
            time.sleep(POLL_SECONDS)
        task.child.kill()  # what it may have left behind
        if code == 0:
            return 0
        preempted = task.state() == PREEMPTED and task.progress()["time"] > began  # not in a start before
        if asked.name or preempted:
            break
        if not task.was_taken(code):
            task.note_death(code)
            return code
        if time.monotonic() > patience:
            print(f"{task.folder.path}: left to the process that is training it.", flush=True)
            return 0
        time.sleep(COME_BACK_SECONDS)
    return INTERRUPTED


def _jobs(text):
    return text if text == "auto" else int(text)


def main(argv):
    words, analysis = (argv, []) if "--" not in argv else (argv[: argv.index("--")], argv[argv.index("--") + 1 :])
    parser = argparse.ArgumentParser(prog="pool.py")
    parser.add_argument("--jobs", type=_jobs, default=1)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--warm", choices=("auto", "off"), default="auto")
    parser.add_argument("--line", type=int)
    parser.add_argument("--status", action="store_true")
    parser.add_argument("files", nargs="+")
    typed = parser.parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a folder's name that the terminal cannot spell is no mistake
    if typed.status:
        show_status(typed.files)
        return 0
    if typed.line is not None:
        return run_line(typed.files[0], typed.line, Asked(), typed.nproc)
    grids = [read_tasks(path) for path in typed.files]
    jobs = auto_jobs(grids[0], typed.nproc) if typed.jobs == "auto" else typed.jobs
    pool = Pool(jobs, typed.nproc, warm=typed.warm == "auto")
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pool.note)
    try:
        whole = all(pool.run(tasks) for tasks in grids)
    finally:
        pool.workers.close()
    code = pool.analyse(analysis) if whole and analysis else 0
    if pool.failed:
        _complain("\nfailed; the same command tries again:")
        for failed_code, task in pool.failed:
            _complain(f"exit code {failed_code}: {task.line}")
    if pool.signalled:
        _complain(f"stopped: {pool.count()}; the same command goes on from there.")
        return 128 + pool.signalled
    return 1 if pool.failed else code


def _line(task, share):
    """Progress of a run, for people."""
    speed = f", {task.speed:.0f} images/s" if task.speed else ""
    return f"  |{'#' * round(20 * share):.<20}| {share:4.0%} {task.label}{speed}"


def _complain(text):
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass  # the terminal is gone


def _runs(n):
    return f"{n} run" if n == 1 else f"{n} runs"


def _duration(seconds):
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
