"""A small repository that stands in for upstream's."""

import os
import sys
import warnings
from pathlib import Path

import pytest

from maekit.model import upstream
from tests.support import KIT
from tests.support.git import FILES, PATCHED, commit, git, write


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """(repository, its commit, patch): a stand-in for upstream, two files of which the patch changes."""
    root = tmp_path_factory.mktemp("upstream")
    repository = root / "repository"
    write(repository, FILES)
    git(repository, "init", "--quiet")
    target = commit(repository)
    write(repository, PATCHED)
    patch = root / "compatibility-fix.patch"
    patch.write_bytes(("Words before the first file.\n\n" + git(repository, "diff") + "\n").encode())
    git(repository, "checkout", "--quiet", ".")
    return repository, target, patch


@pytest.fixture
def repository(stand_in, monkeypatch):
    """The stand-in, in upstream's place for this test. Nothing of a clone stays imported."""
    path, target, patch = stand_in
    monkeypatch.setattr(upstream, "URL", str(path))
    monkeypatch.setattr(upstream, "COMMIT", target)
    monkeypatch.setattr(upstream, "PATCH", patch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in list(sys.modules):
        if name.split(".")[0] in ("models_mae", "util"):
            del sys.modules[name]


@pytest.fixture
def mae(repository, tmp_path):
    """A clean clone of the stand-in."""
    git(tmp_path, "clone", "--quiet", repository, "mae")
    return tmp_path / "mae"


@pytest.fixture(scope="session")
def real():
    """A clone of upstream's own repository, never changed: copy it with git."""
    for place in (os.environ.get("MAE_CLONE"), KIT / "mae"):
        if (
            place
            and os.path.isdir(place)
            and git(place, "rev-parse", "--verify", upstream.COMMIT + "^{tree}", check=False)
        ):
            return Path(place).resolve()
    reason = f"NOT TESTED on upstream's own files: set MAE_CLONE to a clone of {upstream.URL}"
    warnings.warn(reason, stacklevel=1)
    pytest.skip(reason)
