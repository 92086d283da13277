"""Locks between real processes."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from maekit import locks
from tests.support import KIT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def python(code, *args, **options):
    """Start a Python process that has `locks`."""
    code = (
        f"import os, sys, time\nsys.path.insert(0, {str(KIT)!r})\nfrom maekit import locks\npath = sys.argv[1]\n{code}"
    )
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, **options)


HOLD = "lock = locks.Lock(path)\nprint(lock.acquire(), flush=True)\ntime.sleep(60)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


def test_one_process_at_a_time_and_the_others_are_told_who(path):
    with python(HOLD, path) as holder:
        assert holder.stdout.readline() == "True\n"
        assert locks.is_held(path) is True
        assert not locks.Lock(path).acquire()
        assert locks.Lock(path).holder().startswith(f"process {holder.pid} on ")
        holder.kill()
    assert locks.is_held(path) is False and path.exists(), "a killed process cannot tidy up"
    lock = locks.Lock(path)
    assert lock.acquire()
    lock.release()
    assert not path.exists() and locks.is_held(path) is False


def test_a_killed_holder_lets_go_at_once_though_its_workers_live_on(path):
    workers = (
        "import subprocess\n"
        "worker = os.fork() or time.sleep(60)\n"
        "other = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "print(worker, other.pid, flush=True)\n"
    )
    code = HOLD.replace("time.sleep", f"{workers}time.sleep")
    with python(code, path) as holder:
        assert holder.stdout.readline() == "True\n"
        workers = [int(pid) for pid in holder.stdout.readline().split()]
        try:
            assert locks.is_held(path)
            os.kill(holder.pid, signal.SIGKILL)
            os.waitpid(holder.pid, 0)
            for worker in workers:
                os.kill(worker, 0)  # alive
            lock = locks.Lock(path)
            assert lock.acquire()
            lock.release()
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)


def test_a_worker_that_ends_does_not_take_the_lock_with_it(path):
    code = HOLD.replace(
        "time.sleep(60)", "os.fork() or os._exit(0)\nos.wait()\nprint('ended', flush=True)\ntime.sleep(60)"
    )
    with python(code, path) as holder:
        assert [holder.stdout.readline() for _ in range(2)] == ["True\n", "ended\n"]
        assert locks.is_held(path)
        holder.kill()


# Two processes hold nothing at the same time: each makes a file while it holds the lock, which must not be there yet.
TAKE_TURNS = """
taken = clashes = 0
lock, mark = locks.Lock(path), path + ".mark"
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if lock.acquire():
        taken += 1
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            clashes += 1
        else:
            os.unlink(mark)
        lock.release()
print(taken, clashes)
"""


@pytest.mark.slow
def test_a_lock_whose_file_its_holder_removes_while_others_open_it_has_one_holder(path):
    """Between opening a file and locking it, it may be removed; who then locks it has locked nothing."""
    players = [python(TAKE_TURNS, path, 3) for _ in range(4)]
    taken, clashes = zip(*(map(int, player.communicate(timeout=60)[0].split()) for player in players))
    assert clashes == (0, 0, 0, 0) and all(n > 10 for n in taken), (taken, clashes)
    assert not path.exists()


def test_who_opened_the_file_before_it_was_removed_takes_the_new_one(path, monkeypatch):
    """The same, made to happen: the holder lets go after the other has opened the file and before it locks it."""
    with python(
        HOLD.replace(
            "time.sleep(60)", "sys.stdin.readline()\nlock.release()\nprint('gone', flush=True)\ntime.sleep(60)"
        ),
        path,
        stdin=subprocess.PIPE,
    ) as holder:
        holder.stdout.readline()
        lock_byte, opened = locks._lock, []

        def let_go_first(file, *args, **options):
            if not opened:
                holder.stdin.write("\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == "gone\n"
            opened.append(os.fstat(file.fileno()).st_ino)
            return lock_byte(file, *args, **options)

        monkeypatch.setattr(locks, "_lock", let_go_first)
        lock = locks.Lock(path)
        assert lock.acquire() and len(opened) > 2  # twice opened
        assert os.stat(path).st_ino == os.fstat(lock.file.fileno()).st_ino
        held = "print(locks.is_held(path), locks.Lock(path).acquire())"
        with python(held, path) as other:
            assert other.stdout.read() == "True False\n"
        lock.release()
        holder.kill()


def test_looking_at_a_lock_never_makes_others_believe_that_it_is_taken(path):
    """Status in a loop, from several processes, while runs start."""
    look = "while True:\n    locks.is_held(path)"
    lookers = [python(look, path) for _ in range(3)]
    try:
        lock, missed = locks.Lock(path), 0
        for _ in range(300):
            if lock.acquire():
                lock.release()
            else:
                missed += 1
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()
    assert missed == 0


def test_a_lock_that_is_looked_at_while_it_is_taken_is_still_shown(path):
    """Taking the lock waits for those who look, and then shows itself."""
    path.touch()
    look = (
        "import fcntl\nfile = open(path, 'rb')\nfcntl.lockf(file, fcntl.LOCK_SH, 1, locks._SHOWN)\n"
        "print('looking', flush=True)\ntime.sleep(0.3)\nfile.close()\ntime.sleep(60)"
    )
    with python(look, path) as looker, python("sys.stdin.readline()\n" + HOLD, path, stdin=subprocess.PIPE) as holder:
        assert looker.stdout.readline() == "looking\n"
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "True\n"
        assert locks.is_held(path)
        looker.kill()
        holder.kill()


def test_a_folder_that_may_only_be_read_can_be_looked_at(path):
    with python(HOLD, path) as holder:
        holder.stdout.readline()
        path.chmod(0o444)
        assert locks.is_held(path) is True
        holder.kill()
    assert locks.is_held(path.parent / "none/run.lock") is False
    (path.parent / "file").touch()
    assert locks.is_held(path.parent / "file/run.lock") is False


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_on_a_file_system_without_locks_runs_start_and_nobody_knows(path, monkeypatch, code):
    def without(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "lockf", without)
    lock = locks.Lock(path)
    assert lock.acquire() and locks.is_held(path) is None
    lock.release()
    assert not path.exists()


def test_another_error_is_not_taken_for_a_lock(path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(locks.fcntl, "lockf", broken)
    with pytest.raises(OSError, match="the disk"):
        locks.Lock(path).acquire()


def test_many_turns_leave_no_open_file(path):
    before = len(os.listdir("/dev/fd"))
    for _ in range(50):
        lock = locks.Lock(path)
        assert lock.acquire()
        lock.release()
        locks.is_held(path)
    assert len(os.listdir("/dev/fd")) == before
