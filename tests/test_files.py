"""Files that are written whole or not at all, and what they hold of numbers."""

import errno
import json
import os

import pytest

from maekit import files


def test_a_file_is_whole_or_the_one_before_it(tmp_path):
    path = tmp_path / "file"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_write(path) as f:
        f.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(paths[1]), replace(*paths)))
    with files.atomic_write(tmp_path / "file", previous=tmp_path / "before") as f:
        f.write(b"first")
    with files.atomic_write(tmp_path / "file", previous=tmp_path / "before") as f:
        f.write(b"second")
    assert done == [5, tmp_path / "file", 6, tmp_path / "before", tmp_path / "file"]
    assert ((tmp_path / "before").read_bytes(), (tmp_path / "file").read_bytes()) == (b"first", b"second")


@pytest.mark.slow
def test_two_processes_that_write_one_file_at_once_each_write_all_of_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with files.atomic_write(path) as ours:
        ours.write(b"ours")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with files.atomic_write(path) as theirs:
                theirs.write(b"theirs")
        assert path.read_bytes() == b"theirs"
    assert path.read_bytes() == b"ours" and os.listdir(tmp_path) == ["file"]


def test_drafts_of_a_file_are_told_from_those_of_others_whatever_it_is_called(tmp_path):
    own, other = (tmp_path / f".{name}.12.tmp" for name in ("run[1]*.json", "run1.json"))
    for draft in (own, other):
        draft.touch()
    files.remove_drafts([tmp_path / "run[1]*.json"])
    assert not own.exists() and other.exists()


def test_numbers_survive_the_log_to_the_last_digit(tmp_path):
    rows = [{"epoch": 3, "train_loss": 0.1 + 0.2, "val_mse": 1e-300, "peak_memory_mb": None}]
    files.write_csv(tmp_path / "log.csv", ("epoch", "train_loss", "val_mse", "peak_memory_mb"), rows)
    assert files.read_csv(tmp_path / "log.csv") == rows


def test_json_never_holds_a_nan(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5]}


def test_only_errors_of_storage_become_one_line():
    from maekit.errors import exit_code

    def fails(number):
        def main():
            raise OSError(number, os.strerror(number), "somewhere")

        return main

    assert exit_code(fails(errno.ENOSPC)) == 2
    with pytest.raises(OSError):
        exit_code(fails(errno.ECONNRESET))
