"""What all tests share: the demo tree, an ILSVRC tree, and a cache of their own."""

import os

import pytest

from maekit.data import demo
from tests.support import write_ilsvrc


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """Where --cache auto keeps decoded images during the tests, in processes that they start as well."""
    os.environ["MAEKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def demo_dir():
    """The demo's ILSVRC folder."""
    return demo.ensure()


@pytest.fixture(scope="session")
def ilsvrc(tmp_path_factory):
    """A small ILSVRC tree, shared by the tests: copy it before changing it."""
    return write_ilsvrc(tmp_path_factory.mktemp("data") / "ILSVRC")
