"""Image files damaged at random: each is read or counted as one that cannot be, in bounded time, and stderr stays empty."""

import io
import os
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from maekit.data import cache, decoding, demo
from maekit.data.datasets import TrainImages, ValImages
from maekit.errors import InputError
from tests.support import train
from tests.support.batches import MODEL, collect, open_folder, training, write_folders
from tests.support.damage import damaged_bytes, how_many

MOST_SECONDS = 60  # for 500 files, beside other work: some announce up to 179 million pixels, which take seconds


def of_formats():
    """{file name: bytes} of a photograph in every format that is read, and in their kinds."""
    photo = Image.open(demo.photograph(demo.PHOTOGRAPHS[0])).convert("RGB").resize((64, 48))
    grey = np.asarray(photo.convert("L"))
    deep, floats = Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey.astype(np.float32) / 255)
    exif = Image.Exif()
    exif[274], exif[271], exif[282] = 6, "maker", 72.0
    colours, cmyk = photo.quantize(32), photo.convert("CMYK")
    kinds = {
        "plain.jpg": (photo, {"quality": 90}),
        "progressive.jpg": (photo, {"progressive": True}),
        "cmyk.jpg": (cmyk, {}),
        "exif.jpg": (photo, {"exif": exif, "icc_profile": b"x" * 200, "comment": b"hello"}),
        "grey.jpg": (photo.convert("L"), {}),
        "restarts.jpg": (photo, {"subsampling": 0, "restart_marker_blocks": 2}),
        "rgb.png": (photo, {"exif": exif}),
        "palette.png": (colours, {"transparency": 0}),
        "alpha.png": (photo.convert("RGBA"), {}),
        "deep.png": (deep, {}),
        "bits.png": (photo.convert("1"), {}),
        "rgb.bmp": (photo, {}),
        "palette.bmp": (colours, {}),
        "lossy.webp": (photo, {}),
        "lossless.webp": (photo, {"lossless": True, "exif": exif}),
        "plain.tif": (photo, {"exif": exif}),
        **{f"{name}.tif": (photo, {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")},
        "fax.tif": (photo.convert("1"), {"compression": "group4"}),
        "deep.tif": (deep, {}),
        "floats.tif": (floats, {}),
        "cmyk.tif": (cmyk, {}),
        "palette.tif": (colours, {}),
        "rgb.ppm": (photo, {}),
        "grey.pgm": (photo.convert("L"), {}),
        "bits.pbm": (photo.convert("1"), {}),
    }
    found = {"ascii.ppm": b"P3\n4 3\n255\n" + b" ".join(b"%d" % i for i in range(36))}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[name[name.index(".") :]], **options)
        found[name] = file.getvalue()
    return found


@pytest.fixture(scope="module")
def sound():
    return of_formats()


@pytest.fixture(autouse=True)
def filtered():
    """What the kit filters when it is imported, which pytest has undone."""
    warnings.filterwarnings("ignore", module="PIL")


def test_no_damaged_image_ends_more_than_its_own_use(sound, tmp_path, capfd):
    """Through the cache, in training and validation: 70,000 files with DAMAGED=all."""
    rng, count, at_once, broken, longest = np.random.default_rng(0), how_many(1500, 70_000), 500, 0, 0.0
    names = list(sound)
    for number in range(count // at_once):
        root = tmp_path / str(number)
        (root / "train" / "a").mkdir(parents=True)
        (root / "val" / "a").mkdir(parents=True)
        for i in range(at_once):
            name = names[i % len(names)]
            data = damaged_bytes(sound[name], rng)
            if i % 3 == 0:
                data = damaged_bytes(data, rng)
            (root / "train" / "a" / f"{i:04d}-{name}").write_bytes(data)
        for i in range(8):
            (root / "val" / "a" / f"{i}.png").write_bytes(sound["rgb.png"])
        source = open_folder(root)
        began = time.monotonic()
        stored = cache.cached(source, str(root / "cache"), MODEL.input_size, lambda line: None)
        longest = max(longest, time.monotonic() - began)
        for images in (source.train, stored.train):
            train_images = TrainImages(images, MODEL.input_size, MODEL.patches, 0)
            val_images = ValImages(images, MODEL.input_size, MODEL.patches)
            for i in range(0, at_once, 1 if images is stored.train else 5):
                sample = train_images[0, i] if i % 2 else val_images[i]
                assert sample["images"].shape == (3, MODEL.input_size, MODEL.input_size)
                assert (sample["broken"] == i) == (sample["index"] != i) and sample["broken"] in (-1, i)
                broken += images is stored.train and sample["broken"] == i
    assert 0.4 * count < broken < 0.8 * count
    assert longest < MOST_SECONDS
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("\rcache", "cache"))]
    assert not [line for line in lines if line.strip()]


def write(root, **pictures):
    """A folder of 120 training images, with more pictures in it."""
    write_folders(root, train=40, val=2)
    for name, picture in pictures.items():
        picture.save(root / "train" / "ant" / f"{name}.png")
    return root


def test_an_image_of_a_single_line_is_replaced_before_its_middle_takes_gigabytes(tmp_path):
    write(tmp_path, tall=Image.new("L", (1, 30_000)), wide=Image.new("L", (300, 3)))
    source, said = open_folder(tmp_path), []
    assert cache.cached(source, str(tmp_path / "cache"), 64, said.append).train.store.stored.max() < 400
    batches, broken = training(source.train, said=said)
    collect(batches, 0)
    (line,) = [line for line in said if line.startswith("broken")]
    assert len(broken) == 1 and "1 x 30000 pixels" in line and "1 : 100" in line


def test_libraries_print_nothing_of_what_they_read(sound, tmp_path, capfd):
    damaged = {  # libjpeg says something of each of the first, libtiff of the second, PIL of the third
        "a.jpg": sound["plain.jpg"][:-500] + bytes(300) + sound["plain.jpg"][-200:],
        "b.tif": sound["tiff_deflate.tif"].replace(b"\x78", b"\x79", 1),
        "c.tif": sound["fax.tif"][:-20] + bytes(20),
        "d.tif": sound["plain.tif"][:-7],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        try:
            with Image.open(tmp_path / name) as image:
                decoding.decode(image)
        except decoding.UNREADABLE:
            pass
    assert capfd.readouterr().err == ""
    print("still heard", file=sys.stderr)
    assert capfd.readouterr().err == "still heard\n"


def test_a_process_without_a_stderr_decodes(tmp_path, sound, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(sound["plain.jpg"])
    monkeypatch.setattr(sys, "__stderr__", None)  # as Python has it in such a process
    stderr = os.dup(2)
    try:
        os.close(2)
        with Image.open(tmp_path / "a.jpg") as image:
            assert decoding.decode(image).shape == (48, 64, 3)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@pytest.mark.slow
def test_a_run_names_each_image_that_it_replaces_in_a_line_and_nothing_else(sound, tmp_path):
    write_folders(tmp_path / "data", train=140, val=40)
    rng, names = np.random.default_rng(1), [name for name in sound if not name.startswith("ascii")]
    for i in range(12):
        (tmp_path / "data" / "train" / "ant" / f"z{i}-{names[2 * i]}").write_bytes(
            damaged_bytes(sound[names[2 * i]], rng)
        )
    flags = (
        "--imagenet_dir",
        tmp_path / "data",
        "--model",
        "enc16d1h2p8",
        "--decoder_type",
        "dec16d1h2",
        "--input_size",
        32,
    )
    quick = ("--epochs", 1, "--batch_size", 16, "--num_workers", 0, "--probes", "none")
    result = train(*flags, *quick, "--cache", "off", "--output_dir", tmp_path / "out")
    lines = [line for line in result.stderr.splitlines() if "broken image" not in line and "img/s" not in line]
    told = result.stdout + result.stderr
    assert "Traceback" not in told
    assert result.returncode == (2 if "more than 1%" in told else 0)
    assert [line for line in lines if line.strip() and not line.startswith("error: ")] == []


def test_more_broken_images_than_one_in_a_hundred_end_a_run_with_one_line(sound, tmp_path):
    write_folders(tmp_path, train=20, val=2)
    rng = np.random.default_rng(2)
    for i in range(30):
        (tmp_path / "train" / "ant" / f"z{i}.jpg").write_bytes(damaged_bytes(sound["plain.jpg"][:300], rng))
    with pytest.raises(InputError, match="images cannot be read, more than 1%"):
        collect(training(open_folder(tmp_path).train)[0], 0)


def test_stderr_is_there_again_when_the_last_of_several_threads_has_decoded():
    def place():
        return os.fstat(2).st_dev, os.fstat(2).st_ino

    before = place()
    decoding._silent.__enter__()
    with decoding._silent:
        assert place() != before
    assert place() != before
    decoding._silent.__exit__()
    assert place() == before
