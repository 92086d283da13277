"""Bad input as one line and exit code 2; what a user can mend is never a traceback."""

import errno
import os
import re
import sys
import time

BUSY = 75  # EX_TEMPFAIL


class InputError(Exception):
    """Something the user typed or supplied cannot be used; the text names the value and the way out."""


class NothingToDo(Exception):
    """What was asked for has no object, which is no mistake; the text says why. Exit code 0."""


class Stopped(Exception):
    """A signal, named by the text, ended the run after its state was saved. Exit code 143."""


class Busy(Exception):
    """Another process is at it; the text says at what. Exit code 75, which asks to try again later."""


# Of all operating-system errors, those that mean: the place to write to is not usable, or not any more.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def exit_code(main):
    """Run main() and return the process's exit code, with one line on stderr for what the user can mend."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal has no letters for
    try:
        return main() or 0
    except InputError as error:
        return _complain(str(error))
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command goes on from there.", file=sys.stderr)
        return 143
    except Busy as notice:
        print(notice, file=sys.stderr)
        return BUSY
    except NothingToDo as notice:
        print(notice)
        return 0
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        where = error.filename or "output folder"
        return _complain(
            f"{where}: {error.strerror}; files written before are whole. Make room or allow writing, "
            "then run the same command again, or choose another --output_dir."
        )
    except ModuleNotFoundError as error:
        return _complain(
            f"package {error.name} is not installed for {sys.executable}. Start through run_comparison.sh, which sees "
            "to that, or pip install -r requirements.txt."
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished epoch.", file=sys.stderr)
        return 130


# Of several processes all check the flags and the data alike, and the first speaks for all; from the start of the
# training on each may meet something of its own.
_ALIKE = [True]


def each_for_itself(so=True):
    """From now on every process says what it meets; with False only the first again, as it was."""
    _ALIKE[:] = [] if so else [True]


def _complain(text):
    """One line, in the first of several processes; what only another one met it says as well, by its number."""
    text = re.sub(r"\s*\n\s*", " ", text.strip())  # what libraries say, and names of files, may have several
    rank = os.environ.get("RANK", "0")
    together = os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and together.isdecimal() and int(together) > 1 and "MASTER_ADDR" in os.environ):
        rank = "0"  # the variables are another program's
    if rank != "0" and _ALIKE:  # torchrun ends all processes as soon as one has ended: not before the first has spoken
        time.sleep(10)
    if rank == "0" or not _ALIKE:
        print(f"error: {text}" if rank == "0" else f"error in process {rank}: {text}", file=sys.stderr)
    return 2
