"""analysis.py gap, as the tests start it and read what it leaves."""

import json

from tests.support import analyse_here


def analyse(log_dir, out, *flags, check=0, draw=False):
    """Analyse a folder of trajectories; the result looks like a process's."""
    return analyse_here("gap", "--log_dir", log_dir, "--output_dir", out, *flags, check=check, draw=draw)


def statistics(out, suffix=""):
    """What it has written of one accuracy, which the suffix names."""
    return json.loads((out / f"gap_statistics{suffix}.json").read_text())


def complaint(log_dir, out, *flags):
    """The one line that it prints of bad input."""
    error = analyse(log_dir, out, *flags, check=2).stderr.strip()
    assert len(error.splitlines()) == 1 and "Traceback" not in error, error
    return error
