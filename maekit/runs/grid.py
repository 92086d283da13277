"""A grid file: the commands of a grid of runs, one a line, each with the --output_dir that it fills. No torch."""

import os
import shlex
import subprocess
from pathlib import Path

from ..errors import InputError
from ..files import atomic_write


def read_grid(path):
    """Lines of a grid file that are not empty. Raises InputError naming the first that is no command of a run."""
    lines = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="surrogateescape").split("\n"), 1):
        if line.strip():
            try:
                output_dir(shlex.split(line))
            except ValueError:
                raise InputError(
                    f"{path}: line {number} is no command with an --output_dir: {line}. Mend it, or take it out."
                ) from None
            lines.append(line)
    return lines


def write_grid(path, commands):
    """Write a grid file of commands, each a list of words; whole or not at all."""
    with atomic_write(path) as f:
        f.writelines(f"{shlex.join(words)}\n".encode(errors="surrogateescape") for words in commands)


def output_dir(words):
    """Folder that a command fills. Raises ValueError if it names none."""
    if "--output_dir" not in words[:-1]:
        raise ValueError("no --output_dir")
    return Path(words[words.index("--output_dir") + 1])


def for_shell(words):
    """A command as a line that the user's shell takes, cmd.exe on Windows."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
