"""Exit 0 if train.py takes the flags of every command on stdin, a line each as a grid file has them; data are not opened.

Else exit code 2 and train.py's line on what is wrong. It needs no packages.
"""

import os
import shlex
import sys

from maekit import errors
from maekit.errors import NothingToDo
from maekit.settings import published
from maekit.settings.flags import UNTRAINED
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.settings.tasks import EVALUATIONS


def check(commands):
    """Raise InputError, or exit with 2, for the first command that train.py would refuse. commands: lists of words.

    An evaluation starts from a run that is to be trained yet, so it is checked as one of random weights.
    """
    parser = build_parser("train.py", "")
    for words in commands:
        script = next(i for i, word in enumerate(words) if os.path.basename(word) == "train.py")
        typed = parser.parse_args(words[script + 1 :])
        if (typed.task in EVALUATIONS or typed.freeze) and typed.init is not None:
            typed.init = UNTRAINED
        if (typed.init or "").startswith(published.HUB):
            published.name_of(typed.init)
            typed.init = UNTRAINED  # nothing is downloaded for a check
        try:
            resolve(typed)
        except NothingToDo:
            pass  # --init of a run that diverged, which each command will say


def main():
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    check(shlex.split(line) for line in sys.stdin if line.strip())


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
