"""Clones of upstream: what state they are in, patching, cloning, importing. Real git, on a small stand-in repository.

The patch itself and the drivers' --clone_mae are tested on upstream's own repository where there is a clone of it: at
$MAE_CLONE, or in mae beside the scripts.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from maekit.errors import InputError
from maekit.model import upstream
from tests.support import KIT, run

MODEL = "from util.misc import scale\n\n\ndef build():\n    return scale(2)\n\n\nVERSION = 'old'\n"
MISC = "import math\n\n\ndef scale(value):\n    return value * math.inf\n"
FILES = {"models_mae.py": MODEL, "util/misc.py": MISC, "main_pretrain.py": "print('pretraining')\n"}
PATCHED = {
    "models_mae.py": MODEL.replace("'old'", "'new'"),
    "util/misc.py": MISC.replace("value * math.inf", "value * math.tau"),
}


def git(folder, *words, check=True):
    result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, result.stderr
    return result.stdout.strip()


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def commit(folder, message="change"):
    git(folder, "add", "--all")
    alone = ("-c", "maintenance.auto=false", "-c", "gc.auto=0")  # nothing in the background that writes to .git
    git(folder, *alone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def contents(folder):
    """Every file of a folder, .git too, and when it was last written; git touches objects that it meets again."""
    return {
        path.relative_to(folder): (path.read_bytes(), "objects" in path.parts or path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
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


def apply(mae, *options):
    git(mae, "apply", *options, upstream.PATCH)


def refused(mae, *parts):
    """find refuses the folder in one line that names it, holds the parts and a way out; nothing in it changes."""
    before = contents(mae) if mae.is_dir() else None
    with pytest.raises(InputError) as caught:
        upstream.find(str(mae))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"--mae_dir {mae}: ") and "--mae_dir builtin" in text
    for part in parts:
        assert part in text, text
    assert before is None or contents(mae) == before
    return text


class TestStates:
    def test_a_clean_clone_is_found_unpatched_and_not_touched(self, mae):
        before = contents(mae)
        clone = upstream.find(str(mae))
        assert clone == upstream.Clone(mae, upstream.COMMIT, patched=False)
        assert contents(mae) == before

    def test_one_patched_by_hand_is_patched(self, mae):
        apply(mae)
        before = contents(mae)
        clone = upstream.find(str(mae))
        assert clone.patched and contents(mae) == before
        assert clone.describe() == {
            "source": "upstream", "path": str(mae), "commit": upstream.COMMIT, "patched": True
        }  # fmt: skip

    def test_one_with_the_patch_staged_is_patched(self, mae):
        apply(mae, "--index")
        assert upstream.find(str(mae)).patched

    def test_one_with_the_patch_committed_is_patched(self, mae, capsys):
        apply(mae)
        head = commit(mae, "patched")
        assert upstream.find(str(mae)) == upstream.Clone(mae, head, patched=True)
        assert capsys.readouterr().err == ""

    def test_untracked_and_compiled_files_do_not_count(self, mae):
        write(mae, {"notes.txt": "mine", "util/__pycache__/misc.cpython-311.pyc": "", "util/new.py": "x = 1\n"})
        assert not upstream.find(str(mae)).patched

    @pytest.mark.parametrize("autocrlf", ["true", "input", "false"])
    def test_line_ends_of_windows_are_no_changes(self, repository, tmp_path, autocrlf):
        git(tmp_path, "clone", "--quiet", "--config", "core.autocrlf=true", repository, "mae")
        mae = tmp_path / "mae"
        assert b"\r\n" in (mae / "models_mae.py").read_bytes()
        git(mae, "config", "core.autocrlf", autocrlf)  # another git, such as that of WSL, reads it
        clone = upstream.find(str(mae))
        assert not clone.patched
        assert clone.ensure_patched(print).patched and upstream.find(str(mae)).patched

    def test_a_patch_with_line_ends_of_windows_is_the_same_patch(self, mae, tmp_path, monkeypatch):
        text = upstream.PATCH.read_bytes()
        (tmp_path / "windows.patch").write_bytes(text.replace(b"\n", b"\r\n"))
        monkeypatch.setattr(upstream, "PATCH", tmp_path / "windows.patch")
        assert upstream.find(str(mae)).ensure_patched().patched
        assert b"\r" not in (mae / "models_mae.py").read_bytes()

    def test_executable_bits_and_filters_of_the_users_git_are_no_changes(self, mae, tmp_path, monkeypatch):
        for path in mae.glob("*.py"):
            path.chmod(0o755)
        (tmp_path / "attributes").write_text("*.py filter=shout\n")
        for i, (key, value) in enumerate(
            {"core.attributesFile": tmp_path / "attributes", "filter.shout.clean": "tr a-z A-Z"}.items()
        ):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{i}", key)
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{i}", str(value))
        monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
        assert not upstream.find(str(mae)).patched

    def test_half_patched_names_a_file_of_each_kind(self, mae, monkeypatch):
        monkeypatch.setattr(upstream, "PATIENCE", 0.2)
        write(mae, {"util/misc.py": PATCHED["util/misc.py"]})
        refused(mae, "half patched", "in util/misc.py, not in models_mae.py", f"git -C {mae} checkout HEAD .")

    def test_half_patched_is_waited_for_while_another_process_finishes(self, mae):
        write(mae, {"util/misc.py": PATCHED["util/misc.py"]})
        (mae / "models_mae.py").unlink()  # so does `git apply`, before it writes
        (mae / "models_mae.py").touch()
        finish = threading.Timer(0.7, write, (mae, PATCHED))
        started = time.monotonic()
        finish.start()
        assert upstream.find(str(mae)).patched
        assert 0.7 <= time.monotonic() - started
        finish.join()

    def test_local_edits_are_named_at_once(self, mae, monkeypatch):
        monkeypatch.setattr(upstream, "PATIENCE", 60)
        write(mae, {"main_pretrain.py": "print('mine')\n"})
        started = time.monotonic()
        refused(mae, "changes", "in main_pretrain.py.", f"git -C {mae} stash")
        assert time.monotonic() - started < upstream.PATIENCE

    def test_local_edits_on_top_of_the_patch_too(self, mae, monkeypatch):
        monkeypatch.setattr(upstream, "PATIENCE", 0.2)
        apply(mae)
        write(mae, {"models_mae.py": PATCHED["models_mae.py"] + "# mine\n"})
        (mae / "main_pretrain.py").unlink()
        refused(mae, "main_pretrain.py, models_mae.py")
        git(mae, "checkout", "--quiet", "main_pretrain.py")
        refused(mae, "in models_mae.py.")

    def test_another_commit_that_the_patch_fits_is_a_warning(self, mae, capsys):
        write(mae, {"main_pretrain.py": "print('newer')\n"})
        head = commit(mae)
        clone = upstream.find(str(mae))
        assert clone == upstream.Clone(mae, head, patched=False)
        error = capsys.readouterr().err
        assert error.startswith("warning: ") and len(error.splitlines()) == 1
        assert head[:7] in error and upstream.COMMIT[:7] in error
        assert clone.ensure_patched().patched
        commit(mae)
        assert upstream.find(str(mae)).patched and "warning: " in capsys.readouterr().err

    def test_another_commit_that_the_patch_does_not_fit_is_refused(self, mae):
        write(mae, {"models_mae.py": "VERSION = 'newest'\n"})
        head = commit(mae)
        refused(mae, f"is at commit {head[:7]}", f"git -C {mae} checkout {upstream.COMMIT}")

    def test_a_damaged_or_missing_patch_is_named(self, mae, tmp_path, monkeypatch):
        for text, says in (("diff --git a/x b/x\n", "is damaged"), (None, "is missing")):
            monkeypatch.setattr(upstream, "PATCH", tmp_path / "patch")
            (tmp_path / "patch").write_text(text) if text else (tmp_path / "patch").unlink()
            with pytest.raises(InputError, match=says) as caught:
                upstream.find(str(mae))
            assert str(tmp_path / "patch") in str(caught.value)


class TestFoldersThatAreNoClone:
    def test_there_is_no_such_folder(self, repository, tmp_path):
        refused(tmp_path / "nowhere", "no such folder")
        (tmp_path / "file").touch()
        refused(tmp_path / "file", "is a file")

    def test_there_is_no_models_mae_in_it(self, mae):
        (mae / "models_mae.py").unlink()
        refused(mae, "no models_mae.py")

    def test_an_unpacked_archive(self, mae):
        shutil.rmtree(mae / ".git")
        refused(mae, "is not a git clone", f"git clone {upstream.URL}")

    @pytest.mark.parametrize("dot_git", [None, "empty"])
    def test_files_inside_another_repository_are_not_that_repositorys(self, mae, tmp_path, dot_git):
        shutil.rmtree(mae / ".git")
        git(tmp_path, "init", "--quiet")
        commit(tmp_path)
        if dot_git:
            (mae / ".git").mkdir()
        assert git(mae, "rev-parse", "--show-toplevel") == str(tmp_path.resolve())
        refused(mae, "git can read" if dot_git else "is not a git clone")

    def test_no_commit(self, mae):
        git(mae, "update-ref", "-d", "HEAD")
        refused(mae, "has no commit")

    def test_no_git(self, mae, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        refused(mae, "git", "is not installed")

    def test_git_that_does_not_trust_the_folder(self, mae, monkeypatch):
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for this
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        monkeypatch.delenv("GIT_CONFIG_COUNT", raising=False)
        refused(mae, "belongs to another user", f"git config --global --add safe.directory {mae}")

    def test_an_empty_name(self):
        with pytest.raises(InputError, match="--mae_dir: is empty"):
            upstream.find("")


class TestWhereItIsLookedFor:
    def test_beside_the_scripts_then_on_pythonpath_then_nowhere(self, mae, tmp_path, monkeypatch, repository):
        kit = tmp_path / "kit"
        kit.mkdir()
        assert upstream.find(None, kit) is None
        monkeypatch.setattr(sys, "path", [str(tmp_path), str(mae), *sys.path])
        assert upstream.find(None, kit).path == mae
        git(kit, "clone", "--quiet", repository, "mae")
        assert upstream.find(None, kit).path == kit / "mae"
        assert upstream.find("builtin", kit) is None

    def test_pythonpath_as_upstreams_users_set_it(self, mae, tmp_path):
        """export PYTHONPATH=$PYTHONPATH:$(pwd)/mae"""
        code = (
            "import sys; sys.path.append(sys.argv[1]); from maekit import upstream; upstream.COMMIT = sys.argv[3]\n"
            "upstream.PATCH = upstream.Path(sys.argv[4]); print(upstream.find(None, sys.argv[2]).path)"
        )
        words = (KIT, tmp_path / "kit", upstream.COMMIT, upstream.PATCH)
        env = {"PYTHONPATH": f":{mae}"}
        assert run(sys.executable, "-c", code, *words, cwd=tmp_path, env=env, check=0).stdout == f"{mae}\n"

    def test_a_bad_folder_says_how_it_was_found(self, tmp_path, monkeypatch):
        (tmp_path / "mae").mkdir()
        with pytest.raises(InputError, match=r"mae \(found beside the scripts\): no models_mae.py"):
            upstream.find(None, tmp_path)
        write(tmp_path / "other", FILES)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "other")])
        with pytest.raises(InputError, match=r"other \(found on PYTHONPATH\): is not a git clone"):
            upstream.find(None, tmp_path / "kit")

    def test_a_folder_named_relatively_or_with_a_space(self, mae, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert upstream.find("mae") == upstream.find(str(mae))
        spaced = mae.rename(tmp_path / "my mae")
        write(spaced, {"main_pretrain.py": ""})
        refused(spaced, f'git -C "{spaced}" stash')

    def test_a_clone_inside_another_repository(self, mae, tmp_path):
        git(tmp_path, "init", "--quiet")
        assert not upstream.find(str(mae)).patched
        assert upstream.find(str(mae)).ensure_patched().patched

    def test_a_git_process_around_it_does_not_lead_elsewhere(self, mae, tmp_path, monkeypatch):
        """As in a git hook, or under `git rebase --exec`."""
        git(tmp_path, "init", "--quiet", "other")
        for name, value in {"DIR": ".git", "INDEX_FILE": ".git/index", "WORK_TREE": "."}.items():
            monkeypatch.setenv(f"GIT_{name}", str(tmp_path / "other" / value))
        assert upstream.find(str(mae)).commit == upstream.COMMIT


class TestPatching:
    def test_it_is_said_once_and_equals_git_apply(self, mae, repository, tmp_path):
        said = []
        clone = upstream.find(str(mae)).ensure_patched(said.append)
        assert said == [f"mae: patched with compatibility-fix.patch, git -C {mae} checkout . undoes it"]
        assert clone == upstream.find(str(mae)) and clone.patched
        assert clone.ensure_patched(said.append) is clone and len(said) == 1
        git(tmp_path, "clone", "--quiet", repository, "by_hand")
        apply(tmp_path / "by_hand")
        assert git(mae, "diff") == git(tmp_path / "by_hand", "diff") != ""
        assert git(mae, "status", "--short") == git(tmp_path / "by_hand", "status", "--short")
        git(mae, "checkout", ".")
        assert not upstream.find(str(mae)).patched

    def test_four_processes_at_once_all_find_it_patched(self, mae):
        code = (
            "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom maekit import upstream\n"
            "upstream.COMMIT, upstream.PATCH = sys.argv[3], Path(sys.argv[4])\n"
            "clone = upstream.Clone(Path(sys.argv[2]), upstream.COMMIT, False)\n"
            "print('ready', flush=True)\nsys.stdin.readline()\n"
            "assert clone.ensure_patched().patched\n"
            "assert clone.module().VERSION == 'new'\n"  # whole, whatever the others are doing
        )
        words = [sys.executable, "-c", code, KIT, mae, upstream.COMMIT, upstream.PATCH]
        for _ in range(3):
            processes = [
                subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for _ in range(4)
            ]  # fmt: skip
            for process in processes:
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
            outputs = [process.communicate(timeout=60) for process in processes]
            assert [process.returncode for process in processes] == [0] * 4, outputs
            assert any("patched with" in out for out, _ in outputs)
            assert upstream.find(str(mae)).patched
            assert git(mae, "diff", "--name-only").split() == sorted(PATCHED)
            git(mae, "checkout", ".")

    def test_a_reader_finds_every_file_whole_all_the_time(self, mae, monkeypatch):
        real, done, seen = upstream.atomic_write, threading.Event(), set()

        def slow(path):
            time.sleep(0.05)
            return real(path)

        def read():
            while not done.is_set():
                try:
                    seen.add((mae / "models_mae.py").read_text())
                except OSError as error:
                    seen.add(str(error))

        monkeypatch.setattr(upstream, "atomic_write", slow)
        reader = threading.Thread(target=read)
        reader.start()
        upstream.find(str(mae)).ensure_patched()
        done.set()
        reader.join()
        assert seen == {MODEL, PATCHED["models_mae.py"]}

    def test_one_that_another_process_patched_meanwhile_is_left_as_it_is(self, mae):
        clone, said = upstream.find(str(mae)), []
        apply(mae)
        before = contents(mae)
        assert clone.ensure_patched(said.append).patched
        assert said == [] and contents(mae) == before

    def test_one_that_was_edited_meanwhile_is_refused(self, mae):
        clone = upstream.find(str(mae))
        write(mae, {"main_pretrain.py": "print('mine')\n"})
        with pytest.raises(InputError, match="main_pretrain.py"):
            clone.ensure_patched()
        assert (mae / "models_mae.py").read_text() == MODEL

    def test_a_file_that_another_process_holds_is_tried_again(self, mae, monkeypatch):
        """Windows refuses to replace a file while another process has it open."""
        real, failures = upstream.atomic_write, [PermissionError(13, "Permission denied")] * 3

        def held(path):
            if failures:
                raise failures.pop()
            return real(path)

        monkeypatch.setattr(upstream, "atomic_write", held)
        assert upstream.find(str(mae)).ensure_patched().patched and failures == []

    def test_files_that_cannot_be_written_are_named(self, mae, monkeypatch):
        def denied(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(upstream, "PATIENCE", 0.2)
        monkeypatch.setattr(upstream, "atomic_write", denied)
        with pytest.raises(InputError, match=r"models_mae.py cannot be written \(Permission denied\)"):
            upstream.find(str(mae)).ensure_patched()


class TestModule:
    def test_the_clones_model_is_imported_whatever_was_imported_before(self, mae, tmp_path):
        other = tmp_path / "other"
        write(other, {"models_mae.py": "from util.misc import scale\nVERSION = 'other'\n",
                      "util/misc.py": "def scale(value):\n    return -value\n"})  # fmt: skip
        assert upstream.Clone(other, "", patched=True).module().VERSION == "other"
        clone = upstream.find(str(mae)).ensure_patched()
        module = clone.module()
        assert Path(module.__file__).parent == mae and module.VERSION == "new"
        assert module.build() == pytest.approx(4 * 3.14159265)  # its own util.misc: 2 tau, not -2
        assert sys.path[0] == str(mae) and sys.path.count(str(mae)) == 1
        assert clone.module() is module

    def test_a_model_that_cannot_be_imported_names_the_clone(self, mae):
        write(mae, {"models_mae.py": "import no_such_package\n"})
        with pytest.raises(InputError, match="No module named 'no_such_package'") as caught:
            upstream.Clone(mae, "", patched=False).module()
        assert f"--mae_dir {mae}" in str(caught.value) and "--mae_dir builtin" in str(caught.value)

    def test_finding_a_clone_needs_no_torch(self):
        code = "import sys; from maekit import upstream; print('torch' in sys.modules, 'numpy' in sys.modules)"
        assert run(sys.executable, "-c", code, check=0).stdout == "False False\n"


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
            [sys.executable, "-m", "maekit.model.upstream", target], cwd=KIT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        ) as process:  # fmt: skip
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


@pytest.fixture(scope="module")
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
        result = run("bash", kit / driver, "--clone_mae", "--norms", "batchnorm", cwd=tmp_path, check=2,
                     env=instead_of_the_network(real))  # fmt: skip
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
        assert lines[0] == ["env", f"PYTHONPATH={kit}", sys.executable, "-m", "maekit.model.upstream", str(kit / "mae")]
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
        result = run("bash", kit / driver, "--clone_mae", "--demo", "--norms", "batchnorm", cwd=tmp_path, check=2,
                     env=instead_of_the_network(tmp_path / "nowhere"))  # fmt: skip
        assert "git clone failed (fatal: " in result.stderr and len(result.stderr.splitlines()) == 1
        assert not [name for name in os.listdir(kit) if "mae" in name and name != "maekit"]

    def test_the_banner_tells_it(self, driver):
        assert "--clone_mae" in run("bash", KIT / driver, "--help", check=0).stdout
