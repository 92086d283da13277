"""The cache of decoded images: the same batches, made once, whole or not there, and never in the way."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maekit import files
from maekit.data import cache, crops, decoding, demo, sources
from maekit.data.datasets import AugmentedImages, TrainImages, ValImages
from maekit.errors import InputError
from maekit.settings.typed import DataSettings
from tests.support import KIT, run, train_here
from tests.support.batches import collect, equal, open_folder, training, validation, write_folders
from tests.support.runs import losses, weights

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")


def cached(source, folder, said=None, side=224):
    """The source with a cache in `folder`; what is said goes to the list `said`."""
    return cache.cached(source, str(folder), side, ([] if said is None else said).append)


def file_of(folder, ending):
    (file,) = folder.glob(f"*.{ending}")
    return file


def small_source(folder, **images):
    return open_folder(write_folders(folder, **images))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 500 x 375 JPEGs, ImageNet's usual size: each of the ten photographs twice, upright every third time."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(20):
        photo = Image.open(demo.photograph(demo.PHOTOGRAPHS[i % 10])).convert("RGB")
        size = (375, 500) if i % 3 == 0 else (500, 375)
        for split in ("train", "val"):
            file = root / split / f"class{i % 2}" / f"{i:02d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo.resize(size, Image.LANCZOS).save(file, quality=90 + i // 10)
    return root


def many_links(photographs, root, n):
    """A folder of n files, each one of the photographs."""
    kinds = sorted((photographs / "train").rglob("*.JPEG"))
    for i in range(n):
        file = root / ("train" if i else "val") / "class0" / f"{i:04d}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(kinds[i % len(kinds)], file)
    return root


# The same batches


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_stored_as_they_are_give_the_same_batches_to_the_bit(tmp_path, workers):
    fresh = open_folder(None, max_images=96)
    stored = cached(fresh, tmp_path)
    assert stored.train.store.is_whole() and cache.pixels(stored) == "whole"
    a, b = (collect(training(s.train, with_labels=True, workers=workers)[0], epoch=3) for s in (fresh, stored))
    assert equal(a, b)
    a, b = (collect(validation(s.val, with_labels=True, workers=workers)[0]) for s in (fresh, stored))
    assert equal(a, b)


def test_so_they_do_where_torch_resizes(tmp_path):
    fresh = small_source(tmp_path / "images", side=250)
    stored = cached(fresh, tmp_path / "cache")
    for i in range(len(fresh.train)):
        a, b = (TrainImages(s.train, 224, 196, seed=1)[2, i]["images"] for s in (fresh, stored))
        assert torch.equal(a, b)
        a, b = (ValImages(s.train, 224, 196)[i]["images"] for s in (fresh, stored))
        assert torch.equal(a, b)


def test_crops_of_reduced_images_are_those_of_the_same_boxes(photographs, tmp_path):
    fresh = open_folder(photographs)
    stored = cached(fresh, tmp_path)
    assert cache.pixels(stored) == "reduced to 320"
    assert sorted({tuple(size) for size in stored.train.store.stored.tolist()}) == [(320, 427), (427, 320)]
    differences = {"crop": [], "middle": [], "other crop": []}
    for i in range(len(fresh.train)):
        for epoch in range(4):
            a, b = (TrainImages(s.train, 224, 196, seed=0)[epoch, i] for s in (fresh, stored))
            np.testing.assert_array_equal(a["noise"], b["noise"])  # the same box and flip came before it
            differences["crop"].append(levels(a["images"], b["images"]))
            c = TrainImages(fresh.train, 224, 196, seed=0)[epoch + 4, i]
            differences["other crop"].append(levels(a["images"], c["images"]))
        a, b = (ValImages(s.val, 224, 196)[i]["images"] for s in (fresh, stored))
        differences["middle"].append(levels(a, b))
    differences = {name: np.mean(values) for name, values in differences.items()}
    assert 0 < differences["crop"] < 2 and 0 < differences["middle"] < 2 and differences["other crop"] > 20, differences


def levels(a, b):
    return (a.float() - b.float()).abs().mean().item()


def test_a_reduced_image_is_met_between_its_pixels():
    """A horizontal ramp of 500 columns says where each output pixel was taken from."""
    ramp = (
        np.repeat((np.arange(500) * 255 / 499)[None, :, None], 375, axis=0).repeat(3, axis=2).round().astype(np.uint8)
    )
    picture = decoding.Picture(decoding.reduce(ramp, 320), 375, 500)
    assert picture.pixels.shape == (320, 427, 3)
    errors = []
    for left in range(3, 250, 13):
        for width in (201, 233, 240):
            row = picture.crop(20, left, 180, width, 224)[0, 100].double()
            taken = row * 499 / 255
            wanted = left + (torch.arange(224) + 0.5) * width / 224 - 0.5
            errors.append((taken - wanted)[5:-5].mean().item())  # in the original's pixels
    assert np.abs(errors).mean() < 0.1 and np.abs(errors).max() < 0.3, "whole pixels alone would be 0.29 off, and 0.6"


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (321, 1000), (400, 400)])
def test_boxes_at_every_edge_stay_within_the_image(size):
    width, height = size
    rng = np.random.default_rng(0)
    picture = decoding.Picture(
        decoding.reduce(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), 320), height, width
    )
    for h, w in ((height, width), (2, 2), (height // 2, width // 3)):
        for top in (0, 1, height - h):
            for left in (0, 1, width - w):
                assert picture.crop(top, left, h, w, 224).shape == (3, 224, 224)


def test_torch_resizes_as_pil_does_but_for_rounding(photographs):
    images = open_folder(photographs).train
    rng, differences = np.random.default_rng(0), []
    for i in range(len(images)):
        picture = decoding.read(images, i)
        top, left, height, width = box = crops.random_resized_crop_box(rng, picture.height, picture.width)
        pil = picture.image().crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)
        ours = picture.crop(*box, 224).permute(1, 2, 0).numpy().astype(int)
        differences.append(np.abs(ours - np.asarray(pil)).mean())
        flipped = picture.crop(*box, 224, flip=True).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(flipped, ours[:, ::-1])
    assert np.mean(differences) < 0.1 and max(differences) < 0.5


def variants():
    photo = Image.open(demo.photograph("chelsea.png")).convert("RGB")
    rotated = photo.getexif()
    rotated[0x0112] = 6
    yield "plain", photo, "JPEG", {"quality": 90}
    yield "progressive", photo, "JPEG", {"progressive": True}
    yield "4:4:4", photo, "JPEG", {"subsampling": 0}
    yield "odd size", photo.crop((3, 5, 200, 132)), "JPEG", {}
    yield "rotated by EXIF", photo, "JPEG", {"exif": rotated}
    yield "grey", photo.convert("L"), "JPEG", {}
    yield "CMYK", photo.convert("CMYK"), "JPEG", {}
    yield "PNG", photo, "PNG", {}
    yield "palette", photo.convert("P"), "PNG", {}


@pytest.mark.parametrize(("image", "kind", "options"), [v[1:] for v in variants()], ids=[v[0] for v in variants()])
def test_files_decode_to_the_pixels_that_pil_gives_them(image, kind, options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    expected = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(decoding.decode(Image.open(file)), expected)
    for cut in (1, 2, 3, 10, 500, len(file.getvalue()) // 2):  # PIL says whether it can be read
        part = io.BytesIO(file.getvalue()[:-cut])
        try:
            expected = np.asarray(Image.open(part).convert("RGB"))
        except decoding.UNREADABLE:
            with pytest.raises(decoding.UNREADABLE):
                decoding.decode(Image.open(part))
        else:
            np.testing.assert_array_equal(decoding.decode(Image.open(part)), expected)


def test_broken_files_are_named_counted_and_replaced_as_without_a_cache(tmp_path):
    root = write_folders(tmp_path / "images", train=60, val=50)
    cut_off = root / "train" / "bee" / "bee_003.JPEG"
    os.truncate(cut_off, cut_off.stat().st_size - 40)  # its header says how large it would be
    (root / "val" / "cat" / "cat_049.JPEG").write_text("no image")
    fresh = open_folder(root)
    stored = cached(fresh, tmp_path / "cache")
    for make, split in ((training, "train"), (validation, "val")):
        said, batches = ([], []), []
        for source, words in zip((fresh, stored), said):
            loader, broken = make(getattr(source, split), said=words, with_labels=True, batch_size=10)
            batches.append(collect(loader))
            assert len(broken) == 1
        assert equal(*batches) and said[0] == said[1] and len(said[0]) == 1


def test_fine_tuning_augments_images_as_they_are_in_their_files(photographs, tmp_path):
    fresh = open_folder(photographs)
    stored = cached(fresh, tmp_path)
    transform = lambda image: torch.from_numpy(np.array(image))
    a, b = (AugmentedImages(s.train, transform, seed=0)[0, 4]["images"] for s in (fresh, stored))
    assert torch.equal(a, b) and a.shape in ((375, 500, 3), (500, 375, 3))


def test_larger_inputs_have_larger_images_stored(photographs, tmp_path):
    stored = cached(open_folder(photographs), tmp_path, side=260)
    assert stored.train.store.stored.min(axis=1).tolist() == [371] * 20
    assert cache.pixels(cached(open_folder(photographs), tmp_path, side=280)) == "whole"  # 400 of 375


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_started_either_way_read_and_make_the_cache(tmp_path, start, monkeypatch):
    source = open_folder(None, max_images=400)
    monkeypatch.setattr(cache, "_IN_PROCESS", 0)
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(start, force=True)
    try:
        stored = cached(source, tmp_path)
        there = [b["images"] for b, _ in zip(training(stored.train, workers=1)[0], range(2))]
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    here = [b["images"] for b, _ in zip(training(stored.train)[0], range(2))]
    assert len(pickle.dumps(stored.train.store)) < 50_000, "other processes map the file themselves"
    assert all(torch.equal(a, b) for a, b in zip(here, there)) and len(there) == 2


# Made once


def test_the_second_run_opens_what_the_first_has_made(tmp_path, monkeypatch):
    source, said = small_source(tmp_path / "images"), []
    cached(source, tmp_path / "cache", said)
    assert len(said) == 2 and all("decoding" in line for line in said)
    names = sorted(f.name for f in (tmp_path / "cache").iterdir())
    assert [name.split(".")[1] for name in names] == ["npz", "pixels"] * 2, "nothing else is left behind"
    times = [(tmp_path / "cache" / name).stat().st_mtime_ns for name in names]
    monkeypatch.setattr(cache, "Lock", None)  # nor waits for anybody
    cached(open_folder(tmp_path / "images"), tmp_path / "cache", said)
    assert len(said) == 2
    assert [(tmp_path / "cache" / name).stat().st_mtime_ns for name in names] == times


def touch(file):
    os.utime(file, ns=(1, 1))


def other_image(file):
    time_of = file.stat().st_mtime_ns
    Image.new("RGB", (30, 30), "red").save(file)
    os.utime(file, ns=(time_of, time_of))


@pytest.mark.parametrize("change", [touch, other_image, Path.unlink], ids=["time", "size", "gone"])
def test_a_changed_file_is_another_cache(tmp_path, change):
    source, said = small_source(tmp_path / "images"), []
    cached(source, tmp_path / "cache")
    change(Path(source.train.file(2)))
    stored = cached(open_folder(tmp_path / "images"), tmp_path / "cache", said)
    assert len(said) == 1, "of training images alone"
    if change is other_image:
        assert stored.train.store.picture(2).pixels.shape == (30, 30, 3)


def test_subsets_and_sizes_have_caches_of_their_own(tmp_path):
    said = []
    for max_images, side in ((None, 224), (None, 64), (6, 224), (6, 448)):
        root = write_folders(tmp_path / "images") if not said else tmp_path / "images"
        source = sources.open_source(DataSettings(str(root), max_images, 0), 0)
        assert len(cached(source, tmp_path / "cache", said, side).train) == (max_images or 12)
    assert [re.search(r"(\d+) images", line)[1] for line in said] == ["12", "6", "6", "6", "6"]  # 448: val, too


def start_maker(root, folder):
    """A real process that makes the cache of a folder of images and prints what it says, then how many bytes it has."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from maekit.data import cache, sources\nfrom maekit.settings.typed import DataSettings\n"
        "source = sources.open_source(DataSettings(sys.argv[2], None, 0), 0)\n"
        "stored = cache.cached(source, sys.argv[3], 224, lambda line: print(line, flush=True))\n"
        "print(stored.train.store.path.stat().st_size, stored.train.store.offsets[-1])\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, KIT, root, folder], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_maker_leaves_finished_parts_and_the_next_one_goes_on_with_them(photographs, tmp_path):
    root, folder = many_links(photographs, tmp_path / "images", 641), tmp_path / "cache"
    with start_maker(root, folder) as maker:
        while not any(f.read_text().count("\n") >= 2 for f in folder.glob("*.parts")):
            assert maker.poll() is None, maker.stderr.read()
            time.sleep(0.005)
        maker.kill()
    done = file_of(folder, "parts").read_text().count("\n")
    assert 2 <= done < 10 and not list(folder.glob("*.pixels")), "a draft is no cache"
    with open(file_of(folder, "parts"), "a") as f:
        f.write("[9, 12345, []]\n[8, 99")  # one that is not there, and one cut off
    said = []
    stored = cached(open_folder(root), folder, said)
    assert f"going on with {folder}" in said[0] and f"{done} of 10 parts" in said[0]
    kinds = [decoding.reduce(decoding.read(stored.train, i).pixels, 320) for i in range(20)]
    for i in range(640):
        np.testing.assert_array_equal(stored.train.store.picture(i).pixels, kinds[i % 20])
    assert not list(folder.glob("*.draft")) and not list(folder.glob("*.parts"))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_of_two_runs_at_once_one_decodes_and_the_other_waits(photographs, tmp_path):
    root, folder = many_links(photographs, tmp_path / "images", 193), tmp_path / "cache"
    makers = {maker.pid: maker for maker in (start_maker(root, folder) for _ in range(2))}
    try:
        while not any(held := [f.read_text() for f in folder.glob("*.lock")]):
            assert all(maker.poll() is None for maker in makers.values())
            time.sleep(0.005)
        first = int(held[0].split()[1])
        os.kill(first, signal.SIGSTOP)  # until the other one has met it
        (second,) = set(makers) - {first}
        said = [makers[second].stdout.readline()]
        assert f"waiting for process {first}" in said[0]
        os.kill(first, signal.SIGCONT)
        for maker in makers.values():
            out, err = maker.communicate(timeout=120)
            assert maker.returncode == 0, err
            *lines, sizes = out.splitlines()
            assert len(set(sizes.split())) == 1
            said += lines
    finally:
        for maker in makers.values():
            maker.kill()
            maker.communicate()
    assert sum("decoding 192 images" in line for line in said) == 1
    assert len(list(folder.iterdir())) == 4


# Damage


def cut(file):
    os.truncate(file, file.stat().st_size - 1000)


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


def test_a_run_with_the_cache_is_the_run_without_it(runs_of):
    assert losses(runs_of / "with") == losses(runs_of / "without")
    a, b = weights(runs_of / "with"), weights(runs_of / "without")
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (np.load(runs_of / name / "reconstructions.npz") for name in ("with", "without"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


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


def test_it_does_not_go_on_with_other_pixels(photographs, tmp_path):
    flags = ("--imagenet_dir", photographs, "--model", "mae_vit_demo_patch8", "--input_size", 64, "--epochs", 2,
             "--batch_size", 10, "--num_workers", 0)  # fmt: skip
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
