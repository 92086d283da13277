"""Clones of upstream: what state they are in, where they are looked for. Real git, on a small stand-in repository."""

import os
import shutil
import sys
import threading
import time

import pytest

from maekit.errors import InputError
from maekit.model import upstream
from tests.support import KIT, run
from tests.support.git import FILES, PATCHED, apply, commit, contents, git, write


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
        assert clone.describe() == {"source": "upstream", "path": str(mae), "commit": upstream.COMMIT, "patched": True}

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
            "import sys; sys.path.append(sys.argv[1]); from maekit.model import upstream; upstream.COMMIT = sys.argv[3]\n"
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
