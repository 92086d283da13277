"""What all tests share: the demo tree, an ILSVRC tree, and a cache of their own."""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from maekit.data import demo
from tests.support import forkserver, write_ilsvrc

HERE = Path(__file__).parent


SLOW = ("end_to_end", "frozen")
ROOMS = ("end_to_end", "drivers", "frozen", "analysis", "training", "probes")  # the longest files begin first


def pytest_configure(config):
    """Tests are of the CPU's numbers, and see no GPU where there is one, unless tests/cuda alone is run."""
    asked = [Path(str(arg).partition("::")[0]).parts for arg in config.args]
    if shutil.which("nvidia-smi") and not (asked and all("cuda" in parts for parts in asked)):
        folder = Path(tempfile.mkdtemp(prefix="no-gpu-"))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        forkserver.AT_FIRST.update(hide_gpus(folder))


def hide_gpus(folder):
    """Have torch see no GPU, and nvidia-smi, one in a folder, list none, in this process and those that it starts; the
    variables that do it."""
    (folder / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (folder / "nvidia-smi").chmod(0o755)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    os.environ.update(hidden)
    return hidden


def pytest_collection_modifyitems(items):
    """Mark what is slow as a whole; files that take long are not left for last, where one worker would be alone with them."""

    def room_of(item):
        return item.path.relative_to(HERE).parts[0]

    for item in items:
        if room_of(item) in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: ROOMS.index(room_of(item)) if room_of(item) in ROOMS else len(ROOMS))


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """Where --cache auto keeps decoded images during the tests, in processes that they start as well."""
    os.environ["MAEKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def demo_dir(small_demo):
    """The demo's whole ILSVRC folder."""
    return small_demo


@pytest.fixture(scope="session", autouse=True)
def small_demo(tmp_path_factory):
    """What --demo finds during the tests, in processes that they start as well: its training images, and of its validation
    images 4 of each class, for to validate takes most of a short run's time. The whole demo's folder."""
    whole = demo.ensure()
    home = tmp_path_factory.mktemp("data")
    small, of_class = home / whole.name, Counter()
    (small / "Data/CLS-LOC/val").mkdir(parents=True)
    (small / "Data/CLS-LOC/train").symlink_to(whole / "Data/CLS-LOC/train")
    head, *rows = (whole / "LOC_val_solution.csv").read_text().splitlines()
    kept = []
    for row in rows:
        stem, wnid = row.replace(",", " ").split()[:2]
        of_class[wnid] += 1
        if of_class[wnid] <= 4:
            kept.append(row)
            (small / f"Data/CLS-LOC/val/{stem}.JPEG").symlink_to(whole / f"Data/CLS-LOC/val/{stem}.JPEG")
    (small / "LOC_val_solution.csv").write_text("\n".join([head, *kept]) + "\n")
    before = os.environ.get("MAEKIT_DATA")
    os.environ["MAEKIT_DATA"] = str(home)
    yield whole
    os.environ.pop("MAEKIT_DATA") if before is None else os.environ.update(MAEKIT_DATA=before)


@pytest.fixture
def whole_demo(demo_dir, monkeypatch):
    """--demo has all its validation images, in processes that a test starts as well: for what counts single ones."""
    monkeypatch.setenv("MAEKIT_DATA", str(demo_dir.parent))


@pytest.fixture(scope="session")
def ilsvrc(tmp_path_factory):
    """A small ILSVRC tree, shared by the tests: copy it before changing it."""
    return write_ilsvrc(tmp_path_factory.mktemp("data") / "ILSVRC")
