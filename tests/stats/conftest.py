"""No statistic makes a library warn."""

import warnings

import pytest


@pytest.fixture(autouse=True)
def no_library_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
