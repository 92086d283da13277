"""Child processes that can be ended with all that they have started."""

import os
import signal
import subprocess


class Child:
    """A command in a session of its own, out of reach of the terminal's Ctrl-C: its parent decides what it gets.

    env: its variables. output: file for what it prints, None for where the parent prints. pass_fds: files that it has as
    well, POSIX alone.
    """

    def __init__(self, words, env=None, output=None, pass_fds=()):
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output and subprocess.STDOUT}
        own_session = os.name == "posix"
        self.process = subprocess.Popen(words, env=env, **streams, start_new_session=own_session, pass_fds=pass_fds)
        self.groups = {self.process.pid}  # process groups of what it started, as far as seen

    def poll(self):
        """Exit code as shells count it, None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def signal(self, number):
        """Send a signal to it alone: torchrun passes it on, and workers that decode images would just die of it."""
        self.groups |= groups_below(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(number) if os.name == "posix" else self.process.terminate()

    def wait(self, seconds):
        """Wait for its end, at most so long."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            pass

    def kill(self):
        """End it and everything that it has started, at once; if it has ended, what it left behind."""
        if os.name != "posix":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True, check=False)
        else:
            if self.process.poll() is None:
                self.groups |= groups_below(self.process.pid)
            for group in self.groups:
                try:
                    os.killpg(group, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
        self.process.wait()


def groups_below(pid):
    """Process groups of a process and all its descendants: each process of torchrun has a session of its own."""
    table = list(_processes())
    family, groups = {pid}, {group for process, _, group in table if process == pid}
    size = 0
    while len(family) > size:
        size = len(family)
        for process, parent, group in table:
            if parent in family:
                family.add(process)
                groups.add(group)
    return groups


def _processes():
    """(process, parent, process group) of every process; nothing on Windows."""
    if os.path.exists("/proc/self/stat"):
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    _, parent, group = file.read().rpartition(b")")[2].split()[:3]  # behind the name, which may hold )
            except OSError:
                continue  # it has ended
            yield int(name), int(parent), int(group)
    elif os.name == "posix":
        shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, text=True, check=False)
        for line in shown.stdout.splitlines():
            process, parent, group = map(int, line.split())
            yield process, parent, group
