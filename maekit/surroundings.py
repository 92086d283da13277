"""What a program of the kit settles before it begins, so that it runs wherever it is started: notebooks, containers, clusters."""

import os
import sys
import tempfile
from pathlib import Path


def settle():
    """Figures are drawn into files, whatever a notebook has matplotlib do; caches have a place where there is no home folder."""
    draw_as_the_kit_does()
    have_a_place_for_caches()


def draw_as_the_kit_does():
    """Have matplotlib, which is not imported yet, draw into files: a notebook's way is a module that this Python may not have."""
    os.environ["MPLBACKEND"] = "agg"


def in_notebook():
    """Whether this was typed in a cell, with a ! before it: what looks like a terminal there moves no cursor upwards."""
    return "JPY_PARENT_PID" in os.environ or os.environ.get("MPLBACKEND", "").endswith("backend_inline")


def let_tables_hold_any_name():
    """Have pandas keep texts as Python does: a file's name may be bytes that are no text, which pyarrow refuses."""
    import pandas as pd

    pd.set_option("mode.string_storage", "python")


def have_a_place_for_caches():
    """Where no home folder can be written, as for a number without a name in a container, let the packages' caches and the
    kit's be in the temporary folder, and say so on stderr, once."""
    home = os.path.expanduser("~")
    if os.path.isabs(home) and (os.access(home, os.W_OK) or os.path.isdir(os.path.join(home, ".cache"))):
        return  # what is in caches that cannot be written can be read
    folder, told = temporary(), "MAEKIT_TOLD_OF_CACHES"
    for name, value in {"XDG_CACHE_HOME": folder, "MPLCONFIGDIR": folder / "matplotlib", "TRITON_HOME": folder}.items():
        os.environ.setdefault(name, str(value))
    if not os.path.isabs(home):
        os.environ["HOME"] = str(folder)
        os.environ.setdefault("USER", f"user{os.getuid()}")  # torch names a folder by it
    if told not in os.environ:
        print(f"no home folder that can be written: caches are in {os.environ['XDG_CACHE_HOME']}.", file=sys.stderr)
        os.environ[told] = "yes"  # to the processes that this one starts


def caches():
    """Folder of the kit's caches: $MAEKIT_CACHE, else maekit in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("MAEKIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maekit"


def temporary():
    """A folder of this user's own in the temporary one, the same each time."""
    folder = Path(tempfile.gettempdir()) / f"maekit-{os.getuid() if hasattr(os, 'getuid') else 'own'}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        own = not folder.is_symlink() and (not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid())
    except FileExistsError:  # as a file, or a link that leads nowhere
        own = False
    return folder if own else Path(tempfile.mkdtemp(prefix="maekit-"))  # else somebody was there first
