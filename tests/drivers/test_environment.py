"""The Python environment that the drivers make and use, and the packages that it holds."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support import KIT
from tests.support.environments import USE, use, without_own


@pytest.mark.slow
class TestEnvironment:
    """Real virtual environments, of one small package in place of torch and its friends, from a folder in place of PyPI."""

    def test_it_is_made_once_and_again_when_the_pins_change(self, kit):
        first = use(kit)
        assert first.returncode == 0 and "making" in first.stderr and "toolz" in first.stderr, first.stderr
        assert f"python: {kit}/.venv/bin/python" in first.stdout
        again = use(kit)
        assert again.returncode == 0 and "making" not in again.stderr and again.stdout == first.stdout
        (kit / "requirements-frozen.txt").write_text("toolz==0.12.1\n")
        assert "toolz-0.12.1" in use(kit).stderr
        assert "making" in use(kit, CI="true").stderr  # always fresh there

    def test_killed_in_the_middle_it_is_made_anew(self, kit):
        with subprocess.Popen(
            ["bash", "-c", USE, "-", kit],
            env=without_own(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as making:
            while not (kit / ".venv/bin/python").exists():
                assert making.poll() is None
                time.sleep(0.01)
            os.killpg(making.pid, signal.SIGKILL)
        assert not (kit / ".venv/made-from").exists()
        assert use(kit).returncode == 0 and (kit / ".venv/made-from").exists()

    def test_two_drivers_at_once_make_one(self, kit):
        both = [
            subprocess.Popen(["bash", "-c", USE, "-", kit], env=without_own(), stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        errors = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        assert sum("making" in error for error in errors) == 1
        assert not (kit / ".venv.lock").exists()

    def test_an_interpreter_named_by_hand_must_have_the_packages(self, kit):
        result = use(kit, PYTHON=sys.executable)
        assert result.returncode == 2 and "toolz is not installed" in result.stderr
        assert f"PYTHON={sys.executable} cannot run the kit" in result.stderr
        (kit / "requirements.txt").write_text("pillow >= 1\n")
        assert use(kit, PYTHON=sys.executable).stdout == f"python: {sys.executable}\n"

    def test_versions_out_of_range_do_not_suffice(self, kit):
        (kit / "requirements.txt").write_text("pillow >= 999\n")
        assert "is not >= 999" in use(kit, PYTHON=sys.executable).stderr

    def test_a_frozen_file_that_cannot_be_installed_is_said(self, kit):
        (kit / "requirements-frozen.txt").write_text("toolz==999\n")
        result = use(kit)
        assert result.returncode == 2 and "error: installing requirements-frozen.txt failed" in result.stderr
        assert not (kit / ".venv.lock").exists()


def test_every_range_has_a_lower_end_for_the_oldest_environment_of_the_tests():
    (script,) = re.findall(r"sed -n '(.*)' requirements.txt", (KIT / "tests/run.sh").read_text())
    done = subprocess.run(
        ["sed", "-n", script, KIT / "requirements.txt"], capture_output=True, text=True, check=True
    ).stdout
    needs = [line for line in (KIT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(done.splitlines()) == len(needs)
    assert all(re.fullmatch(r"[a-z0-9-]+==\d[\d.]*\d", line) for line in done.splitlines()), done
    assert "torch==2.8\n" in done
