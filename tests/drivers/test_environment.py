"""The Python environment that the drivers make and use, and the packages that it holds."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from tests.support import KIT


@pytest.mark.slow
class TestEnvironment:
    """Real virtual environments, of one small package in place of torch and its friends, from a folder in place of PyPI."""

    USE = 'set -eu; KIT=$1; . "$KIT/maekit/drivers/env.sh"; use_environment; echo "python: $PYTHON"'

    @pytest.fixture(scope="class")
    @classmethod
    def wheels(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("wheels")
        for version in ("1.0.0", "0.12.1"):
            about = f"toolz-{version}.dist-info"
            parts = {
                "toolz/__init__.py": f"__version__ = '{version}'\n",
                f"{about}/METADATA": f"Metadata-Version: 2.1\nName: toolz\nVersion: {version}\n",
                f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            }
            with zipfile.ZipFile(folder / f"toolz-{version}-py3-none-any.whl", "w") as wheel:
                for name, text in parts.items():
                    wheel.writestr(name, text)
                wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*parts, f"{about}/RECORD")))
        return folder

    @pytest.fixture
    def kit(self, tmp_path, wheels, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
        kit = tmp_path / "a kit"
        shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
        (kit / "requirements.txt").write_text("toolz >= 0.12\nsomething-else  # optional\n")
        (kit / "requirements-frozen.txt").write_text("toolz==1.0.0\n")
        return kit

    def use(self, kit, **env):
        without = {**os.environ, **env}
        for name in {"PYTHON", "CI", "PYTHONPATH"} - set(env):
            without.pop(name, None)
        return subprocess.run(
            ["bash", "-c", self.USE, "-", kit], env=without, capture_output=True, text=True, check=False
        )

    def test_it_is_made_once_and_again_when_the_pins_change(self, kit):
        first = self.use(kit)
        assert first.returncode == 0 and "making" in first.stderr and "toolz" in first.stderr, first.stderr
        assert f"python: {kit}/.venv/bin/python" in first.stdout
        again = self.use(kit)
        assert again.returncode == 0 and "making" not in again.stderr and again.stdout == first.stdout
        (kit / "requirements-frozen.txt").write_text("toolz==0.12.1\n")
        assert "toolz-0.12.1" in self.use(kit).stderr
        assert "making" in self.use(kit, CI="true").stderr  # always fresh there

    def test_killed_in_the_middle_it_is_made_anew(self, kit):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CI", "PYTHONPATH")}
        with subprocess.Popen(
            ["bash", "-c", self.USE, "-", kit],
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as making:
            while not (kit / ".venv/bin/python").exists():
                assert making.poll() is None
                time.sleep(0.01)
            os.killpg(making.pid, signal.SIGKILL)
        assert not (kit / ".venv/made-from").exists()
        assert self.use(kit).returncode == 0 and (kit / ".venv/made-from").exists()

    def test_two_drivers_at_once_make_one(self, kit):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CI", "PYTHONPATH")}
        both = [
            subprocess.Popen(["bash", "-c", self.USE, "-", kit], env=env, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        errors = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        assert sum("making" in error for error in errors) == 1
        assert not (kit / ".venv.lock").exists()

    def test_an_interpreter_named_by_hand_must_have_the_packages(self, kit):
        result = self.use(kit, PYTHON=sys.executable)
        assert result.returncode == 2 and "toolz is not installed" in result.stderr
        assert f"PYTHON={sys.executable} cannot run the kit" in result.stderr
        (kit / "requirements.txt").write_text("pillow >= 1\n")
        assert self.use(kit, PYTHON=sys.executable).stdout == f"python: {sys.executable}\n"

    def test_versions_out_of_range_do_not_suffice(self, kit):
        (kit / "requirements.txt").write_text("pillow >= 999\n")
        assert "is not >= 999" in self.use(kit, PYTHON=sys.executable).stderr

    def test_a_frozen_file_that_cannot_be_installed_is_said(self, kit):
        (kit / "requirements-frozen.txt").write_text("toolz==999\n")
        result = self.use(kit)
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


def test_the_frozen_file_pins_every_package_of_the_ranges_for_all_systems():
    frozen = (KIT / "requirements-frozen.txt").read_text()
    for line in (KIT / "requirements.txt").read_text().splitlines():
        name = line.split()[0] if line and not line.startswith("#") else None
        assert name is None or f"\n{name}==" in frozen, name
    assert "nvidia-cublas" in frozen and "sys_platform == 'linux'" in frozen and "torch==2.13" not in frozen
