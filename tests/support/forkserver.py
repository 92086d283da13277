"""A Python that has the packages imported already, for tests that do not ask how a process starts.

To import torch and timm takes 6 s, longer than most runs of a test. A server, one for each pytest process, imports the
packages (nothing of the kit) and forks. The command that `python()` names asks it to run a script or a module in a fork,
with its own arguments, environment, folder, open files, limits and ignored signals; it passes signals on, ends as the fork
ends, and when it is killed, so is the fork with all that it started. What a fork would not do alike (-c, other variables of
the packages, a server that is gone) an ordinary Python does.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PACKAGES = (
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "torchvision.transforms",
    "timm.data",
    "timm.loss",
    "timm.optim",
    "pandas",
    "skimage.metrics._structural_similarity",  # which skimage.metrics imports when it is used
    "plotly.graph_objs._figure",
    "plotly.io._html",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
)
# beginnings of the variables that they read
THEIRS = ("CUDA", "GOMP", "HF_", "KMP", "LANG", "LC_", "LD_", "MKL", "MPL", "NCCL", "OMP", "PYTHON", "TORCH", "TRITON")
NOT_THEIRS = ("PYTHON", "PYTHON_EXEC")  # nor what torchrun tells its processes
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
OPTIONS = ("-u", "-P")  # of Python, that a fork can have
MOST_FILES = 64
AT_FIRST = dict(os.environ)  # before a test sets anything
BLANK = "FIGURES_ARE_BLANK"  # a variable: figures have their files, but nothing is drawn


@functools.cache
def python():
    """Path of a `python` that forks. The server is started on the first call, and ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="forkserver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command, address = folder / "python", folder / "socket"
    ours = shlex.join([sys.executable, "-SE", str(Path(__file__).resolve()), str(address), sys.executable])
    command.write_text(f'#!/bin/sh\nexec {ours} "$0" "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(100)
        words, files = [sys.executable, __file__, str(listener.fileno())], [listener.fileno()]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        python.server = subprocess.Popen(words, **pipes, env=AT_FIRST, start_new_session=True, pass_fds=files)
    python.server.stdout.read(1)  # it forks from now on: no test's clock has the import in it
    return str(command)


def packages_variables(environment):
    """What the packages have read when they were imported."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(THEIRS) and name not in NOT_THEIRS and not name.startswith(("TORCHELASTIC", "TORCH_NCCL"))
    }


# ---- python: asks for a fork and stands for it


def stand_for_a_fork(address, ordinary, own, *words):
    script = next((i for i, word in enumerate(words) if word not in OPTIONS), len(words))
    if words[script : script + 1] != ("-m",) and not "".join(words[script : script + 1]).endswith(".py"):
        os.execv(ordinary, [ordinary, *words])
    files = [int(name) for name in os.listdir("/dev/fd")]
    files = [file for file in files if is_inherited(file)]
    asked = {
        "python": own,
        "options": words[:script],
        "words": words[script:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": files,
        "ignored": [n for n in PASSED_ON if signal.getsignal(n) == signal.SIG_IGN],
        "limits": [resource.getrlimit(limit) for limit in LIMITS],
    }
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        for number in set(PASSED_ON) - set(asked["ignored"]):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        message = json.dumps(asked).encode()
        socket.send_fds(server, [len(message).to_bytes(4, "big")], files)
        server.sendall(message)
        answer = server.recv(100).decode()
    except OSError:
        answer = ""
    if not answer:
        for number in set(PASSED_ON) - set(asked["ignored"]):
            signal.signal(number, signal.SIG_DFL)
        os.execv(ordinary, [ordinary, *words])
    code = int(answer)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def is_inherited(file):
    try:
        return os.get_inheritable(file)
    except OSError:  # what listed them
        return False


# ---- the server


def serve(listener, variables):
    """Fork as asked, until standard input ends. Returns in each fork, with what it was asked for."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    forks = {}  # socket: process
    while True:
        for ready in select.select([*forks, woken, listener, 0], [], [])[0]:  # the killed end before others begin
            if ready == 0:
                for process in forks.values():
                    kill(process)
                os._exit(0)
            elif ready is listener:
                client, _ = listener.accept()
                asked, files = received(client)
                if asked is None or packages_variables(asked["environment"]) != variables:
                    client.close()
                    for file in files:
                        os.close(file)
                    continue
                process = os.fork()
                if not process:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for file in (woken, wake):
                        os.close(file)
                    for other in (listener, client, *forks):
                        other.close()
                    return asked, files
                forks[client] = process
                for file in files:
                    os.close(file)
            elif ready == woken:
                os.read(woken, 1000)
                answer_for_ended(forks)
            elif ready in forks:
                pass_on(ready, forks)


def received(client):
    """(What a client asks for, its open files); None if it has been killed before it had said."""
    size, files, _, _ = socket.recv_fds(client, 4, MOST_FILES)
    message = b""
    while size and len(message) < int.from_bytes(size, "big"):
        part = client.recv(1 << 16)
        if not part:
            return None, files
        message += part
    return (json.loads(message) if message else None), files


def answer_for_ended(forks):
    for client, process in list(forks.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            del forks[client]
            with contextlib.suppress(OSError), client:
                client.send(str(os.waitstatus_to_exitcode(status)).encode())


def pass_on(client, forks):
    """The signals that a client got; its death ends its fork."""
    try:
        signals = client.recv(100)
    except OSError:
        signals = b""
    if signals:
        for number in signals:
            os.kill(forks[client], number)
    else:
        kill(forks[client])
        os.waitpid(forks.pop(client), 0)
        client.close()


def kill(process):
    for end in (os.killpg, os.kill):  # it may not lead its group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(process, signal.SIGKILL)


# ---- a fork


def become(asked, files):
    """Have what the client has."""
    os.setsid()
    for number in PASSED_ON:
        ordinary = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in asked["ignored"] else ordinary)
    above = max(asked["files"]) + 1
    moved = []
    for file in files:
        moved.append(os.dup2(file, above + MOST_FILES + len(moved), inheritable=False))
        os.close(file)
    for file, number in zip(moved, asked["files"]):
        os.dup2(file, number)
        os.close(file)
    for limit, values in zip(LIMITS, asked["limits"]):
        resource.setrlimit(limit, values)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.executable = asked["python"]
    if BLANK in os.environ:
        for module, canvas, method, blank in PRINTERS:
            setattr(getattr(sys.modules[module], canvas), method, blank)
    unbuffered = "-u" in asked["options"] or "PYTHONUNBUFFERED" in os.environ
    for name, file, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
        like = getattr(sys, name)
        raw = os.fdopen(file, mode, buffering=0 if unbuffered and file else -1, closefd=False)
        stream = io.TextIOWrapper(
            raw, like.encoding, like.errors, line_buffering=file == 2, write_through=unbuffered and file > 0
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def blank_png(_canvas, file, **_):
    from PIL import Image

    Image.new("RGB", (1, 1), "white").save(file, "PNG")


def blank_pdf(_canvas, file, **_):
    file.write(b"%PDF-1.4\n%%EOF\n")


PRINTERS = (  # how a figure becomes a file, and what writes a page without anything on it instead
    ("matplotlib.backends.backend_agg", "FigureCanvasAgg", "print_png", blank_png),
    ("matplotlib.backends.backend_pdf", "FigureCanvasPdf", "print_pdf", blank_pdf),
)


def run_as_main(options, words):
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    if "-P" not in options:
        sys.path.insert(0, os.getcwd() if module else os.path.dirname(os.path.realpath(words[0])))
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stand_for_a_fork(*sys.argv[1:])
    del sys.path[0]
    variables = packages_variables(os.environ)  # some packages set some
    sys.modules["wandb"] = None  # which timm would import, and which reads variables as it is
    for package in PACKAGES:
        importlib.import_module(package)
    del sys.modules["wandb"]
    gc.freeze()  # a fork need not look through all of it, which would copy it
    os.write(1, b"!")
    asked, files = serve(socket.socket(fileno=int(sys.argv[1])), variables)
    become(asked, files)
    code, interrupted = 0, False
    try:
        run_as_main(asked["options"], asked["words"])
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:  # noqa: BLE001 - as Python does with one that nobody caught
        sys.excepthook(type(error), error, error.__traceback__)
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)  # without taking all packages apart: 0.3 s, and some say there what they leaked
