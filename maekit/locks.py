"""One process at a time: a lock on a file that the system lets go of when its holder dies, by whatever signal.

Across nodes as well where the file system has locks (NFS does, by default). Of the two bytes that are locked the first
keeps other holders out. The second is there to be looked at: who asks whether the lock is held touches only that one,
and so can never make a process that is about to take the lock believe that another one has it.
"""

import errno
import os
import socket
import time

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

_HELD, _SHOWN = 1 << 20, (1 << 20) + 1  # beyond the text: what Windows has locked cannot be read
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # a file system without them


class Lock:
    """An exclusive lock, held from a successful `acquire` to `release` or the end of the process.

    Not inherited by child processes: a worker that outlives its parent does not hold it. On a file system without locks
    everyone gets it.
    """

    def __init__(self, path):
        self.path = path
        self.file = self.again = None

    def acquire(self):
        """Take the lock; False if another process has it."""
        while True:
            file = open(self.path, "a+b")  # noqa: SIM115 - stays open as long as the lock is held
            if _lock(file, _HELD) is False:
                file.close()
                return False
            if self._is_the_file(file):
                break
            file.close()  # its last holder has removed it between our opening and locking it
        for _ in range(100):
            if _lock(file, _SHOWN) is not False:  # somebody looks at this moment
                break
            time.sleep(0.01)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        self.file = file
        return True

    def _is_the_file(self, file):
        """Whether others who open the path get the same file. Opened, since NFS answers os.stat from memory; and not
        closed, since with any of its descriptors a process lets go of the locks on a file."""
        try:
            self.again = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return False
        if os.path.samestat(os.fstat(file.fileno()), os.fstat(self.again.fileno())):
            return True
        self.again.close()
        return False

    def holder(self):
        """Who has the lock, in words; for others than the holder."""
        for _ in range(20):
            try:
                with open(self.path, encoding="utf-8") as file:
                    if known := file.read(200):
                        return known
            except OSError:
                break
            time.sleep(0.01)  # it has the lock, and has not written yet
        return "another process"

    def release(self):
        """Let go, and remove the file."""
        if self.file is None:
            return
        try:
            os.unlink(self.path)
        except OSError:  # Windows keeps a file that is open
            pass
        self.again.close()
        self.file.close()
        self.file = self.again = None


def is_held(path):
    """Whether another process holds the lock on a path, None where the file system has no locks. Disturbs nobody.

    A process that holds it itself must not ask: it would let go.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        return False
    with file:
        free = _lock(file, _SHOWN, shared=True)
    return None if free is None else not free


def _lock(file, byte, *, shared=False):
    """Lock a byte until the file is closed: True, or False if another process has it, None if there are no locks."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, byte)
        else:
            file.seek(byte)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
