"""Drivers find the kit, and nothing else, however and wherever they are started."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maekit import distributed
from maekit.drivers import windows
from tests.support import KIT, run

DRIVERS = ("run_comparison.sh", "run_alpha_sweep.sh", "quick_sweep_test.sh", "lr_alpha_sweep.sh")


def dry(words, cwd, **env):
    result = run(*words, "--demo", "--dry_run", cwd=cwd, env={"PYTHON": sys.executable, **env})
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_link_leads_to_the_kit_and_so_does_a_name_with_cdpath(driver, tmp_path):
    expected = dry([KIT / driver], tmp_path)
    assert f"{KIT}/train.py" in expected
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "absolute").symlink_to(KIT / driver)
    (tmp_path / "bin" / "relative").symlink_to("absolute")
    assert dry([tmp_path / "bin" / "relative"], tmp_path) == expected
    assert dry(["relative"], tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}") == expected
    named = ["bash", f"{KIT.name}/{driver}"]
    assert dry(named, KIT.parent, CDPATH=f".:{tmp_path}") == expected


@pytest.mark.parametrize("driver", ["run_comparison.sh", "quick_sweep_test.sh"])
def test_modules_of_the_current_folder_and_of_another_kit_are_not_taken(driver, tmp_path):
    for name in ("csv.py", "json.py", "norms.py"):
        (tmp_path / name).write_text("raise SystemExit('a module of the current folder')\n")
    shutil.copytree(KIT / "maekit", tmp_path / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    for file in tmp_path.joinpath("maekit").rglob("*.py"):
        file.write_text("raise SystemExit('of another kit')\n")
    (tmp_path / "elsewhere").mkdir()
    expected = dry([KIT / driver], tmp_path / "elsewhere")
    assert dry([KIT / driver], tmp_path) == expected
    assert dry([KIT / driver], tmp_path, PYTHONPATH=str(tmp_path)) == expected
    clone = run(KIT / "run_comparison.sh", "--clone_mae", "--demo", "--dry_run", cwd=tmp_path, check=0)
    assert " -P -m maekit.model.upstream " in clone.stdout


def test_several_processes_are_started_by_a_torchrun_that_reads_no_module_of_the_current_folder(tmp_path):
    (tmp_path / "csv.py").write_text("raise SystemExit('a module of the current folder')\n")
    line = dry([KIT / "run_comparison.sh", "--methods", "ln", "--nproc", 2], tmp_path).split()
    started = line[: line.index("--nproc_per_node")]
    assert run(*started, "--help", cwd=tmp_path).returncode == 0


def test_what_a_python_has_to_say_of_itself_is_no_answer(tmp_path):
    """As `module load` on stdout, in a script that stands for Python."""
    talkative = tmp_path / "python with modules"
    talkative.write_text(f'#!/bin/sh\necho "Loading python/3.11"\nexec "{sys.executable}" "$@"\n')
    talkative.chmod(0o755)
    for driver in DRIVERS:
        plain, found = dry([KIT / driver], tmp_path), dry([KIT / driver], tmp_path, PYTHON=str(talkative))
        assert found.replace(f"'{talkative}'", sys.executable) == plain


def test_processes_of_another_program_are_not_the_runs(tmp_path, monkeypatch, capsys):
    stale = {**dict.fromkeys(distributed.VARIABLES, "4"), "PYTHONSAFEPATH": "1"}
    shown = f'. "{KIT}/maekit/drivers/env.sh"; env'
    env = subprocess.run(["bash", "-c", shown], env={**os.environ, **stale}, capture_output=True, text=True, check=True)
    assert not {line.partition("=")[0] for line in env.stdout.splitlines()} & set(stale)
    for name in distributed.VARIABLES:
        monkeypatch.setenv(name, "4")
    assert windows.main(["--demo", "--dry_run"]) == 0 and "train.py" in capsys.readouterr().out
    assert not set(distributed.VARIABLES) & set(os.environ)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root's right to be somebody else")
def test_where_no_environment_can_be_made_one_line_says_what_to_do(other_user):
    kit, elsewhere = other_user
    result = subprocess.run(
        ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env", "-i", "PATH=/usr/bin:/bin"]
        + [kit / "run_comparison.sh", "--demo"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        f"error: {kit}/.venv cannot be made: you may not write there. Have one who may run this first, or set PYTHON to a "
        "Python that has what requirements.txt names."
    )


@pytest.fixture
def other_user():
    """(a kit that a user without a name may read, a folder that they may write)."""
    with tempfile.TemporaryDirectory(prefix="maekit-other-") as name:
        os.chmod(name, 0o755)
        kit, elsewhere = os.path.join(name, "kit"), os.path.join(name, "elsewhere")
        shutil.copytree(KIT / "maekit", os.path.join(kit, "maekit"), ignore=shutil.ignore_patterns("__pycache__"))
        for file in (*DRIVERS, "train.py", "analysis.py", "norms.py", "requirements.txt", "requirements-frozen.txt"):
            shutil.copy(KIT / file, kit)
        os.mkdir(elsewhere, 0o777)
        os.chmod(elsewhere, 0o777)
        yield Path(kit), elsewhere
