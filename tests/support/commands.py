"""Commands of train.py: their settings, and what is said of bad ones."""

from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from tests.support import train_here


def resolved(*flags):
    """The settings of a command."""
    return resolve(build_parser("train.py", "").parse_args([str(flag) for flag in flags]))


def complaint(*flags):
    """The one line that a command with bad input prints."""
    result = train_here(*flags, check=2)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
