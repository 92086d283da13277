"""Broken image files are named, counted and replaced, up to a share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from maekit.data import crops, loader, streams
from maekit.data.datasets import AugmentedImages
from maekit.errors import InputError
from tests.support.batches import (
    MODEL,
    SIDE,
    collect,
    equal,
    open_folder,
    training,
    validation,
    write_folders,
)


@pytest.fixture
def many(tmp_path):
    """120 training and 120 validation images of three classes."""
    return write_folders(tmp_path, train=40, val=40)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_broken_image_is_named_counted_and_replaced(many):
    file = many / "train" / "bee" / "bee_007.JPEG"
    truncate(file)
    source, said = open_folder(many), []
    broken_index = source.train.paths.tolist().index(b"bee/bee_007.JPEG")
    batches, broken = training(source.train, batch_size=24, said=said, with_labels=True)
    replacements = set()
    for epoch in range(3):
        batch = collect(batches, epoch)
        assert len(batch["images"]) == 120
        (row,) = torch.nonzero(batch["broken"] >= 0)[:, 0].tolist()
        assert batch["broken"][row] == broken_index
        used = batch["index"][row].item()
        replacements.add(used)
        assert used != broken_index
        # the replacement's pixels and label, cropped and masked as the broken image would have been
        image = Image.open(source.train.file(used))
        rng = streams.generator(streams.CROP, 0, epoch, broken_index)
        top, left, height, width = crops.random_resized_crop_box(rng, image.height, image.width)
        flip = rng.random() < 0.5
        crop = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.BICUBIC)
        expected = np.asarray(ImageOps.mirror(crop) if flip else crop)
        np.testing.assert_array_equal(batch["images"][row].permute(1, 2, 0).numpy(), expected)
        assert batch["labels"][row] == source.train.labels[used]
    assert len(replacements) > 1  # not always the same neighbour
    assert len(said) == 1 and str(file) in said[0]
    assert len(broken) == 1


def test_the_replacement_of_a_broken_image_has_its_own_label_also_where_images_are_augmented(many):
    truncate(many / "train" / "bee" / "bee_007.JPEG")
    images = open_folder(many).train
    at = images.paths.tolist().index(b"bee/bee_007.JPEG")
    dataset = AugmentedImages(images, np.asarray, seed=0)
    samples = [dataset[epoch, at] for epoch in range(12)]
    assert {sample["broken"] for sample in samples} == {at} and len({sample["labels"] for sample in samples}) == 3
    for sample in samples:
        name = Path(images.file(sample["index"])).parent.name
        assert ("ant", "bee", "cat")[sample["labels"]] == name
        np.testing.assert_array_equal(sample["images"], Image.open(images.file(sample["index"])))


def test_replacements_are_the_same_in_worker_processes(many):
    truncate(many / "train" / "bee" / "bee_007.JPEG")
    source = open_folder(many)
    alone, shared = training(source.train)[0], training(source.train, workers=2)[0]
    assert equal(collect(alone, 0), collect(shared, 0))


def test_a_broken_validation_image_is_replaced_by_its_neighbour(many):
    last = many / "val" / "cat" / "cat_039.JPEG"
    truncate(last)
    source, said = open_folder(many), []
    batches, broken = validation(source.val, said=said, with_labels=True)
    for _ in range(2):
        batch = collect(batches)
        assert batch["index"].tolist() == [*range(119), 0]
        assert torch.equal(batch["images"][119], batch["images"][0])
        assert not torch.equal(batch["noise"][119], batch["noise"][0])
        assert batch["labels"][119] == batch["labels"][0]
    assert len(said) == len(broken) == 1 and str(last) in said[0]


def test_broken_images_of_both_sets_are_counted_together(many):
    for file in (many / "val" / "cat" / "cat_003.JPEG", many / "train" / "cat" / "cat_003.JPEG"):
        file.write_text("not an image\n")
    source, said = open_folder(many), []
    batches, broken = training(source.train, said=said)
    collect(batches, 0)
    collect(loader.val_batches(source.val, MODEL, batch_size=8, broken=broken, workers=0))
    assert len(broken) == len(said) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_more_than_one_percent_of_broken_images_ends_the_run_with_their_names(many, split):
    files = [many / split / "ant" / "ant_003.JPEG", many / split / "cat" / "cat_020.JPEG"]
    truncate(files[0])
    files[1].write_text("this is a text file\n")
    source = open_folder(many)
    batches, _ = training(source.train) if split == "train" else validation(source.val)
    with pytest.raises(InputError) as raised:
        collect(batches)
    message = str(raised.value)
    assert all(str(file) in message for file in files)
    assert "2 of 120" in message and "\n" not in message


def test_one_percent_exactly_is_not_too_many(tmp_path):
    write_folders(tmp_path, train=2, val=100, classes=("ant",))
    truncate(tmp_path / "val" / "ant" / "ant_050.JPEG")
    assert len(collect(validation(open_folder(tmp_path).val)[0])["images"]) == 100


def test_a_long_list_of_broken_images_is_cut(many):
    for i in range(25):
        truncate(many / "val" / "ant" / f"ant_{i:03d}.JPEG")
    with pytest.raises(InputError) as raised:
        collect(validation(open_folder(many).val, batch_size=120)[0])
    message = str(raised.value)
    assert "25 of 120" in message and "and 5 more" in message
    assert message.count("ant_") == 20 and "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_one_readable_image_ends_with_one_line(tmp_path, workers):
    write_folders(tmp_path, train=20, val=20)
    for file in tmp_path.rglob("*.JPEG"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError) as raised:
        collect(validation(open_folder(tmp_path).val, workers=workers)[0])
    assert "ant_000.JPEG" in str(raised.value)
    assert "\n" not in str(raised.value)
