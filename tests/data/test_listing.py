"""Folders as people have them: what other programs leave in them, links, formats, classes without images, no validation."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from maekit.data import decoding, sources
from maekit.errors import InputError
from maekit.settings.typed import DataSettings
from tests.support import train_here
from tests.support.batches import open_folder, write_folders

SMALL = ("--model", "mae_vit_demo_patch8", "--input_size", 32, "--batch_size", 4, "--epochs", 1, "--device", "cpu")


def opened(root, **settings):
    return sources.open_source(DataSettings(str(root), None, 0, **settings), seed=0)


@pytest.mark.parametrize(
    "left", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "System Volume Information", "#recycle", ".git"]
)
@pytest.mark.parametrize("place", ["train", "val", "train/ant"])
def test_what_other_programs_leave_is_no_class_and_no_image(left, place, tmp_path):
    plain = opened(write_folders(tmp_path)).fingerprint
    (tmp_path / place / left).mkdir()
    shutil.copy(tmp_path / "train" / "ant" / "ant_000.JPEG", tmp_path / place / left)
    source = opened(tmp_path)
    assert source.fingerprint == plain and source.classes == ["ant", "bee", "cat"] and not source.left_out


@pytest.mark.parametrize("upwards", [".", "..", "../.."])
def test_links_that_lead_back_are_not_followed_for_ever(upwards, tmp_path):
    plain = opened(write_folders(tmp_path)).fingerprint
    (tmp_path / "train" / "ant" / "back").symlink_to(upwards, target_is_directory=True)
    (tmp_path / "train" / "bee" / "self").symlink_to("self")
    source = opened(tmp_path)
    assert source.fingerprint == plain and source.left_out == ["in train: 2 links that lead back to where they are"]


def test_a_class_without_images_is_named(tmp_path):
    write_folders(tmp_path, train=2)
    (tmp_path / "train" / "dog").mkdir()
    for file in (tmp_path / "train" / "bee").iterdir():
        file.rename(file.with_suffix(".gif"))
    shutil.rmtree(tmp_path / "val" / "bee")
    (tmp_path / "train" / "ant" / "labels.csv").write_text("a,b\n")
    source = opened(tmp_path)
    assert source.classes == ["ant", "cat"]
    assert source.left_out == [
        "in train: 2 classes without images that are read (bee, dog)",
        "in train: files of formats that are not read (2 .gif)",
    ]
    said = train_here(*SMALL, "--imagenet_dir", tmp_path, "--dry_run", check=0).stdout
    assert said.startswith(
        "4 training images of 2 classes, 4 for validation; 1 steps of 4 images an epoch. Left out in train"
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize("ending", [".jfif", ".JFIF", ".jpe", ".pjpeg"])
def test_jpegs_of_other_endings_are_read(ending, tmp_path):
    write_folders(tmp_path)
    images = opened(tmp_path).train
    whole = [decoding.read(images, i).pixels for i in range(len(images))]
    for file in (tmp_path / "train" / "bee").iterdir():
        file.rename(file.with_suffix(ending))
    source = opened(tmp_path)
    assert len(source.train) == len(whole) and not source.left_out
    for i, pixels in enumerate(whole):
        np.testing.assert_array_equal(decoding.read(source.train, i).pixels, pixels)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "bee").chmod(0)
    try:
        with pytest.raises(InputError, match=r"train/bee: cannot be listed \(Permission denied\)\. Allow it"):
            opened(tmp_path)
    finally:
        (tmp_path / "train" / "bee").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_one_line_for_root_too(tmp_path, monkeypatch):
    """As a disk that fails answers."""
    write_folders(tmp_path)
    scandir = os.scandir

    def failing(folder):
        if str(folder).endswith("bee"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(InputError, match=r"train/bee: cannot be listed \(Permission denied\)\. Allow it"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "name", ["birds[2]", "*", "--help", "a b", "ä\u0308", "(x)", "{1..3}", os.fsdecode(b"caf\xe9")]
)
def test_names_are_names_whatever_they_would_mean_elsewhere(name, tmp_path, monkeypatch):
    root = tmp_path / name
    try:
        write_folders(root, classes=(name, "other"))
    except OSError:
        pytest.skip("this file system has no such names")
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    result = train_here(*SMALL, f"--imagenet_dir={name}", "--output_dir", out, "--probes", "knn", check=0)
    assert "8 training images of 2 classes, 4 for validation" in result.stdout
    assert (out / "summary.json").exists()


# No validation images


def test_a_share_of_every_class_is_kept_for_validation_and_is_the_same_for_every_seed(tmp_path):
    write_folders(tmp_path, train=10, val=1)
    for i in range(3, 10):
        (tmp_path / "train" / "cat" / f"cat_{i:03d}.JPEG").unlink()
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(InputError, match=r"--val_share 0.1 takes a tenth"):
        opened(tmp_path)
    found = [sources.open_source(DataSettings(str(tmp_path), None, 0, val_share=0.2), seed) for seed in (0, 1)]
    names = [[source.val.file(i) for i in range(len(source.val))] for source in found]
    assert names[0] == names[1]
    source = found[0]
    assert np.bincount(source.val.labels).tolist() == [2, 2, 1] and np.bincount(source.train.labels).tolist() == [
        8,
        8,
        2,
    ]
    trained = {source.train.file(i) for i in range(len(source.train))}
    assert not trained & set(names[0]) and len(trained) == 18
    reduced = sources.open_source(DataSettings(str(tmp_path), 6, 0, val_share=0.2), 0)
    assert len(reduced.train) == 6 and [reduced.val.file(i) for i in range(5)] == names[0]


def test_a_set_that_has_validation_takes_no_share(tmp_path):
    write_folders(tmp_path)
    with pytest.raises(InputError, match=r"--val_share 0.2: the validation images are .*val\. Leave it out"):
        opened(tmp_path, val_share=0.2)


def test_a_class_of_one_image_keeps_it_for_training(tmp_path):
    assert sources.share_of_every_class(np.array([0, 1, 1, 2]), 3, 0.5).tolist() in ([1], [2])


# Pixels of more than 8 bits, and how the camera was held


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_values_of_16_bits_are_scaled_by_their_range(ending, tmp_path):
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    if ending == "pgm":  # which not every PIL writes, with 16 bits
        (tmp_path / "ramp.pgm").write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / f"ramp.{ending}")
    with Image.open(tmp_path / f"ramp.{ending}") as image:
        pixels = decoding.decode(image)
    np.testing.assert_array_equal(pixels, np.round(ramp / 65535 * 255).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_floats_are_scaled_from_0_to_1_and_others_are_refused(tmp_path):
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "unit.tif")
    with Image.open(tmp_path / "unit.tif") as image:
        np.testing.assert_array_equal(decoding.decode(image)[..., 1], np.rint(ramp * 255).astype(np.uint8))
    for name, values in (("wide", 300 * ramp), ("signed", ramp - 0.5), ("none", np.full_like(ramp, np.nan))):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        with Image.open(tmp_path / f"{name}.tif") as image, pytest.raises(ValueError, match="where 0 to 1 are read"):
            decoding.decode(image)
    Image.fromarray((70000 * ramp).astype(np.int32)).save(tmp_path / "deep.tif")
    with Image.open(tmp_path / "deep.tif") as image, pytest.raises(ValueError, match="32 bits"):
        decoding.decode(image)


def test_a_file_that_is_refused_is_said_with_the_reason(tmp_path):
    write_folders(tmp_path, train=4)
    Image.fromarray(np.full((40, 40), 3.5, np.float32)).save(tmp_path / "train" / "ant" / "odd.tif")
    result = train_here(
        *SMALL, "--imagenet_dir", tmp_path, "--output_dir", tmp_path / "out", "--probes", "none", check=2
    )
    assert "odd.tif" in result.stderr and "floats from 3.5 to 3.5, where 0 to 1 are read" in result.stderr


def test_an_image_above_pils_limit_is_said_with_the_reason(tmp_path, monkeypatch):
    write_folders(tmp_path, train=4, side=24)
    Image.new("RGB", (100, 100)).save(tmp_path / "train" / "ant" / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    result = train_here(
        *SMALL, "--imagenet_dir", tmp_path, "--output_dir", tmp_path / "out", "--probes", "none", check=2
    )
    assert "huge.png" in result.stderr and "exceeds limit of" in result.stderr


def test_a_tag_of_how_the_camera_was_held_turns_no_image_whatever_the_source(tmp_path):
    import datasets

    tag = Image.Exif()
    tag[0x0112] = 6  # turned by a quarter
    write_folders(tmp_path / "folder", train=1, val=1, classes=("x", "y"))
    photo = tmp_path / "folder" / "train" / "x" / "x_000.JPEG"
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)).save(photo, quality=95, exif=tag)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    rows = {"image": [str(photo)] * 2, "label": [0, 1]}
    made = datasets.DatasetDict(
        {s: datasets.Dataset.from_dict(rows, features=features) for s in ("train", "validation")}
    )
    made.save_to_disk(tmp_path / "disk")
    of_folder = decoding.read(open_folder(tmp_path / "folder").train, 0).pixels
    of_hub = decoding.read(sources.open_source(DataSettings(None, None, 0, str(tmp_path / "disk")), 0).train, 0).pixels
    assert of_folder.shape == (40, 60, 3) and np.array_equal(of_folder, of_hub)
