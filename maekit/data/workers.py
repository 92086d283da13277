"""The processes that decode images: how many there can be, how they end, and what a dead one means."""

import os
import shutil
import signal
import threading

from .. import distributed

SHARED = "/dev/shm"  # where Linux has the memory that processes share; 64 MiB in Docker's containers
MORE_SHARED = "docker run --shm-size 8g, or --ipc host, makes more of it"
_WAITING = 2  # batches that each worker has ready, and that the run itself may hold


def with_room(workers, batch, say):
    """How many worker processes there is room for in shared memory, through which their batches of `batch` bytes come."""
    if not os.path.isdir(SHARED):
        return workers
    room = shutil.disk_usage(SHARED).free // distributed.local_size() // batch
    fit = min(workers, max(0, (room - _WAITING) // _WAITING))
    if fit < workers:
        say(f"num_workers: {fit} in place of {workers}, as many as {SHARED} has room for; {MORE_SHARED}.")
    return fit


def leave_to_the_run(_worker):
    """For a worker process of the run, on its start: what asks all its processes to stop does not end it before the
    run, which needs it to get to where its state can be saved; only the run itself does."""

    def wait():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    run = os.getppid()
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        threading.Thread(target=wait, daemon=True).start()


def tell_of_one_dead_worker():
    """Of the worker processes that die only the first is an error; once there are any, as data loaders start them.

    The error comes out of the data loaders' handler of SIGCHLD, wherever the run is then, and for each loader anew: a
    second one, a moment later, would break into what the run does about the first.
    """
    tell = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None  # not on Windows

    def tell_once(number, frame):
        try:
            tell(number, frame)
        except RuntimeError:
            tell_of_no_dead_worker()
            raise

    tell_once.is_ours = True
    if callable(tell) and not hasattr(tell, "is_ours"):
        signal.signal(signal.SIGCHLD, tell_once)


def tell_of_no_dead_worker():
    """From now on a worker process that dies is no error: the run has met one already, or another, and ends."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
