"""Grids of quick runs that look like train.py to the pool."""

import shlex
import sys

import pytest

from maekit.runs.folder import RunFolder
from tests.support import KIT
from tests.support.pool import STAND_IN


@pytest.fixture
def grid(tmp_path):
    """grid(flags, flags, ...): a grid file of stand-in runs with these flags; their folders are grid.folders."""
    script = tmp_path / "stand_in.py"
    script.write_text(f"KIT = {str(KIT)!r}\n{STAND_IN}")
    root = tmp_path / "out"
    root.mkdir()

    def write(*every, name="commands"):
        write.folders = [RunFolder(root / f"{name[0]}{i}") for i in range(len(every))]
        lines = [
            shlex.join([sys.executable, str(script), "--output_dir", str(folder.path), *flags.split()])
            for folder, flags in zip(write.folders, every)
        ]
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        return root / f"{name}.txt"

    write.analysis = (sys.executable, "-c", "print('THE ANALYSIS')")
    return write
