"""Bad input as one line and exit code 2; what a user can mend is never a traceback."""

import errno
import sys


class InputError(Exception):
    """Something the user typed or supplied cannot be used; the text names the value and the way out."""


class NothingToDo(Exception):
    """What was asked for has no object, which is no mistake; the text says why. Exit code 0."""


# Of all operating-system errors, those that mean: the place to write to is not usable, or not any more.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def exit_code(main):
    """Run main() and return the process's exit code, with one line on stderr for what the user can mend."""
    try:
        return main() or 0
    except InputError as error:
        return _complain(str(error))
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


def _complain(text):
    print(f"error: {text}", file=sys.stderr)
    return 2
