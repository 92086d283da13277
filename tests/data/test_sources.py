"""From files to batches: the pixels and labels of folders and of the demo, and folders that cannot be used."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.data import demo
from maekit.errors import InputError
from tests.support import WNIDS
from tests.support.batches import (
    MODEL,
    center_crop_by_pil,
    collect,
    open_folder,
    random_crop_by_pil,
    save_image,
    training,
    validation,
    write_annotated,
    write_folders,
)

# From file to batch


def check_validation(source, label_of):
    """Every validation image is its file's center crop; labels are label_of(stem of the file), a class name."""
    batch = collect(validation(source.val, with_labels=True)[0])
    assert batch["index"].tolist() == list(range(len(source.val)))
    assert batch["images"].dtype == torch.uint8 and batch["noise"].shape == (len(source.val), MODEL.patches)
    for i in range(len(source.val)):
        file = Path(source.val.file(i))
        pixels = batch["images"][i].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, center_crop_by_pil(file), err_msg=str(file))
        assert source.classes[batch["labels"][i]] == label_of(file.stem), file


def check_training(source, label_of, seed=3, epoch=5):
    """Every training image of a batch is the crop of its file that its generator decides."""
    batches, _ = training(source.train, batch_size=len(source.train), seed=seed, with_labels=True)
    batch, flips = collect(batches, epoch), set()
    assert sorted(batch["index"].tolist()) == list(range(len(source.train)))
    for row, index in enumerate(batch["index"].tolist()):
        file = Path(source.train.file(index))
        pixels, noise, flip = random_crop_by_pil(file, seed, epoch, index)
        flips.add(flip)
        np.testing.assert_array_equal(batch["images"][row].permute(1, 2, 0).numpy(), pixels, err_msg=str(file))
        np.testing.assert_array_equal(batch["noise"][row].numpy(), noise)
        assert source.classes[batch["labels"][row]] == label_of(file), file
    assert flips == {True, False}


def test_ilsvrc_images_reach_the_batch_with_the_labels_of_the_solution_table(ilsvrc):
    source = open_folder(ilsvrc)
    assert (source.name, source.classes) == ("ILSVRC", sorted(WNIDS))
    assert (len(source.train), len(source.val)) == (24, 12)
    # image k of the fixture has class k mod 3, validation names count from 1
    check_validation(source, lambda stem: WNIDS[(int(stem[-8:]) - 1) % 3])
    check_training(source, lambda file: WNIDS[int(file.stem.split("_")[1]) % 3])


def test_named_images_keep_their_label_and_pixels_in_any_batch_size(ilsvrc):
    source = open_folder(ilsvrc)
    third = source.val.paths.tolist().index(b"ILSVRC2012_val_00000003.JPEG")
    for batch_size in (1, 5, 12):
        batch = collect(validation(source.val, batch_size=batch_size, with_labels=True)[0])
        assert source.classes[batch["labels"][third]] == "n03804744"
        coffee = center_crop_by_pil(ilsvrc / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000003.JPEG")
        np.testing.assert_array_equal(batch["images"][third].permute(1, 2, 0).numpy(), coffee)


@pytest.mark.parametrize("below", ["", "Data/CLS-LOC"])
def test_flat_validation_images_take_their_labels_from_xml_annotations(tmp_path, below):
    wnids = write_annotated(tmp_path)
    source = open_folder(tmp_path / below)
    check_validation(source, wnids.get)
    check_training(source, lambda file: file.parent.name)


def test_the_solution_table_goes_before_annotations(tmp_path):
    wnids = write_annotated(tmp_path)
    rows = [f"{stem},{WNIDS[2]} 1 2 3 4" for stem in wnids]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    source = open_folder(tmp_path)
    assert source.val.labels.tolist() == [sorted(WNIDS).index(WNIDS[2])] * 7


@pytest.mark.parametrize("val_name", ["val", "validation", "test"])
def test_plain_class_folders_reach_the_batch_with_the_names_of_their_folders(tmp_path, val_name):
    write_folders(tmp_path, side=90)
    (tmp_path / "val").rename(tmp_path / val_name)
    source = open_folder(tmp_path)
    assert (source.name, source.classes) == ("folders", ["ant", "bee", "cat"])
    check_validation(source, lambda stem: stem.split("_")[0])
    check_training(source, lambda file: file.parent.name)


def test_demo_images_reach_the_batch_with_the_name_of_their_photograph(demo_dir, whole_demo):
    source = open_folder(None)
    assert source.name == "demo"
    assert source.train.root == str(demo_dir / "Data" / "CLS-LOC" / "train")
    table = (demo_dir / "LOC_val_solution.csv").read_text().splitlines()
    photographs = {row.split(",")[0]: row.split(",")[1].split()[0] for row in table}
    source.val, source.train = source.val.subset(slice(0, 200, 9)), source.train.subset(slice(0, 1000, 49))
    check_validation(source, photographs.get)
    check_training(source, lambda file: file.parent.name)


def test_images_of_every_mode_become_rgb(tmp_path):
    write_folders(tmp_path, classes=("ant",))
    rng = np.random.default_rng(2)
    grey = rng.integers(0, 256, (80, 70), dtype=np.uint8)
    for i, mode in enumerate(("L", "P", "RGBA", "CMYK", "1")):
        extension = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(grey).convert("RGB").convert(mode).save(tmp_path / "val" / "ant" / f"x{i}.{extension}")
    source = open_folder(tmp_path)
    assert len(source.val) == 7
    batch = collect(validation(source.val)[0])
    for i in range(7):
        pixels = batch["images"][i].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, center_crop_by_pil(source.val.file(i)))


def test_flat_validation_images_without_a_source_of_labels_have_none(tmp_path):
    write_folders(tmp_path)
    shutil.rmtree(tmp_path / "val")
    for i in range(3):
        save_image(tmp_path / "val" / f"{i}.JPEG", np.random.default_rng(i))
    source = open_folder(tmp_path)
    assert source.val.labels is None
    assert collect(validation(source.val, with_labels=True)[0])["labels"].tolist() == [-1, -1, -1]


# The demo


def test_the_demo_has_ten_classes_of_100_training_and_20_validation_images(demo_dir):
    source = open_folder(demo_dir)
    assert source.classes == sorted(name.split(".")[0] for name in demo.PHOTOGRAPHS) and len(source.classes) == 10
    assert np.bincount(source.train.labels).tolist() == [100] * 10
    assert np.bincount(source.val.labels).tolist() == [20] * 10
    for images in (source.train, source.val):
        assert {Image.open(images.file(i)).size for i in range(0, len(images), 17)} == {(96, 96)}


@pytest.mark.parametrize(
    ("recipe", "border"),
    [({}, 420), ({"left": 0.5, "side": [300, 300]}, 300)],
    ids=["as it is", "every crop touches the border"],
)
def test_no_pixel_of_the_demo_is_in_both_splits(tmp_path, monkeypatch, recipe, border):
    photo = np.zeros((320, 600, 3), dtype=np.uint8)
    photo[:, :border, 0] = 255  # the part for training red, the rest blue
    photo[:, border:, 2] = 255
    Image.fromarray(photo).save(tmp_path / "photo.png")
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("photo.png",))
    monkeypatch.setattr(demo, "photograph", lambda name: tmp_path / name)
    for key, value in {"val": 100, **recipe}.items():
        monkeypatch.setitem(demo.RECIPE, key, value)
    demo.write(tmp_path / "demo")
    base = tmp_path / "demo" / "Data" / "CLS-LOC"
    for split, own, foreign in (("train", 0, 2), ("val", 2, 0)):
        files = sorted((base / split).rglob("*.JPEG"))
        assert len(files) == 100
        for file in files:
            pixels = np.asarray(Image.open(file))
            assert pixels[..., own].min() > 251 and pixels[..., foreign].max() < 4, file


def test_demo_crops_come_from_all_over_their_part_of_the_photograph(tmp_path, monkeypatch):
    photo = np.zeros((256, 1000, 3), dtype=np.uint8)
    photo[..., 0] = np.arange(1000) // 4  # red says the column, green the row
    photo[..., 1] = np.arange(256)[:, None]
    Image.fromarray(photo).save(tmp_path / "photo.png")
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("photo.png",))
    monkeypatch.setattr(demo, "photograph", lambda name: tmp_path / name)
    demo.write(tmp_path / "demo")
    for split, first, last in (("train", 0, 700), ("val", 700, 1000)):
        files = (tmp_path / "demo" / "Data" / "CLS-LOC" / split).rglob("*.JPEG")
        pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype(float)
        assert pixels[..., 0].min() * 4 < first + 30 and pixels[..., 0].max() * 4 > last - 30
        assert pixels[..., 1].min() < 20 and pixels[..., 1].max() > 236


def test_the_demo_is_written_once_and_byte_by_byte_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(demo.RECIPE, "train", 2)
    monkeypatch.setitem(demo.RECIPE, "val", 1)
    folders = []
    for home in ("a", "b"):
        monkeypatch.setenv("MAEKIT_DATA", str(tmp_path / home))
        folders.append(demo.ensure())
    first, second = ({f.relative_to(d): f.read_bytes() for f in d.rglob("*") if f.is_file()} for d in folders)
    assert len(first) == 10 * 2 + 10 * 1 + 1
    assert first == second
    assert capsys.readouterr().err.count("demo:") == 2

    times = {file: file.stat().st_mtime_ns for file in folders[1].rglob("*")}
    assert demo.ensure() == folders[1]
    assert {file: file.stat().st_mtime_ns for file in folders[1].rglob("*")} == times
    assert [p.name for p in (tmp_path / "b").iterdir()] == [folders[1].name]  # no draft left behind
    monkeypatch.setitem(demo.RECIPE, "quality", 80)
    assert demo.ensure() != folders[1]  # another recipe is another folder


# Folders that cannot be used


def remove(*parts):
    def change(root):
        shutil.rmtree(root.joinpath(*parts))
        return root / parts[0]

    return change


def empty(split):
    def change(root):
        for file in (root / split).rglob("*.JPEG"):
            file.unlink()
        return root / split

    return change


def flatten_train(root):
    for file in sorted((root / "train").rglob("*.JPEG")):
        file.rename(root / "train" / file.name)
    for folder in [p for p in (root / "train").iterdir() if p.is_dir()]:
        folder.rmdir()
    return root / "train"


def stray_train_image(root):
    shutil.copy(root / "train" / "ant" / "ant_000.JPEG", root / "train" / "stray.JPEG")
    return root / "train" / "stray.JPEG"


def foreign_val_class(root):
    (root / "val" / "ant").rename(root / "val" / "aardvark")
    return root / "val" / "aardvark"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: shutil.rmtree(root) or root, "no such folder"),
        (remove("train"), "no train/"),
        (remove("val"), "no val/"),
        (empty("train"), "no images"),
        (empty("val"), "no images"),
        (flatten_train, "no class folders"),
        (stray_train_image, "outside the class folders"),
        (foreign_val_class, "no class of that name"),
    ],
    ids=["missing", "no train", "no val", "empty train", "empty val", "no class folders", "stray image", "val class"],
)
def test_a_folder_that_cannot_be_used_is_one_line_that_names_it(tmp_path, change, said):
    root = write_folders(tmp_path / "images", train=2, val=1)
    named = change(root)
    with pytest.raises(InputError) as raised:
        open_folder(root)
    message = str(raised.value)
    assert (str(named) if named.name not in ("train", "val") else str(root)) in message
    assert said in message and "\n" not in message


@pytest.fixture
def annotated(tmp_path):
    write_annotated(tmp_path)
    return tmp_path


STEMS = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(7)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (["ImageId,PredictionString", *[f"{stem},n00000001 1 1 2 2" for stem in STEMS]], "n00000001"),
        (["ImageId,PredictionString", *[f"{stem},{WNIDS[0]} 1 1 2 2" for stem in STEMS[:-1]]], STEMS[-1]),
        (["ImageId,PredictionString", *[f"{stem}," for stem in STEMS]], STEMS[0]),
        (["id,class", *[f"{stem},{WNIDS[0]}" for stem in STEMS]], "ImageId"),
        ([], "LOC_val_solution.csv"),
    ],
    ids=["unknown class", "image missing", "no class", "other columns", "empty"],
)
def test_a_solution_table_that_does_not_fit_is_one_line_that_names_it(annotated, table, said):
    file = annotated / "LOC_val_solution.csv"
    file.write_text("".join(line + "\n" for line in table))
    source = open_folder(annotated)
    with pytest.raises(InputError) as raised:
        _ = source.val.labels
    message = str(raised.value)
    assert str(file) in message and said in message and "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        None,
        "<annotation></annotation>",
        "<annotation><object><name>n00000001</name></object></annotation>",
        "<anno",
        "",
    ],
    ids=["missing", "no object", "unknown class", "cut", "empty"],
)
def test_an_annotation_that_does_not_fit_is_one_line_that_names_the_image(annotated, text):
    file = annotated / "Annotations" / "CLS-LOC" / "val" / f"{STEMS[2]}.xml"
    file.unlink() if text is None else file.write_text(text)
    source = open_folder(annotated)
    with pytest.raises(InputError) as raised:
        _ = source.val.labels
    message = str(raised.value)
    assert STEMS[2] in message and "\n" not in message


def test_a_stray_image_beside_validation_class_folders_does_not_cost_all_labels_silently(tmp_path):
    write_folders(tmp_path)
    save_image(tmp_path / "val" / "stray.JPEG", np.random.default_rng(0))
    with pytest.raises(InputError, match=r"stray\.JPEG"):
        _ = open_folder(tmp_path).val.labels


def test_a_missing_photograph_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        demo.photograph("astronaut.png")


def test_a_missing_photograph_is_named(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"astronaut\.png"):
        demo.photograph("astronaut.png")


@pytest.mark.slow
def test_the_fingerprint_changes_with_the_files_and_only_with_them(tmp_path):
    first = open_folder(write_folders(tmp_path / "a")).fingerprint
    assert open_folder(write_folders(tmp_path / "b")).fingerprint == first
    (tmp_path / "b" / "val" / "ant" / "ant_000.JPEG").rename(tmp_path / "b" / "val" / "ant" / "ant_x.JPEG")
    assert open_folder(tmp_path / "b").fingerprint != first


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_may_be_a_link(split, tmp_path):
    write_folders(tmp_path / "whole")
    write_folders(tmp_path / "linked")
    shutil.move(tmp_path / "linked" / split / "bee", tmp_path / "elsewhere")
    (tmp_path / "linked" / split / "bee").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    whole, linked = (open_folder(tmp_path / name) for name in ("whole", "linked"))
    assert linked.fingerprint == whole.fingerprint and linked.classes == ["ant", "bee", "cat"]
    assert linked.train.labels.tolist() == whole.train.labels.tolist()


def test_images_with_the_labels_that_were_read_go_to_processes_that_are_not_forked(tmp_path):
    images = open_folder(write_folders(tmp_path), max_images=6).train
    labels = images.labels.tolist()
    there = pickle.loads(pickle.dumps(images))
    assert [there.file(i) for i in range(6)] == [images.file(i) for i in range(6)]
    assert there.labels.tolist() == labels


def test_files_that_are_no_images_are_not_listed(tmp_path):
    write_folders(tmp_path, train=2, val=1)
    (tmp_path / "train" / "ant" / "README.txt").write_text("notes\n")
    (tmp_path / "train" / "ant" / "._ant_000.JPEG").write_bytes(b"\0")  # what macOS leaves on other file systems
    assert len(open_folder(tmp_path).train) == 6
