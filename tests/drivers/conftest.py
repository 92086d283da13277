"""A kit whose environments take seconds to make."""

import shutil

import pytest

from tests.support import KIT
from tests.support.environments import write_wheels


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder in place of PyPI."""
    folder = tmp_path_factory.mktemp("wheels")
    write_wheels(folder)
    return folder


@pytest.fixture
def kit(tmp_path, wheels, monkeypatch):
    """Folder of the kit's drivers, whose pins are toolz 1.0.0, and for CUDA 12 toolz 0.12.1."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    kit = tmp_path / "a kit"
    shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    (kit / "requirements.txt").write_text("toolz >= 0.12\nsomething-else  # optional\n")
    (kit / "requirements-frozen.txt").write_text("toolz==1.0.0\n")
    (kit / "maekit/drivers/requirements-frozen-cuda12.txt").write_text("toolz==0.12.1\n")
    return kit
