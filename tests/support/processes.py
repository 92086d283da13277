"""Processes of other programs: started, waited for, looked for."""

import subprocess
import time

from tests.support import started_as


def start(command, *, cold=False, **env):
    """Start a command of the kit in a session of its own; what it says is read together. cold: see started_as."""
    words, environment = started_as(command, env, cold=cold)
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, **said, start_new_session=True, env=environment)


def wait_for(what, seconds=120, every=0.01):
    """What a function returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} in {seconds} s")
        time.sleep(every)
    return found


def processes(text):
    """Ids of the processes whose command line holds a text."""
    found = subprocess.run(["pgrep", "-f", "--", text], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def is_alive(pid):
    """Whether a process runs, a zombie not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")
