"""Processes that stay warm from one command of a grid to the next; what the pool knows of them. See worker.py."""

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

from maekit.drivers.processes import Child

KIT = Path(__file__).resolve().parents[2]
WORKER = str(Path(__file__).with_name("worker.py"))
APART = ("--wandb", "--wandb_project", "--mae_dir")  # flags of runs that need a process of their own
LEAVE_SECONDS = 10.0  # that a worker without more to do is given to end


def takes(words):
    """Whether a command can be run by a worker: `python train.py ...` of this kit, by the Python that runs this."""
    if os.name != "posix" or len(words) < 2:
        return False
    python, script = shutil.which(words[0]), Path(words[1])
    return (
        python is not None
        and os.path.abspath(python) == os.path.abspath(sys.executable)
        and script.name == "train.py"
        and script.resolve() == KIT / "train.py"
        and not any(word.partition("=")[0] in APART for word in words)
    )


class Worker(Child):
    """A worker.py. env: variables of all its runs. output: where the first of them prints, as Child has it."""

    def __init__(self, env, output):
        self.env = env
        self.socket, other = socket.socketpair()
        self.socket.setblocking(False)
        with other:
            super().__init__([sys.executable, WORKER, str(other.fileno())], env, output, pass_fds=(other.fileno(),))
        self.is_idle = True

    def give(self, words, output):
        """Have it run a command. Raises OSError if it has ended."""
        line = memoryview(json.dumps(words).encode() + b"\n")
        self.is_idle = False
        self.socket.settimeout(LEAVE_SECONDS)
        sent = socket.send_fds(self.socket, [line], [output.fileno()] if output else [])
        if sent < len(line):  # else it may have run it and ended
            self.socket.sendall(line[sent:])
        self.socket.setblocking(False)

    def ending(self):
        """Exit code of the command, None while it runs: as it answers, or as it ends itself."""
        ended = self.poll()  # first: what it has answered before is there by then
        try:
            answer = self.socket.recv(100)
        except OSError:  # none yet, or closed
            return ended
        if not answer:
            return ended
        self.is_idle = True
        return int(answer)

    def dismiss(self):
        """Let it end, which it does once it has no command."""
        self.socket.close()

    def kill(self):
        super().kill()
        self.socket.close()


class Run:
    """A command that a worker runs, to be seen as a Child."""

    def __init__(self, worker, words, output):
        self.worker, self.code = worker, None
        worker.give(words, output)

    def poll(self):
        """Exit code, None while it runs."""
        if self.code is None:
            self.code = self.worker.ending()
        return self.code

    def signal(self, number):
        """Send a signal to it, if it has not ended."""
        if self.poll() is None:
            self.worker.signal(number)

    def kill(self):
        """End it at once and everything that it has started; nothing to do if its worker goes on without it."""
        if self.poll() is None or not self.worker.is_idle:
            self.worker.kill()


class Workers:
    """The workers of a pool, at most one a slot."""

    def __init__(self):
        self.slots, self.leaving = {}, []

    def run(self, slot, words, env, output):
        """Run of a command in a slot, in the worker that is there or a fresh one. Raises OSError if none can be started."""
        worker = self.slots.get(slot)
        if worker is not None and worker.is_idle and worker.poll() is None and worker.env == env:
            try:
                return Run(worker, words, output)
            except OSError:
                worker.kill()  # it has just died
        self.dismiss(slot)
        worker = self.slots[slot] = Worker(env, output)
        return Run(worker, words, output)

    def dismiss(self, slot):
        """Let the worker of a slot end, if there is one, for its memory."""
        worker = self.slots.pop(slot, None)
        if worker is not None:
            worker.dismiss()
            self.leaving.append(worker)
        self.leaving = [other for other in self.leaving if other.poll() is None]

    def close(self):
        """Let all of them end, and see to it that they do."""
        for slot in list(self.slots):
            self.dismiss(slot)
        until = time.monotonic() + LEAVE_SECONDS
        for worker in self.leaving:
            worker.wait(until - time.monotonic())
            worker.kill()
