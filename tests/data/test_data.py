"""From files to batches: pixels, labels, order, crops, masks, broken files, and folders that cannot be used."""

import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from maekit.data import crops, demo, loader, sources, streams
from maekit.data.datasets import AugmentedImages
from maekit.data.pixels import Pixels
from maekit.errors import InputError
from tests.support import WNIDS
from tests.support.batches import (
    MODEL,
    SIDE,
    center_crop_by_pil,
    collect,
    equal,
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


def test_demo_images_reach_the_batch_with_the_name_of_their_photograph(demo_dir):
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


def test_labels_that_nobody_asked_for_are_minus_one_and_cost_nothing(tmp_path):
    write_annotated(tmp_path)
    shutil.rmtree(tmp_path / "Annotations")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,unknown 1 1\n")
    source = open_folder(tmp_path)  # the table is not looked at
    assert set(collect(validation(source.val)[0])["labels"].tolist()) == {-1}
    assert set(collect(training(source.train)[0], 0)["labels"].tolist()) == {-1}


def test_normalising_removes_imagenets_mean_and_deviation_and_is_undone_exactly():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    pixels = Pixels(torch.device("cpu"))
    normal = pixels.normalize(levels)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (np.arange(256) / 255 - mean) / std
        np.testing.assert_allclose(normal[0, channel].reshape(-1), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(pixels.to_uint8(normal), levels)
    assert pixels.to_uint8(normal * 10).unique().tolist()[:1] == [0]  # clipped, not wrapped around


# Crops


N_DRAWS = 3000


def crop_statistics(boxes, height, width):
    """Columns: area fraction, log aspect, and where the crop lies in the room it has."""
    top, left, h, w = np.array(boxes, dtype=float).T
    place = [
        np.divide(a, room, out=np.zeros_like(a), where=room > 0) for a, room in ((top, height - h), (left, width - w))
    ]
    return {"area": h * w / (height * width), "log aspect": np.log(w / h), "top": place[0], "left": place[1]}


@pytest.mark.parametrize(("height", "width"), [(375, 500), (256, 256), (500, 180), (120, 300)])
def test_crops_have_the_distribution_of_torchvisions_random_resized_crop(height, width):
    rng = np.random.default_rng(11)
    ours = crop_statistics([crops.random_resized_crop_box(rng, height, width) for _ in range(N_DRAWS)], height, width)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(12)
        boxes = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(N_DRAWS)]
    theirs = crop_statistics(boxes, height, width)
    for name, values in ours.items():
        assert ks_2samp(values, theirs[name]).pvalue > 1e-3, name
        np.testing.assert_allclose(values.mean(), theirs[name].mean(), atol=0.02, err_msg=name)
    assert ours["area"].min() >= 0.19 and ours["area"].max() <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 1000), (1000, 41), (3, 400), (1, 1)])
def test_an_image_too_long_for_any_crop_gives_torchvisions_central_one(height, width):
    rng = np.random.default_rng(0)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.2, 1.0], [3 / 4, 4 / 3])
    assert {crops.random_resized_crop_box(rng, height, width) for _ in range(20)} == {tuple(expected)}


def test_crops_stay_inside_the_image():
    rng = np.random.default_rng(0)
    for height, width in ((7, 5), (100, 30), (64, 65)):
        for _ in range(300):
            top, left, h, w = crops.random_resized_crop_box(rng, height, width)
            assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


# Order, crops and masks are decided by seed, epoch and image


@pytest.fixture(scope="module")
def photographs(demo_dir):
    """40 training and 40 validation images of the demo."""
    source = open_folder(demo_dir, max_images=40)
    source.val = source.val.subset(np.arange(0, 200, 5))
    return source


def test_worker_processes_change_nothing(photographs):
    alone, _ = training(photographs.train, workers=0, with_labels=True)
    shared, _ = training(photographs.train, workers=2, with_labels=True)
    for epoch in (0, 1):
        assert equal(collect(alone, epoch), collect(shared, epoch))
    alone, _ = validation(photographs.val, workers=0)
    shared, _ = validation(photographs.val, workers=2)
    assert equal(collect(alone), collect(shared))


def test_an_epoch_is_the_same_whatever_was_drawn_before(photographs):
    one, _ = training(photographs.train)
    first = [collect(one, epoch) for epoch in range(3)]
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    resumed, _ = training(photographs.train)
    assert equal(collect(resumed, 2), first[2])


def test_epochs_and_seeds_differ_in_order_crops_and_masks(photographs):
    def by_image(seed, epoch):
        batch = collect(training(photographs.train, seed=seed)[0], epoch)
        back = batch["index"].argsort()
        return batch["index"], batch["images"][back], batch["noise"][back]

    order, images, noise = by_image(seed=0, epoch=0)
    for seed, epoch in ((0, 1), (1, 0)):
        other_order, other_images, other_noise = by_image(seed, epoch)
        assert not torch.equal(order, other_order)
        same = sum(torch.equal(a, b) for a, b in zip(images, other_images))
        assert same <= 2  # black sky looks the same in any crop
        assert all(not torch.equal(a, b) for a, b in zip(noise, other_noise))


def test_images_of_one_epoch_have_masks_of_their_own(photographs):
    noise = collect(training(photographs.train)[0], 0)["noise"]
    assert len({tuple(row.tolist()) for row in noise}) == 40
    assert 0 <= noise.min() and noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.03


def test_iterating_draws_nothing_from_the_global_generators(photographs):
    for workers in (0, 2):
        batches = [training(photographs.train, workers=workers)[0], validation(photographs.val, workers=workers)[0]]
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        for each in batches:
            collect(each)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert random.getstate() == before[2]


def test_every_image_comes_at_most_once_an_epoch(photographs):
    batches, _ = training(photographs.train, batch_size=8, accum_iter=2)
    assert len(batches) == 4  # 40 images are 2 whole steps of 16
    seen = set()
    for epoch in range(12):
        index = collect(batches, epoch)["index"].tolist()
        assert len(index) == len(set(index)) == 32
        seen.update(index)
    assert seen == set(range(40))  # those left over have their turn in another epoch


@pytest.mark.parametrize(
    ("n_images", "batch_size", "accum_iter", "batches"),
    [(10, 5, 1, 2), (10, 4, 1, 2), (10, 3, 2, 2), (11, 2, 2, 4), (10, 10, 1, 1), (10, 5, 2, 2), (9, 5, 2, 0)],
)
def test_an_epoch_is_cut_to_whole_optimizer_steps(n_images, batch_size, accum_iter, batches):
    order = loader.BatchOrder(n_images, batch_size, accum_iter, seed=0)
    order.set_epoch(4)
    passed = list(order)
    assert len(passed) == len(order) == batches
    assert all(len(batch) == batch_size for batch in passed)
    assert {epoch for batch in passed for epoch, _ in batch} <= {4}


def test_gradient_accumulation_sees_the_same_images_as_one_large_batch(photographs):
    large = collect(training(photographs.train, batch_size=16)[0], 3)
    small = collect(training(photographs.train, batch_size=4, accum_iter=4)[0], 3)
    assert equal(large, small)


def test_validation_covers_every_image_once_with_masks_that_no_seed_moves(demo_dir, photographs):
    first = collect(validation(photographs.val, batch_size=16)[0])
    assert first["index"].tolist() == list(range(40))
    torch.manual_seed(77)
    other = open_folder(demo_dir, max_images=40, seed=5)
    assert other.train.paths.tolist() != photographs.train.paths.tolist()
    again = collect(validation(other.val.subset(np.arange(0, 200, 5)), batch_size=7)[0])
    assert equal(first, again)
    assert len({tuple(row.tolist()) for row in first["noise"]}) == 40


# An even share of the training images


def counts(labels, chosen, n_classes):
    return np.bincount(np.asarray(labels)[chosen], minlength=n_classes).tolist()


def test_a_subset_takes_an_even_share_of_every_class():
    labels = np.repeat(np.arange(4), 50)
    assert counts(labels, sources.even_subset(labels, 4, 40, seed=0), 4) == [10, 10, 10, 10]
    assert sorted(counts(labels, sources.even_subset(labels, 4, 42, seed=0), 4)) == [10, 10, 11, 11]


def test_a_class_that_is_short_gives_all_it_has_and_the_others_fill_up():
    labels = np.repeat([0, 1, 2], [3, 50, 50])
    chosen = sources.even_subset(labels, 3, 33, seed=0)
    assert counts(labels, chosen, 3) == [3, 15, 15]
    labels = np.repeat([0, 1, 2, 3], [1, 5, 100, 0])
    assert counts(labels, sources.even_subset(labels, 4, 60, seed=0), 4) == [1, 5, 54, 0]


def test_a_subset_smaller_than_the_classes_has_one_image_each_of_seeded_classes():
    labels = np.tile(np.arange(100), 5)
    chosen = sources.even_subset(labels, 100, 20, seed=0)
    assert len(set(labels[chosen])) == len(chosen) == 20
    other = sources.even_subset(labels, 100, 20, seed=1)
    assert set(labels[chosen]) != set(labels[other])
    assert set(labels[chosen]) != set(range(20))  # not the first ones


def test_a_subset_is_sorted_distinct_and_decided_by_the_seed():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    chosen = sources.even_subset(labels, 7, 100, seed=3)
    assert len(chosen) == 100 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, sources.even_subset(labels, 7, 100, seed=3))
    assert chosen.tolist() != sources.even_subset(labels, 7, 100, seed=4).tolist()
    labels = np.tile(np.arange(5), 40)  # the first ten images of every class are the first 50
    assert sources.even_subset(labels, 5, 50, seed=3).tolist() != list(range(50))


def test_max_images_reduces_training_images_and_leaves_classes_and_validation_whole(demo_dir):
    everything, few, one = (open_folder(demo_dir, max_images=n) for n in (None, 30, 1))
    assert len(few.train) == 30 and np.bincount(few.train.labels).tolist() == [3] * 10
    assert len(one.train) == 1
    for source in (few, one):
        assert source.classes == everything.classes
        assert source.val.paths.tolist() == everything.val.paths.tolist()
        for i in range(len(source.train)):
            assert Path(source.train.file(i)).parent.name == source.classes[source.train.labels[i]]
    assert open_folder(demo_dir, max_images=30).train.paths.tolist() == few.train.paths.tolist()
    assert open_folder(demo_dir, max_images=30, seed=1).train.paths.tolist() != few.train.paths.tolist()
    assert len(open_folder(demo_dir, max_images=5000).train) == 1000


# Broken files


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


@pytest.mark.parametrize("max_images", [None, 20])
def test_workers_that_are_not_forked_give_the_same_batches(max_images, monkeypatch):
    """As on macOS, on Windows, and on Linux from Python 3.14 on."""
    images = open_folder(None, max_images=max_images).train
    here = [batch["images"] for batch in training(images, with_labels=True)[0]][:2]
    batches, _ = training(images, workers=1, with_labels=True)
    monkeypatch.setattr(batches.loader, "multiprocessing_context", "spawn")
    there = [batch["images"] for batch, _ in zip(batches, range(2))]
    assert all(torch.equal(a, b) for a, b in zip(here, there)) and len(there) == 2
