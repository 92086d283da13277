"""Data sets of the Hugging Face hub in local folders: images, labels, splits, columns, classes, fingerprint."""

import json
import multiprocessing
import os
import pickle
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from maekit.data import hub, sources
from maekit.errors import InputError
from tests.support import train_here
from tests.support.batches import center_crop_by_pil, collect, equal, training, validation
from tests.support.hub import (
    CLASSES,
    dataset_dict,
    features,
    message,
    read,
    save,
    save_converted,
    save_named,
    save_split_folders,
    split_of,
)

# Images and labels


LAYOUTS = {
    "save_to_disk": (save, None),
    "split folders": (save_split_folders, None),
    "push_to_hub": (save_named, None),
    "hub conversion": (lambda made, folder: save_converted(made, folder, "160px"), "160px"),
    "hub conversion, only config": (lambda made, folder: save_converted(made, folder, "default"), None),
}


@pytest.mark.parametrize(("write", "config"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_named_images_with_their_pixels_and_labels(files, tmp_path, write, config, capfd):
    folder = write(dataset_dict(files), tmp_path / "flowers")
    capfd.readouterr()
    train, val, classes, fingerprint, _ = hub.open_splits(str(folder), config)
    assert capfd.readouterr() == ("", "")  # no progress bars, no warnings
    assert tuple(classes) == CLASSES
    assert len(fingerprint) == 16 and int(fingerprint, 16)
    for images, split in ((train, "train"), (val, "validation")):
        assert images.root == f"{folder} {split}" and len(images) == len(files[split])
        assert images.labels.dtype == np.int64
        for i, (file, label) in enumerate(files[split]):
            assert images.file(i) == f"{folder} {split}[{i}]"
            assert images.labels[i] == label
            np.testing.assert_array_equal(np.asarray(images.open(i)), np.asarray(Image.open(file)))


def test_batches_hold_the_crops_of_the_images_whatever_the_workers(files, saved):
    train, val, _, _, _ = hub.open_splits(str(saved))
    alone = collect(validation(val, with_labels=True)[0])
    assert equal(alone, collect(validation(val, workers=2, with_labels=True)[0]))
    for i, (file, label) in enumerate(files["validation"]):
        np.testing.assert_array_equal(alone["images"][i].permute(1, 2, 0).numpy(), center_crop_by_pil(file))
        assert alone["labels"][i] == label
    alone = collect(training(train, with_labels=True)[0], 1)
    assert equal(alone, collect(training(train, workers=2, with_labels=True)[0], 1))
    by_index = [files["train"][i][1] for i in alone["index"].tolist()]
    assert alone["labels"].tolist() == by_index


def read_in_child(images, rows):
    return [(images.open(i).convert("RGB").tobytes(), images.file(i), int(images.labels[i])) for i in rows]


@pytest.mark.slow
def test_a_run_on_a_saved_data_set_equals_the_run_on_the_same_files_in_folders(files, saved, tmp_path):
    """Losses and accuracies to the last digit: JPEG bytes, order and labels are the same."""
    for split, folder in (("train", "train"), ("validation", "val")):
        for file, label in files[split]:
            (tmp_path / "folders" / folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "folders" / folder / CLASSES[label])
    rows = {split: sorted(files[split], key=lambda row: (row[1], os.path.basename(row[0]))) for split in files}
    save(dataset_dict(files, **rows), tmp_path / "set")
    flags = (
        "--model",
        "mae_vit_demo_patch8",
        "--input_size",
        "64",
        "--epochs",
        "2",
        "--batch_size",
        "40",
        "--lr",
        "1e-3",
        "--num_workers",
        "0",
        "--alpha",
        "0.5",
        "--probes",
        "all",
        "--max_images",
        "80",
    )
    logs = {}
    for name, flag in (("folders", "--imagenet_dir"), ("set", "--hf_dataset")):
        train_here(*flags, flag, tmp_path / name, "--output_dir", tmp_path / "run" / name, check=0)
        logs[name] = json.loads((tmp_path / "run" / name / "trajectory.json").read_text())["trajectory"]
        config = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert config["data"]["classes"] == 3 and config["data"]["train_images"] == 80
    assert logs["set"] == logs["folders"]
    again = train_here(*flags, "--hf_dataset", tmp_path / "set", "--output_dir", tmp_path / "run" / "set", check=0)
    assert "finished already" in again.stdout


@pytest.mark.slow
def test_images_travel_to_spawned_processes_without_their_bytes(saved):
    train, _, _, _, _ = hub.open_splits(str(saved))
    some = train.subset(np.array([7, 3]))
    assert len(pickle.dumps(some)) < os.path.getsize(next((saved / "train").glob("*.arrow"))) / 5
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_in_child, (some, [1, 0])) == read_in_child(some, [1, 0])


def test_a_subset_keeps_rows_names_and_labels_in_the_order_asked_for(files, saved):
    train, _, _, _, _ = hub.open_splits(str(saved))
    some = train.subset(np.array([50, 4, 31])).subset([2, 0])
    assert len(some) == 2 and some.file(0).endswith("train[31]") and some.root == train.root
    assert some.labels.tolist() == [files["train"][31][1], files["train"][50][1]]
    np.testing.assert_array_equal(np.asarray(some.open(1)), np.asarray(Image.open(files["train"][50][0])))
    chosen = sources.even_subset(train.labels, 3, 7, 0)  # what --max_images does
    assert np.bincount(train.subset(chosen).labels).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_opening_decodes_no_image(files, tmp_path):
    rows = [(b"not an image", label) for _, label in files["train"]]
    train, _, _, _, _ = hub.open_splits(str(save(dataset_dict(files, train=rows), tmp_path / "d")))
    with pytest.raises(OSError, match="cannot identify"):
        train.open(0)


def test_an_image_by_path_is_read_from_that_path(files, tmp_path):
    folder = save(dataset_dict(files), tmp_path / "d")
    train, _, _, _, _ = hub.open_splits(str(folder))
    rows = datasets.Dataset.from_dict({"image": [f for f, _ in files["train"]]}).cast_column("image", datasets.Image())
    by_path = hub.HubImages("x train", rows.cast_column("image", datasets.Image(decode=False)), None)
    np.testing.assert_array_equal(np.asarray(by_path.open(5)), np.asarray(train.open(5)))


@pytest.mark.parametrize("damage", [None, b"", b"\xff\xd8 no JPEG"], ids=["none", "empty", "damaged"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_is_named_and_replaced(files, tmp_path, damage, workers):
    rows = list(files["train"])
    rows[17] = (damage, rows[17][1])
    train, _, _, _, _ = hub.open_splits(str(save(dataset_dict(files, train=rows), tmp_path / "d")))
    said = []
    batch = collect(training(train, workers=workers, said=said)[0], 0)
    assert len(batch["images"]) == 120 and batch["broken"].max() == 17
    assert len(said) == 1 and f"{tmp_path / 'd'} train[17]" in said[0]


def test_an_image_cut_short_is_broken(files, tmp_path):
    rows = list(files["validation"])
    rows[3] = (read(rows[3][0])[:800], rows[3][1])
    _, val, _, _, _ = hub.open_splits(str(save(dataset_dict(files, validation=rows), tmp_path / "d")))
    with pytest.raises(InputError, match=r"validation\[3\]"):  # 1 of 15 is more than one in a hundred
        collect(validation(val)[0])


# Splits, columns, classes


@pytest.mark.parametrize(
    ("there", "used"),
    [
        (("validation", "val", "test"), "validation"),
        (("test", "val"), "val"),
        (("test", "valid"), "valid"),
        (("test",), "test"),
    ],
)
def test_validation_is_the_first_of_its_names(files, tmp_path, there, used):
    splits = {name: files["validation"] if name == used else files["validation"][:2] for name in there}
    made = dataset_dict(files, **{"validation": None, **splits})
    _, val, _, _, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert val.root.endswith(f" {used}") and len(val) == 15


def test_of_several_columns_the_usual_names_are_taken(files, tmp_path):
    def add(rows):
        coarse = datasets.ClassLabel(names=["thing", "animal"])
        rows = rows.rename_columns({"image": "img", "label": "fine_label"})
        rows = rows.add_column("a_coarse", [0] * len(rows)).cast_column("a_coarse", coarse)
        other = split_of([(None, 0)] * len(rows)).remove_columns("label").rename_column("image", "a_mask")
        rows = datasets.concatenate_datasets([other, rows], axis=1)
        return rows.select_columns(["a_mask", "a_coarse", "img", "fine_label"])

    made = datasets.DatasetDict({split: add(rows) for split, rows in dataset_dict(files).items()})
    train, _, classes, _, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert tuple(classes) == CLASSES and train.labels.tolist() == [y for _, y in files["train"]]
    assert train.open(0).size == (96, 96)


def test_integer_labels_become_the_positions_of_their_sorted_values(files, tmp_path):
    plain = features(label=datasets.Value("int32"))
    value = {0: 40, 1: 7, 2: 100}
    made = {split: split_of([(f, value[y]) for f, y in rows], plain) for split, rows in files.items()}
    train, val, classes, _, _ = hub.open_splits(str(save(datasets.DatasetDict(made), tmp_path / "d")))
    assert classes == ["7", "40", "100"]
    position = {0: 1, 1: 0, 2: 2}
    assert train.labels.tolist() == [position[y] for _, y in files["train"]]
    assert val.labels.tolist() == [position[y] for _, y in files["validation"]]

    made["validation"] = split_of([(files["validation"][0][0], 8)], plain)
    said = message(save(datasets.DatasetDict(made), tmp_path / "e"))
    assert "validation" in said and "label 8," in said and "7, 40, 100" in said


def test_validation_labels_go_by_the_names_of_the_training_classes(files, tmp_path):
    turned = features(label=datasets.ClassLabel(names=CLASSES[::-1]))
    val = split_of([(f, 2 - y) for f, y in files["validation"]], turned)
    _, val, classes, _, _ = hub.open_splits(str(save(dataset_dict(files, validation=val), tmp_path / "d")))
    assert tuple(classes) == CLASSES
    assert val.labels.tolist() == [y for _, y in files["validation"]]

    foreign = features(label=datasets.ClassLabel(names=("astronaut", "dog", "coffee")))
    made = dataset_dict(files, validation=split_of(files["validation"], foreign))
    assert "label dog, which is no class" in message(save(made, tmp_path / "e"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_validation_split_without_labels_has_none(files, tmp_path, unlabelled):
    made = dataset_dict(files, validation=[(f, unlabelled) for f, _ in files["validation"]])
    train, val, _, _, _ = hub.open_splits(str(save(made, tmp_path / "d")))
    assert val.labels is None and val.subset([1]).labels is None and train.labels is not None
    assert set(collect(validation(val, with_labels=True)[0])["labels"].tolist()) == {-1}


# Fingerprint


def test_the_fingerprint_is_of_the_content_not_of_its_storage(files, tmp_path):
    prints = {
        hub.open_splits(str(write(dataset_dict(files), tmp_path / str(i))), config)[3]
        for i, (write, config) in enumerate(LAYOUTS.values())
    }
    assert len(prints) == 1


def changed_label(rows):
    return [*rows[:-1], (rows[-1][0], (rows[-1][1] + 1) % 3)]


def changed_image(rows):
    return [*rows[:-1], (rows[0][0], rows[-1][1])]


def changed_order(rows):
    return [rows[1], rows[0], *rows[2:]]


def no_image(rows):
    return [*rows[:-1], (None, rows[-1][1])]


def unlabelled(rows):
    return [(f, -1) for f, _ in rows]


@pytest.mark.parametrize("change", [changed_label, changed_image, changed_order, no_image, unlabelled])
def test_other_content_has_another_fingerprint(files, saved, tmp_path, change):
    made = dataset_dict(files, validation=change(files["validation"]))
    assert hub.open_splits(str(save(made, tmp_path / "d")))[3] != hub.open_splits(str(saved))[3]
