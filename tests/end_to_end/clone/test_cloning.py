"""Clones of upstream: cloning, by hand and by the drivers. Real git, on a small stand-in repository."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from maekit.errors import InputError
from maekit.model import upstream
from tests.support import KIT, forkserver, run
from tests.support.git import commit, contents, git, write


class TestCloning:
    def test_it_appears_patched_at_the_commit_the_patch_is_for(self, repository, tmp_path):
        write(tmp_path / "newer", {})
        git(tmp_path, "clone", "--quiet", repository, "newer")
        write(tmp_path / "newer", {"models_mae.py": "VERSION = 'newest'\n"})
        commit(tmp_path / "newer")
        upstream.URL = str(tmp_path / "newer")  # set back by the fixture
        said = []
        made = upstream.clone(tmp_path / "mae", said.append)
        assert made == upstream.Clone(tmp_path / "mae", upstream.COMMIT, patched=True)
        assert said[0] == f"cloning {upstream.URL} into {tmp_path / 'mae'}"
        assert "is there now, patched" in said[1] and len(said) == 2
        assert sorted(os.listdir(tmp_path)) == ["mae", "newer"]

    def test_one_that_is_there_is_checked_and_said(self, mae, tmp_path):
        before, said = contents(mae), []
        assert upstream.clone(mae, said.append) == upstream.find(str(mae))
        assert "is there already, not yet patched" in said[0] and len(said) == 1
        assert contents(mae) == before
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="empty: no models_mae.py"):
            upstream.clone(tmp_path / "empty")

    @pytest.mark.parametrize("fails", ["network", "commit", "patch", "git", "folder"])
    def test_failing_is_one_line_and_leaves_nothing(self, repository, tmp_path, monkeypatch, fails):
        target, says = tmp_path / "mae", None
        if fails == "network":
            monkeypatch.setattr(upstream, "URL", "https://localhost:1/mae")
            says = "git clone failed (fatal: unable to access 'https://localhost:1/mae"
        elif fails == "commit":
            monkeypatch.setattr(upstream, "COMMIT", "0" * 39 + "1")
            says = "git checkout failed (fatal: "
        elif fails == "patch":
            monkeypatch.setattr(upstream, "PATCH", KIT / "LICENSE")
            says = "does not apply"
        elif fails == "git":
            monkeypatch.setenv("PATH", str(tmp_path))
            says = "is not installed"
        else:
            target, says = tmp_path / "no" / "mae", f"there is no folder {tmp_path / 'no'}"
        with pytest.raises(InputError) as caught:
            upstream.clone(target)
        assert says in str(caught.value) and "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == []

    @pytest.mark.skipif(os.name == "nt", reason="signals as a shell sends them")
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_it_leaves_nothing(self, tmp_path, how):
        (tmp_path / "bin").mkdir()
        slow = tmp_path / "bin" / "git"  # clones half, then hangs as on a bad network
        slow.write_text("#!/bin/sh\nmkdir -p mae/.git && touch mae/.git/HEAD ../begun && exec sleep 60\n")
        slow.chmod(0o755)
        target = tmp_path / "home" / "mae"
        target.parent.mkdir()
        with subprocess.Popen(
            [sys.executable, "-m", "maekit.model.upstream", target],
            cwd=KIT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        ) as process:
            while not (target.parent / "begun").exists():
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(how)
            error = process.communicate(timeout=20)[1]
        assert process.returncode == 130 and error == "interrupted; nothing was left behind.\n"
        assert os.listdir(target.parent) == ["begun"]

    def test_two_at_once_make_one(self, repository, tmp_path):
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(upstream.clone(tmp_path / "mae", lambda line: None)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [upstream.Clone(tmp_path / "mae", upstream.COMMIT, patched=True)] * 2
        assert os.listdir(tmp_path) == ["mae"]


class TestUpstreamsOwnRepository:
    def test_the_kits_patch_applies_and_is_recognised(self, real, tmp_path):
        git(tmp_path, "clone", "--quiet", real, "mae")
        git(tmp_path / "mae", "checkout", "--quiet", upstream.COMMIT)
        clone = upstream.find(str(tmp_path / "mae"))
        assert not clone.patched and clone.ensure_patched().patched
        git(tmp_path / "mae", "apply", "--reverse", upstream.PATCH)
        assert upstream.find(str(tmp_path / "mae")) == clone

    @pytest.mark.parametrize("driver", ["run_comparison.sh", "run_alpha_sweep.sh"])
    def test_clone_mae_comes_before_anything_else(self, real, tmp_path, driver):
        kit = copy_of_the_kit(tmp_path)
        result = run(
            "bash",
            kit / driver,
            "--clone_mae",
            "--norms",
            "batchnorm",
            cwd=tmp_path,
            check=2,
            env=instead_of_the_network(real),
        )
        assert result.stdout.startswith(f"cloning {upstream.URL} into {kit}/mae\n")
        assert "batchnorm: unknown" in result.stderr and len(result.stderr.splitlines()) == 1
        clone = upstream.find(None, kit)
        assert clone == upstream.Clone(kit / "mae", upstream.COMMIT, patched=True)


def copy_of_the_kit(tmp_path):
    kit = tmp_path / "a kit"
    shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("run_comparison.sh", "run_alpha_sweep.sh", "requirements.txt", "train.py", upstream.PATCH.name):
        shutil.copy(KIT / file, kit / file)
    return kit


def instead_of_the_network(place):
    """Environment in which git looks for upstream's address in a folder."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{place}.insteadOf",
        "GIT_CONFIG_VALUE_0": upstream.URL,
    }


@pytest.mark.parametrize("driver", ["run_comparison.sh", "run_alpha_sweep.sh"])
class TestDrivers:
    def test_a_dry_run_prints_the_command_and_clones_nothing(self, driver, tmp_path):
        kit = copy_of_the_kit(tmp_path)
        out = run("bash", kit / driver, "--dry_run", "--clone_mae", "--demo", check=0).stdout
        lines = [shlex.split(line) for line in out.splitlines()]
        assert lines[0] == [
            "env",
            f"PYTHONPATH={kit}",
            forkserver.python(),
            "-P",
            "-m",
            "maekit.model.upstream",
            str(kit / "mae"),
        ]
        assert len(lines) >= 4 and all(str(kit / "train.py") in line for line in lines[1:])
        assert not any("--clone_mae" in line for line in lines)
        assert not (kit / "mae").exists()

    def test_it_is_never_done_unasked(self, driver, tmp_path):
        kit = copy_of_the_kit(tmp_path)
        plain = run("bash", kit / driver, "--dry_run", "--demo", check=0).stdout
        assert "maekit.model.upstream" not in plain
        asked = run("bash", kit / driver, "--dry_run", "--demo", "--clone_mae", check=0).stdout
        assert asked.splitlines()[1:] == plain.splitlines()

    def test_a_clone_that_fails_ends_the_driver_before_anything_else(self, driver, tmp_path):
        kit = copy_of_the_kit(tmp_path)
        result = run(
            "bash",
            kit / driver,
            "--clone_mae",
            "--demo",
            "--norms",
            "batchnorm",
            cwd=tmp_path,
            check=2,
            env=instead_of_the_network(tmp_path / "nowhere"),
        )
        assert "git clone failed (fatal: " in result.stderr and len(result.stderr.splitlines()) == 1
        assert not [name for name in os.listdir(kit) if "mae" in name and name != "maekit"]

    def test_the_banner_tells_it(self, driver):
        assert "--clone_mae" in run("bash", KIT / driver, "--help", check=0).stdout
