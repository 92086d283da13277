"""Files that are whole or not there: JSON, CSV and arrays written atomically and read back. No torch."""

import csv
import glob
import hashlib
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

KIT = Path(__file__).resolve().parent.parent  # the folder with train.py


def draft_of(path):
    """The temporary name, of this process, of a file that is being written."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_write(path, previous=None):
    """Open a binary file that appears under `path` whole or not at all: temporary name, flush to disk, rename.

    previous: path that the file which was there before gets.
    """
    path = Path(path)
    draft = draft_of(path)
    try:
        with open(draft, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_drafts(paths):
    """Delete what atomic_write left beside these files in processes that were killed; none may be at it now."""
    for path in paths:
        for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            draft.unlink(missing_ok=True)


def sha256(path):
    """Hash of a file's bytes in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path, value):
    """Write JSON that any parser reads: what is not finite becomes null."""
    with atomic_write(path) as f:
        f.write((json.dumps(_finite(value), indent=1, allow_nan=False) + "\n").encode())


class Damaged(InputError):
    """A file of a run holds what no run wrote."""


def damaged(path, what, way="Delete the run's folder, or --overwrite it."):
    """The Damaged of a file of which `what` is wrong, a phrase; way: what to do about it."""
    return Damaged(f"{path}: is damaged ({what}). {way}")


def read_json(path, **way):
    """Parsed JSON, which is what write_json writes. Raises Damaged naming the file, with what to do; way: as `damaged` has it."""
    try:
        return json.loads(
            Path(path).read_text(encoding="utf-8"),
            parse_constant=_no_number,
            parse_float=_finite_float,
            object_pairs_hook=once,
        )
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}", **way) from error
    except RecursionError as error:
        raise damaged(path, "brackets in brackets without an end", **way) from error
    except ValueError as error:
        raise damaged(path, error, **way) from error


def _no_number(text):
    raise ValueError(f"holds {text:.40}")


def _finite_float(text):
    value = float(text)
    return value if value - value == 0 else _no_number(text)


def is_text(value):
    """Whether a value is text that can be written: JSON can spell half of a character, which is none."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def once(pairs):
    """A JSON object. Raises ValueError for one that has a key twice, of which nobody knows what is meant."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"holds {next(name for name in names if names.count(name) > 1):.40} twice")
    return made


def write_csv(path, columns, rows):
    """Write rows; floats keep all their digits, None is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as f:
        f.write(text.getvalue().encode(errors="backslashreplace"))


def write_arrays(path, arrays):
    """Write a compressed .npz."""
    import numpy as np

    with atomic_write(path) as f:
        np.savez_compressed(f, **arrays)


def read_arrays(path, needed=()):
    """{name: array} of an .npz, with those of the names `needed` in it. Raises Damaged naming the file."""
    import numpy as np

    try:
        with np.load(path) as arrays:
            found = dict(arrays)
    except Exception as error:  # damaged, an archive may raise anything
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    for name in needed:
        if name not in found:
            raise damaged(path, f"has no {name}")
    return found


def read_csv(path):
    """Rows of a file of write_csv with numbers as numbers; an empty list if there is no file. Raises Damaged naming it."""
    if not Path(path).exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as f:
            head, *rows = list(csv.reader(f, strict=True)) or [[]]
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    except (csv.Error, ValueError) as error:
        raise damaged(path, error) from error
    if len(set(head)) < len(head) or not all(head):
        raise damaged(path, f"has the columns {','.join(head):.60}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise damaged(path, f"line {number} has {len(row)} cells, the first {len(head)}")
    return [{name: _number(cell) for name, cell in zip(head, row)} for row in rows]


def _number(cell):
    if cell in ("", None):
        return None
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _finite(value):
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value
