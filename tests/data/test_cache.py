"""The cache of decoded images: the same batches, made once."""

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.data import cache, crops, decoding, demo, sources
from maekit.data.datasets import AugmentedImages, TrainImages, ValImages
from maekit.settings.typed import DataSettings
from tests.support import KIT
from tests.support.batches import collect, equal, open_folder, training, validation, write_folders
from tests.support.caching import cached, small_source


def file_of(folder, ending):
    (file,) = folder.glob(f"*.{ending}")
    return file


def many_links(photographs, root, n):
    """A folder of n files, each one of the photographs."""
    kinds = sorted((photographs / "train").rglob("*.JPEG"))
    for i in range(n):
        file = root / ("train" if i else "val") / "class0" / f"{i:04d}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(kinds[i % len(kinds)], file)
    return root


# The same batches


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    return subprocess.Popen(
        [sys.executable, "-c", code, KIT, root, folder], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
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


@pytest.mark.slow
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
