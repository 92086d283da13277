"""A command of a grid file: one run, its folder, and how far it is."""

import os
import re
import shlex
import tempfile
import time
from pathlib import Path

from maekit import errors, files, locks
from maekit.drivers.processes import Child
from maekit.runs import contents
from maekit.runs.folder import RunFolder
from maekit.runs.grid import for_shell, output_dir, read_grid
from maekit.runs.status import FAILED, FINISHED, PREEMPTED, RUNNING, read_status

DONE, LEFT = "done", "left"


class Task:
    """One command of a grid file. name: its folder as seen from the file's; label: that and its place in the file."""

    def __init__(self, line, root="."):
        self.words = shlex.split(line)
        self.line = for_shell(self.words)
        self.folder = RunFolder(output_dir(self.words))
        self.name = self.label = os.path.relpath(self.folder.path, root)
        self.child = self.ending_before = None
        self.output, self.words_from = None, 0  # file, and where in it what this start prints begins
        self.told = False  # that it waits for another process
        self.speed = None
        self.share_before = 0.0

    def start(self, env, *, aside=False, start=Child):
        """Start it; aside: what it prints goes to output.txt, else to where this prints. start: makes a Child, or its like."""
        self.ending_before = self.ending()
        self.output = self._output_file() if aside else None
        self.child = start(self.words, env, self.output)

    def _output_file(self):
        """output.txt, to go on writing; a file without a name where there can be none, of which the run complains."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            file = open(self.folder.output, "a+b")  # noqa: SIM115 - the child's
        except OSError:
            file = tempfile.TemporaryFile()  # noqa: SIM115
        self.words_from = file.tell()
        return file

    def ending(self):
        """What tells one summary.json from another, None if there is none."""
        try:
            found = os.stat(self.folder.summary)
            return found.st_mtime_ns, found.st_ino
        except OSError:
            return None

    def is_taken(self):
        """Whether another process is training it."""
        return bool(locks.is_held(self.folder.lock))

    def was_taken(self, code):
        """Whether a start ended with an exit code because another process is, or was, training it.

        A launcher such as torchrun makes 1 of every code; then this is so if it is locked, or has just been ended.
        """
        return code == errors.BUSY or (code != 0 and (self.is_taken() or self.ending() != self.ending_before))

    def state(self):
        """One of done, diverged, running, preempted, failed, left."""
        try:
            summary = contents.read_summary(self.folder.summary)
        except errors.InputError:
            summary = None  # of which the run itself complains
        if summary is not None:
            return DONE if summary["status"] == FINISHED else summary["status"]
        held, known = locks.is_held(self.folder.lock), self.progress()
        status = known.get("status")
        fresh = status == RUNNING and time.time() - known.get("time", 0) < 600
        if held or (held is None and fresh):
            return RUNNING
        return status if status in (FAILED, PREEMPTED) else LEFT

    def progress(self):
        """status.json, {} if there is none that can be read."""
        return read_status(self.folder)

    def share(self):
        """How much of its epochs is done, 0 to 1."""
        if self.ending():
            return 1.0
        known = self.progress()
        self.speed = known.get("images_per_s") or self.speed
        return min(1.0, (known.get("epoch", 0) + known.get("share", 0)) / max(1, known.get("epochs") or 1))

    def note_death(self, code):
        """Leave in status.json that it failed, where it could not do so itself."""
        known = self.progress()
        if known.get("status") == RUNNING and not self.is_taken():
            try:
                files.write_json(self.folder.status, {**known, "status": FAILED, "error": f"exit code {code}"})
            except OSError:
                pass

    def close(self):
        """Let go of what a start has opened."""
        if self.output is not None:
            self.output.close()
        self.output = self.child = None

    def last_words(self):
        """The line of its output that says best why it failed."""
        if self.output is None:
            return ""
        self.output.seek(max(self.words_from, self.output.seek(0, os.SEEK_END) - 100_000))
        lines = self.output.read().decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if re.search(r"\w", line)]
        named = [line for line in lines if line.startswith("error")]  # before what torchrun prints
        return (named or lines or [""])[-1][-300:]


def read_tasks(path):
    """Tasks of a grid file. Raises InputError naming a line that is no command of a run."""
    return [Task(line, Path(path).parent) for line in read_grid(path)]
