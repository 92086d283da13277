"""A process that runs commands of a grid one after the other, so that Python, torch and the GPU are started once for all.

    python maekit/drivers/worker.py FD        workers.py starts it; FD is a socket to there

A command comes as a line, its words in JSON, with the file that it prints to where that is not the process's own. It is
run as by a process of its own, as what `python` would be given. Its exit code is answered if another command may come
after it; else the process ends with it, as it does when nobody is left to give it one.
"""

import json
import os
import socket
import sys
import types
from pathlib import Path

KIT = str(Path(__file__).resolve().parents[2])
if not sys.flags.safe_path:
    del sys.path[0]  # the folder of this file, where `python train.py` has the kit
sys.path.insert(0, KIT)

from maekit.drivers.remains import Remains

GOES_ON = (0, 75)  # exit codes after which it takes another command: done, and Busy, which has begun nothing


class Commands:
    """The socket's end here. Iterable of commands, a list of words each, until the other end is closed."""

    def __init__(self, fd):
        os.set_inheritable(fd, False)
        self.socket = socket.socket(fileno=fd)

    def __iter__(self):
        while line := self._line():
            yield json.loads(line)

    def _line(self):
        """A whole line; what comes with it is from now on where this process prints. Empty if there is none."""
        line = b""
        while not line.endswith(b"\n"):
            part, files, _, _ = socket.recv_fds(self.socket, 1 << 16, 1)
            for file in files:
                os.dup2(file, 1)
                os.dup2(file, 2)
                os.close(file)
            if not part:
                return b""
            line += part
        return line

    def answer(self, code):
        """Tell the exit code of the last one. False if nobody is there to hear it."""
        try:
            self.socket.sendall(f"{code}\n".encode())
        except OSError:
            return False
        return True


def run(words, compiled):
    """Run a Python script's words, [script, flag, ...], as Python runs a script. Returns its exit code.

    compiled: scripts as they were at their first run, for that to be kept in. An error that nobody catches is printed as
    Python does; SystemExit is raised unless it says 0 or 75, so that Python ends the process as it would the script's.
    """
    main = types.ModuleType("__main__")
    main.__file__ = words[0]
    before, sys.modules["__main__"], sys.argv = sys.modules["__main__"], main, words
    try:
        if words[0] not in compiled:
            compiled[words[0]] = compile(Path(words[0]).read_bytes(), words[0], "exec")
        exec(compiled[words[0]], main.__dict__)  # noqa: S102 - the kit's own train.py
    except SystemExit as ending:
        if ending.code not in (None, *GOES_ON):
            raise
        return ending.code or 0
    except BaseException as error:  # noqa: BLE001 - all that Python itself would print
        error.__traceback__ = error.__traceback__.tb_next  # from the script's own lines on
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        sys.modules["__main__"] = before
    return 0


def main(fd):
    commands, remains, compiled = Commands(fd), Remains(), {}
    for _, *words in commands:
        remains.begin()
        code = run(words, compiled)
        if not remains.clear() or not commands.answer(code):
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1])))
    except KeyboardInterrupt:  # between two commands
        sys.exit(130)
