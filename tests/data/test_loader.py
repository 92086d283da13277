"""Batches: order, crops, masks, shares of the data, worker processes."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from maekit.data import crops, loader, sources
from maekit.data.pixels import Pixels
from tests.support.batches import (
    collect,
    equal,
    open_folder,
    training,
    validation,
    write_annotated,
)


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


def test_worker_processes_change_nothing(demo_images):
    alone, _ = training(demo_images.train, workers=0, with_labels=True)
    shared, _ = training(demo_images.train, workers=2, with_labels=True)
    for epoch in (0, 1):
        assert equal(collect(alone, epoch), collect(shared, epoch))
    alone, _ = validation(demo_images.val, workers=0)
    shared, _ = validation(demo_images.val, workers=2)
    assert equal(collect(alone), collect(shared))


def test_an_epoch_is_the_same_whatever_was_drawn_before(demo_images):
    one, _ = training(demo_images.train)
    first = [collect(one, epoch) for epoch in range(3)]
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    resumed, _ = training(demo_images.train)
    assert equal(collect(resumed, 2), first[2])


def test_epochs_and_seeds_differ_in_order_crops_and_masks(demo_images):
    def by_image(seed, epoch):
        batch = collect(training(demo_images.train, seed=seed)[0], epoch)
        back = batch["index"].argsort()
        return batch["index"], batch["images"][back], batch["noise"][back]

    order, images, noise = by_image(seed=0, epoch=0)
    for seed, epoch in ((0, 1), (1, 0)):
        other_order, other_images, other_noise = by_image(seed, epoch)
        assert not torch.equal(order, other_order)
        same = sum(torch.equal(a, b) for a, b in zip(images, other_images))
        assert same <= 2  # black sky looks the same in any crop
        assert all(not torch.equal(a, b) for a, b in zip(noise, other_noise))


def test_images_of_one_epoch_have_masks_of_their_own(demo_images):
    noise = collect(training(demo_images.train)[0], 0)["noise"]
    assert len({tuple(row.tolist()) for row in noise}) == 40
    assert 0 <= noise.min() and noise.max() < 1
    assert abs(noise.mean() - 0.5) < 0.03


def test_iterating_draws_nothing_from_the_global_generators(demo_images):
    for workers in (0, 2):
        batches = [training(demo_images.train, workers=workers)[0], validation(demo_images.val, workers=workers)[0]]
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        for each in batches:
            collect(each)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert random.getstate() == before[2]


def test_every_image_comes_at_most_once_an_epoch(demo_images):
    batches, _ = training(demo_images.train, batch_size=8, accum_iter=2)
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


def test_gradient_accumulation_sees_the_same_images_as_one_large_batch(demo_images):
    large = collect(training(demo_images.train, batch_size=16)[0], 3)
    small = collect(training(demo_images.train, batch_size=4, accum_iter=4)[0], 3)
    assert equal(large, small)


def test_validation_covers_every_image_once_with_masks_that_no_seed_moves(demo_dir, demo_images):
    first = collect(validation(demo_images.val, batch_size=16)[0])
    assert first["index"].tolist() == list(range(40))
    torch.manual_seed(77)
    other = open_folder(demo_dir, max_images=40, seed=5)
    assert other.train.paths.tolist() != demo_images.train.paths.tolist()
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


@pytest.mark.slow
@pytest.mark.parametrize("max_images", [None, 20])
def test_workers_that_are_not_forked_give_the_same_batches(max_images, monkeypatch):
    """As on macOS, on Windows, and on Linux from Python 3.14 on."""
    images = open_folder(None, max_images=max_images).train
    here = [batch["images"] for batch in training(images, with_labels=True)[0]][:2]
    batches, _ = training(images, workers=1, with_labels=True)
    monkeypatch.setattr(batches.loader, "multiprocessing_context", "spawn")
    there = [batch["images"] for batch, _ in zip(batches, range(2))]
    assert all(torch.equal(a, b) for a, b in zip(here, there)) and len(there) == 2
