"""As in a container: a user without a name and without a home, a checkout that cannot be written, one variable in the
environment."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import KIT

NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "getuid") or os.getuid() != 0 or not shutil.which("setpriv"),
        reason="takes root's right to be somebody else",
    ),
]


@pytest.fixture(scope="module")
def place():
    """A folder with `kit`, a checkout that only root may write, and `elsewhere`, which all may; others cannot see pytest's."""
    with tempfile.TemporaryDirectory(prefix="maekit-container-") as name:
        place = Path(name)
        files = subprocess.run(["git", "ls-files", "-z"], cwd=KIT, capture_output=True, text=True, check=True).stdout
        for file in filter(None, files.split("\0")):
            if (KIT / file).is_file():
                (place / "kit" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(KIT / file, place / "kit" / file)
        (place / "elsewhere").mkdir()
        subprocess.run(["chmod", "-R", "a+rX,go-w", place], check=True)
        (place / "elsewhere").chmod(0o777)
        (place / "python").write_text(_python())
        (place / "python").chmod(0o755)
        yield place


def _python():
    """A script that is a Python which others may run, too, with the packages of this one."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, f"/usr/bin/{version}"):
        script = f'#!/bin/sh\nPYTHONPATH={":".join(packages)}:$PYTHONPATH exec {program} "$@"\n'
        tried = subprocess.run(
            [*NOBODY, "sh", "-c", script.partition("\n")[2], "sh", "-c", "import torch"],
            capture_output=True,
            check=False,
        )
        if tried.returncode == 0:
            return script
    pytest.skip("others may run no Python that has the packages")


def command(place, *words):
    bare = ["env", "-i", "PATH=/usr/bin:/bin", f"PYTHON={place / 'python'}", f"TMPDIR={place / 'elsewhere'}"]
    libraries = [f"LD_LIBRARY_PATH={os.environ['LD_LIBRARY_PATH']}"] if "LD_LIBRARY_PATH" in os.environ else []
    return subprocess.run(
        [*NOBODY, *bare, *libraries, *words],
        cwd=place / "elsewhere",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    "words, page",
    [
        (("run_comparison.sh", "--demo", "--methods", "ln"), "output_demo/report.html"),
        (("quick_sweep_test.sh", "--demo", "--alphas", "0 0.5"), "outputs/analysis_demo-quick/report.html"),
    ],
)
def test_the_readmes_commands_work(place, words, page):
    result = command(place, place / "kit" / words[0], *words[1:], "--epochs", "2", "--max_images", "64")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (place / "elsewhere" / page).stat().st_uid == 12345
    before = "no home folder that can be written: caches are in"
    assert f"{before} {place}/elsewhere/maekit-12345." in result.stdout + result.stderr
    assert not (place / "kit" / "data").exists()
