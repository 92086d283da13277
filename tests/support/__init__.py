"""Real parts for the tests: an ILSVRC tree of full-size photographs, and processes to run the kit in."""

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

KIT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(KIT))

import analysis as analysis_module
import train as train_module
from maekit import errors
from maekit.data import demo
from tests.support import forkserver

WNIDS = ("n01440764", "n02123045", "n03804744")  # tench, tabby cat, nail: the class that int(folder name) broke on


def run(*command, cwd=KIT, check=None, env=None, timeout=300, **how):
    """Run a command of the kit as a user would; `check` is the exit code to insist on. how: see started_as."""
    words, environment = started_as(command, env, **how)
    result = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
    if check is not None:
        assert result.returncode == check, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def started_as(command, env=None, *, cold=False, draw=False):
    """(words, environment) of a command of the kit.

    Its Python, and that of the drivers and of torchrun, has torch imported already (forkserver.py), unless cold: for tests of
    how processes start or what they leave. draw: figures show what they show; they are blank else, for to draw takes longer
    than a short run.
    """
    python = sys.executable if cold else forkserver.python()
    words = [python if word == sys.executable else str(word) for word in command]
    figures = {} if draw else {forkserver.BLANK: "1"}
    # what runs, and scikit-learn, have set here for themselves
    of_runs_here = ("GOMP_", "KMP_", "MPLBACKEND", "TORCHINDUCTOR_")
    ours = {k: v for k, v in os.environ.items() if k in forkserver.AT_FIRST or not k.startswith(of_runs_here)}
    return words, {**ours, "PYTHON": python, "PYTHON_EXEC": python, **figures, **(env or {})}


def train(*flags, **options):
    """Run train.py in a process of its own."""
    return run(sys.executable, KIT / "train.py", *flags, **options)


def ended(stdout):
    """(runs that a driver trained to the end, runs that it found done), whether one after the other or side by side."""
    patterns = (r"finished after|: done$", r"finished already|: done already$")
    return tuple(len(re.findall(pattern, stdout, re.MULTILINE)) for pattern in patterns)


def train_here(*flags, check=None, draw=False):
    """Run train.py's main in this process, which has torch already; the result looks like a process's."""
    return _here(train_module.main, flags, check, draw)


def analyse_here(*flags, check=None, draw=False):
    """Run analysis.py's main likewise. What numpy, pandas or matplotlib would warn of is an error."""
    with warnings.catch_warnings():
        for kind in (RuntimeWarning, UserWarning):
            warnings.simplefilter("error", kind)
        return _here(analysis_module.main, flags, check, draw)


def export_here(*flags, check=None):
    """Run python -m maekit.export likewise."""
    from maekit.export.__main__ import main

    return _here(main, flags, check, draw=False)


def _here(main, flags, check, draw):
    out, err = io.StringIO(), io.StringIO()
    blank = contextlib.nullcontext() if draw else blank_figures()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), blank:
        try:
            code = errors.exit_code(lambda: main([str(flag) for flag in flags]))
        except SystemExit as end:  # of argparse
            code = end.code or 0
    if check is not None:
        assert code == check, err.getvalue()
    return subprocess.CompletedProcess(flags, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def blank_figures():
    """Figures have their files, but nothing is drawn."""
    from maekit.analysis import figures, report

    with pytest.MonkeyPatch.context() as patch:
        for module, canvas, method, blank in forkserver.PRINTERS:
            patch.setattr(f"{module}.{canvas}.{method}", blank)
        for module in (figures, report):
            patch.setattr(module, "each", lambda function, items: [function(item) for item in items])
        yield


def write_ilsvrc(root, *, train_images=24, val_images=12):
    """An ILSVRC tree of JPEGs of photographs at full size: wnid folders, flat val, LOC_val_solution.csv.

    Image i of a split is photograph i mod 10; its class is WNIDS[i mod 3].
    """
    base = root / "Data" / "CLS-LOC"
    photos = [Image.open(demo.photograph(name)).convert("RGB") for name in demo.PHOTOGRAPHS]
    for i in range(train_images):
        wnid = WNIDS[i % len(WNIDS)]
        folder = base / "train" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        photos[i % 10].save(folder / f"{wnid}_{i}.JPEG", quality=90)
    (base / "val").mkdir(parents=True)
    lines = ["ImageId,PredictionString"]
    for i in range(val_images):
        stem = f"ILSVRC2012_val_{i + 1:08d}"
        photos[i % 10].save(base / "val" / f"{stem}.JPEG", quality=90)
        lines.append(f"{stem},{WNIDS[i % len(WNIDS)]} 1 1 20 20 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return root
