"""One process at a time: a lock on a file that the system lets go of when its holder dies, by whatever signal.

Across nodes as well where the file system has locks (NFS does, by default).
"""

import errno
import os
import socket

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

_PLACE = 1 << 20  # the byte that Windows locks, beyond the text that others may want to read


class Lock:
    """An exclusive lock, held from a successful `acquire` to `release` or the end of the process.

    Not inherited by child processes: a worker that outlives its parent does not hold it.
    """

    def __init__(self, path):
        self.path = path
        self.file = None

    def acquire(self):
        """Take the lock; False if another process has it."""
        while True:
            file = open(self.path, "a+b")  # noqa: SIM115 - stays open as long as the lock is held
            if not _lock(file):
                file.close()
                return False
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    break
            except FileNotFoundError:
                pass
            file.close()  # its last holder has removed the file between our opening and locking it
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        self.file = file
        return True

    def holder(self):
        """Who has the lock, in words."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return file.read(200) or "another process"
        except OSError:
            return "another process"

    def release(self):
        """Let go, and remove the file."""
        if self.file is None:
            return
        try:
            os.unlink(self.path)
        except OSError:  # Windows keeps a file that is open
            pass
        self.file.close()
        self.file = None


def is_held(path):
    """Whether a process holds the lock on a path."""
    if not os.path.exists(path):
        return False
    lock = Lock(path)
    if lock.acquire():
        lock.release()
        return False
    return True


def _lock(file):
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(_PLACE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks
            return True
        raise
    return True
