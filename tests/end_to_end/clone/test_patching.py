"""Clones of upstream: patching and importing. Real git, on a small stand-in repository."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maekit.errors import InputError
from maekit.model import upstream
from tests.support import KIT, run
from tests.support.git import MODEL, PATCHED, apply, contents, git, write


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
            "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\nfrom maekit.model import upstream\n"
            "upstream.COMMIT, upstream.PATCH = sys.argv[3], Path(sys.argv[4])\n"
            "clone = upstream.Clone(Path(sys.argv[2]), upstream.COMMIT, False)\n"
            "print('ready', flush=True)\nsys.stdin.readline()\n"
            "assert clone.ensure_patched().patched\n"
            "assert clone.module().VERSION == 'new'\n"  # whole, whatever the others are doing
        )
        words = [sys.executable, "-c", code, KIT, mae, upstream.COMMIT, upstream.PATCH]
        for _ in range(3):
            processes = [
                subprocess.Popen(
                    [str(word) for word in words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(4)
            ]
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
        write(
            other,
            {
                "models_mae.py": "from util.misc import scale\nVERSION = 'other'\n",
                "util/misc.py": "def scale(value):\n    return -value\n",
            },
        )
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
        code = "import sys; from maekit.model import upstream; print('torch' in sys.modules, 'numpy' in sys.modules)"
        assert run(sys.executable, "-c", code, check=0).stdout == "False False\n"
