"""The cache of decoded images is whole or not there, and never in the way."""

import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from maekit import files
from maekit.data import cache, decoding, sources
from maekit.errors import InputError
from maekit.settings.typed import DataSettings
from tests.support import KIT, run, train_here
from tests.support.batches import collect, equal, open_folder, training
from tests.support.caching import cached, cut, small_source
from tests.support.runs import losses, weights

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")


def flip(file):
    with open(file, "r+b") as f:
        f.seek(file.stat().st_size // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))
    os.utime(file, ns=(5, 5))  # a file system may count time in steps longer than this test


@pytest.mark.parametrize("damage", [cut, flip], ids=["cut", "one bit"])
def test_damaged_pixels_are_noticed_said_and_decoded_anew(tmp_path, damage, monkeypatch):
    source, folder, said = open_folder(None, max_images=300), tmp_path, []
    path = cached(source, folder).train.store.path
    whole = path.read_bytes()
    damage(path)
    decoded, read = [], decoding.read
    monkeypatch.setattr(decoding, "read", lambda images, index: decoded.append(index) or read(images, index))
    stored = cached(source, folder, said)
    assert 44 <= len(decoded) <= 64, "the damaged part, no other"
    assert "is damaged (1 of 5 parts)" in said[0] and "4 of 5 parts are there" in said[1] and len(said) == 2
    assert path.read_bytes() == whole and equal(*(collect(training(s.train)[0]) for s in (source, stored)))
    cached(source, folder, said)
    assert len(said) == 2


@pytest.mark.parametrize("damage", [cut, lambda file: file.write_bytes(b"")], ids=["cut", "empty"])
def test_a_damaged_index_is_noticed_said_and_made_anew(tmp_path, damage):
    source, said = open_folder(None, max_images=70), []
    index = cached(source, tmp_path).train.store.path.with_suffix(".npz")
    damage(index) if index.stat().st_size > 1000 else index.write_bytes(index.read_bytes()[:-100])
    stored = cached(source, tmp_path, said)
    assert "is damaged" in said[0] and "decoding 70 images" in said[1] and len(said) == 2
    assert equal(*(collect(training(s.train)[0]) for s in (source, stored)))


def test_a_copied_cache_is_compared_with_its_checksums_and_used(tmp_path):
    source, said = open_folder(None, max_images=70), []
    cached(source, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert equal(*(collect(training(cached(source, tmp_path / x, said).train)[0]) for x in "ab"))
    assert said == []


# Where there is none


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    source, said = small_source(tmp_path / "images"), []
    for folder in (tmp_path / "file" / "below", Path("/proc/maekit")):
        with pytest.raises(InputError, match=re.escape(f"--cache {folder}: ")) as raised:
            cached(source, folder)
        assert "\n" not in str(raised.value) and "--cache off" in str(raised.value)
        monkeypatch.setenv("MAEKIT_CACHE", str(folder))
        assert cache.cached(source, "auto", 224, said.append) is source
        assert str(folder) in said[-1] and "anew" in said[-1]
    assert len(said) == 2
    result = train_here(*QUICK, "--cache", tmp_path / "file", "--output_dir", tmp_path / "run", check=2)
    assert f"--cache {tmp_path / 'file'}: is a file" in result.stderr and result.stderr.count("\n") == 1
    result = train_here(*QUICK, "--cache", tmp_path / "file" / "x", "--output_dir", tmp_path / "run", check=2)
    assert "--cache" in result.stderr and result.stderr.count("\n") == 1


def test_a_disk_that_fills_up_is_as_one_that_cannot_be_written(tmp_path, monkeypatch):
    source, said = small_source(tmp_path / "images"), []
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    opened = open

    def open_full(file, mode="r", *args, **options):
        return opened(full if mode == "r+b" else file, mode, *args, **options)

    monkeypatch.setattr(cache, "open", open_full, raising=False)
    with pytest.raises(InputError, match="No space left"):
        cached(source, tmp_path / "cache")
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))
    assert cache.cached(source, "auto", 224, said.append) is source
    assert "No space left" in said[-1]


def test_it_is_made_where_it_fits_the_disk(tmp_path, monkeypatch):
    source, said = small_source(tmp_path / "images", side=100), []  # 12 + 6 images of 100 x 106 pixels
    needed = 18 * 100 * 106 * 3
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))
    free = namedtuple("free", "total used free")
    for share, fits in ((0.9, False), (1.2, "named"), (1.3, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=int(needed * share): free(n, 0, n))
        if fits is False:
            with pytest.raises(InputError, match=r"decoded images take 0\.6 MB, 0\.5 MB are free"):
                cached(source, tmp_path / "named")
        if fits == "named":
            assert cached(source, tmp_path / "named") is not source
        assert (cache.cached(source, "auto", 224, said.append) is not source) == (fits is True)
    assert sum("0.6 MB" in line and "none" in line for line in said) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free(0, 0, 0))
    assert cache.cached(source, "auto", 224, said.append) is not source, "what is there takes no room"


@pytest.mark.slow
def test_millions_of_images_have_one_only_where_it_is_asked_for(tmp_path, monkeypatch):
    source, said = small_source(tmp_path / "images"), []
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MOST_IMAGES", 17)
    assert cache.cached(source, "auto", 224, said.append) is source
    assert "18 images" in said[0] and "--cache DIR" in said[0] and not (tmp_path / "cache").exists()
    assert cached(source, tmp_path / "cache") is not source
    monkeypatch.setattr(cache, "MOST_IMAGES", 18)
    assert cache.cached(source, "auto", 224, said.append) is not source


def test_auto_is_below_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("MAEKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.home("auto") == Path("/x/maekit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.home("auto") == Path.home() / ".cache" / "maekit"
    assert cache.home("~/images") == Path.home() / "images"


# Through train.py


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    """{setting: folder} of the same run with a cache and without."""
    root = tmp_path_factory.mktemp("runs")
    for name, setting in (("with", root / "cache"), ("without", "off")):
        train_here(*QUICK, "--probes", "all", "--cache", setting, "--output_dir", root / name, check=0)
    assert len(list((root / "cache").glob("*.pixels"))) == 2
    return root


@pytest.mark.slow
def test_a_run_with_the_cache_is_the_run_without_it(runs_of):
    assert losses(runs_of / "with") == losses(runs_of / "without")
    a, b = weights(runs_of / "with"), weights(runs_of / "without")
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (np.load(runs_of / name / "reconstructions.npz") for name in ("with", "without"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("with", "off"), ("without", "auto")])
def test_it_goes_on_without_the_cache_where_that_makes_no_difference(runs_of, tmp_path, first, then):
    shutil.copytree(runs_of / first, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoint.previous.pth").replace(tmp_path / "run" / "checkpoint.pth")
    flags = (*QUICK, "--probes", "all", "--cache", then, "--output_dir", tmp_path / "run")
    assert "goes on with epoch 1" in train_here(*flags, check=0).stdout
    assert losses(tmp_path / "run") == losses(runs_of / "without")
    a, b = weights(tmp_path / "run"), weights(runs_of / "without")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_it_does_not_go_on_with_other_pixels(photographs, tmp_path):
    flags = (
        "--imagenet_dir",
        photographs,
        "--model",
        "mae_vit_demo_patch8",
        "--input_size",
        64,
        "--epochs",
        2,
        "--batch_size",
        10,
        "--num_workers",
        0,
    )
    train_here(*flags, "--cache", tmp_path / "cache", "--output_dir", tmp_path / "run", check=0)
    (tmp_path / "run" / "summary.json").unlink()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["pixels"] == "reduced to 320"
    result = train_here(*flags, "--cache", "off", "--output_dir", tmp_path / "run", check=2)
    assert "images reduced to 320 so far" in result.stderr and "--cache auto" in result.stderr
    assert result.stderr.count("\n") == 1
    train_here(*flags, "--cache", "off", "--output_dir", tmp_path / "fresh", check=0)
    assert losses(tmp_path / "fresh") != losses(tmp_path / "run")
    (tmp_path / "fresh" / "summary.json").unlink()
    result = train_here(*flags, "--cache", tmp_path / "cache", "--output_dir", tmp_path / "fresh", check=2)
    assert "--cache off to go on" in result.stderr and result.stderr.count("\n") == 1
    before = files.read_json(tmp_path / "fresh" / "config.json")
    del before["identity"]["pixels"]  # of a kit that had no cache
    files.write_json(tmp_path / "fresh" / "config.json", before)
    train_here(*flags, "--cache", tmp_path / "cache", "--output_dir", tmp_path / "fresh", check=2)
    train_here(*flags, "--cache", "off", "--output_dir", tmp_path / "fresh", check=0)


@pytest.mark.slow
def test_every_run_of_a_driver_gets_the_flag_and_its_evaluations_too():
    for driver, more in (("run_comparison.sh", ("--eval", "knn")), ("quick_sweep_test.sh", ())):
        result = run("bash", KIT / driver, "--demo", "--dry_run", "--cache", "/x/y", *more, check=0)
        lines = [line for line in result.stdout.splitlines() if "train.py" in line]
        assert len(lines) >= 3 and all("--cache /x/y" in line for line in lines)


def test_data_sets_of_the_hub_have_one_by_their_contents(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = open_folder(None, max_images=40).train
    column = [{"bytes": Path(images.file(i)).read_bytes(), "path": None} for i in range(40)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})

    def open_rows(rows, name):
        table = {"image": [column[i] for i in rows], "label": [i % 2 for i in rows]}
        split = datasets.Dataset.from_dict(table, features=features)
        datasets.DatasetDict(train=split, validation=split).save_to_disk(tmp_path / name)
        return sources.open_source(DataSettings(None, None, 0, str(tmp_path / name)), 0)

    source, said = open_rows(range(40), "rows"), []
    stored = cached(source, tmp_path / "cache", said)
    assert equal(*(collect(training(s.train, with_labels=True)[0]) for s in (source, stored)))
    assert len(said) == 2
    cached(sources.open_source(DataSettings(None, None, 0, str(tmp_path / "rows")), 0), tmp_path / "cache", said)
    assert len(said) == 2
    shutil.rmtree(tmp_path / "rows")
    cached(open_rows(range(39, -1, -1), "rows"), tmp_path / "cache", said)
    assert len(said) == 4
