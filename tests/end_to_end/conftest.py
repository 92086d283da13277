"""An unbroken run, to compare with."""

import pytest

from tests.support import train
from tests.support.faults import ALL, QUICK


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 6 epochs with all probes that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train(*QUICK, *ALL, "--epochs", "6", "--output_dir", folder, check=0)
    return folder
