"""MNIST's IDX files and CIFAR's python batches: pixels, labels and names as their authors wrote them, and damaged ones."""

import gzip
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.data import arrays, cache, sources
from maekit.data.crops import CROPS
from maekit.data.datasets import TrainImages, ValImages
from maekit.errors import InputError
from maekit.settings.typed import DataSettings
from tests.support.commands import complaint

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
WITHOUT_CODE = ("--model", "enc16d1h2p4", "--decoder_type", "dec16d1h2")


def write_idx(file, values):
    """As Yann LeCun's page describes the format."""
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def idx_arrays(seed=0, n=(12, 6)):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 3) for count in n]


def write_set(folder, *, prefix="", dash="-", packed=".gz", test="t10k", arrays_of=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in zip(("train", test), arrays_of or idx_arrays()):
        write_idx(folder / f"{prefix}{name}-images{dash}idx3-ubyte{packed}", images)
        write_idx(folder / f"{prefix}{name}-labels{dash}idx1-ubyte{packed}", labels)
    return folder


def write_cifar(folder, kind=10, protocol=2, seed=0):
    """As its page describes the batches; {file: (n, 32, 32, 3) images}."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tens = kind == 10
    names = [b"airplane", b"automobile", b"bird"]
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if tens else ["train", "test"]
    written = {}
    for file in files:
        images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
        labels = {b"labels" if tens else b"fine_labels": [2, 0, 1, 2]}
        batch = {b"data": images.transpose(0, 3, 1, 2).reshape(4, -1), **labels, b"filenames": [b"x.png"] * 4}
        (folder / file).write_bytes(pickle.dumps(batch, protocol))
        written[file] = images
    meta = {b"label_names" if tens else b"fine_label_names": names}
    (folder / ("batches.meta" if tens else "meta")).write_bytes(pickle.dumps(meta, protocol))
    return written


def opened(folder, **settings):
    return sources.open_source(DataSettings(str(folder), None, 0, **settings), seed=0)


# IDX


@pytest.mark.parametrize("layout", ["", "MNIST/raw", "raw"])
@pytest.mark.parametrize(
    "names",
    [
        {},
        {"packed": ""},
        {"dash": "."},
        {"dash": ".", "packed": ""},
        {"prefix": "emnist-letters-", "test": "test"},
    ],
)
def test_idx_files_give_their_pixels_and_labels(tmp_path, layout, names):
    write_set(tmp_path / layout, **names)
    source = opened(tmp_path)
    assert (source.name, source.classes) == ("IDX", ["0", "1", "2"])
    for images, (pixels, labels) in zip((source.train, source.val), idx_arrays()):
        assert len(images) == len(pixels)
        np.testing.assert_array_equal(images.labels, labels)
        whole = ValImages(images, 28, 49, with_labels=True, crop=CROPS["whole"])
        for i in range(len(images)):
            np.testing.assert_array_equal(whole[i]["images"].numpy(), np.stack([pixels[i]] * 3))
            assert whole[i]["labels"] == labels[i]


def test_a_subset_and_a_cache_have_the_same_images(tmp_path):
    write_set(tmp_path / "set")
    whole, subset = opened(tmp_path / "set"), opened(tmp_path / "set")
    subset = sources.open_source(DataSettings(str(tmp_path / "set"), 6, 0), seed=1)
    assert len(subset.train) == 6 and sorted(subset.train.labels) == [0, 0, 1, 1, 2, 2]
    stored = cache.cached(subset, str(tmp_path / "cache"), 28, lambda line: None)
    for i in range(6):
        number = int(subset.train.file(i).rpartition("[")[2][:-1])
        expected = TrainImages(whole.train, 28, 49, 0, crop=CROPS["whole"])[0, number]["images"]
        for images in (subset.train, stored.train):
            assert torch.equal(TrainImages(images, 28, 49, 0, crop=CROPS["whole"])[0, i]["images"], expected)


def test_another_pixel_or_label_is_another_set(tmp_path):
    fingerprints, signatures = [], []
    for i in range(3):
        made = idx_arrays()
        if i == 1:
            made[0][0][5, 3, 3] ^= 1
        elif i == 2:
            made[1][1][2] = (made[1][1][2] + 1) % 3
        source = opened(write_set(tmp_path / "set", arrays_of=made))
        fingerprints.append(source.fingerprint)
        signatures.append((source.train.signature(), source.val.signature()))
    assert len(set(fingerprints)) == 3 and len(set(signatures)) == 3
    assert opened(write_set(tmp_path / "elsewhere", packed="")).fingerprint == fingerprints[0]


def truncated(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-300])
    return file, "cannot be read"


def no_gzip(folder):
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(b"<html>404</html>")
    return file, "cannot be read"


def short(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    return file, "has 9423 bytes where its header says 9424"


def labels_for_images(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    shutil.copy(folder / "train-labels-idx1-ubyte.gz", file)
    return file, "is no IDX file of 3 dimensions of bytes"


def floats(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(gzip.decompress(file.read_bytes()))
    data[2] = 0x0D
    file.write_bytes(gzip.compress(bytes(data)))
    return file, "is no IDX file of 3 dimensions of bytes"


def fewer_labels(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(11, np.uint8))
    return folder, "12 training images, but 11 labels"


def unknown_label(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.array([0, 1, 2, 3, 0, 0], np.uint8))
    return folder, "a validation image has label 3, which is none of the 3 classes"


def no_labels(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    return folder, "has t10k-images-idx3-ubyte.gz but no t10k-labels-idx1-ubyte.gz"


def no_test(folder):
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    return folder, "has no t10k-images-idx3-ubyte.gz"


def no_train(folder):
    (folder / "train-images-idx3-ubyte.gz").unlink()
    return folder, "has no train-images-idx3-ubyte.gz"


def two_sets(folder):
    write_set(folder, prefix="emnist-letters-")
    return folder, "has the IDX files of 2 sets"


def no_images(folder):
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((0, 28, 28), np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(0, np.uint8))
    return folder, "has no training images"


@pytest.mark.parametrize(
    "damage",
    [truncated, no_gzip, short, labels_for_images, floats, fewer_labels, unknown_label, no_labels]
    + [no_test, no_train, two_sets, no_images],
)
def test_idx_files_that_cannot_be_used_are_one_line_that_names_them(tmp_path, damage):
    write_set(tmp_path)
    named, said = damage(tmp_path)
    line = complaint(*WITHOUT_CODE, "--input_size", "28", "--imagenet_dir", str(tmp_path), "--dry_run")
    assert str(named) in line and said in line


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_as_debian_ships_it():
    source = opened(FASHION)
    assert (len(source.train), len(source.val), len(source.classes)) == (60_000, 10_000, 10)
    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    pixels = source.train._images / 255
    assert abs(pixels.mean() - 0.2860) < 1e-4 and abs(pixels.std() - 0.3530) < 1e-4  # as published everywhere


# CIFAR


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("kind", "folder"), [(10, "cifar-10-batches-py"), (100, "cifar-100-python"), (10, ".")])
def test_python_batches_give_their_pixels_labels_and_names(tmp_path, kind, folder, protocol):
    home = tmp_path / "set"
    written = write_cifar(home / folder, kind, protocol)
    source = opened(home)
    assert (source.name, source.classes) == ("CIFAR", ["airplane", "automobile", "bird"])
    training = np.concatenate([images for file, images in written.items() if not file.startswith("test")])
    testing = np.concatenate([images for file, images in written.items() if file.startswith("test")])
    for images, expected in ((source.train, training), (source.val, testing)):
        assert images.labels.tolist() == [2, 0, 1, 2] * (len(expected) // 4)
        whole = ValImages(images, 32, 64, crop=CROPS["whole"])
        found = np.stack([whole[i]["images"].permute(1, 2, 0).numpy() for i in range(len(images))])
        np.testing.assert_array_equal(found, expected)


class Runs:
    """What an attacker puts into a pickle."""

    def __init__(self, function, *words):
        self.call = function, words

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_code_of_a_batch_is_run(tmp_path, protocol):
    import builtins
    import os

    write_cifar(tmp_path / "set", protocol=protocol)
    canary = tmp_path / "canary"
    for number, evil in enumerate((Runs(os.mkdir, str(canary)), Runs(builtins.exec, f"open({str(canary)!r}, 'w')"))):
        file = tmp_path / "set" / f"data_batch_{number + 2}"
        whole = pickle.loads(file.read_bytes(), encoding="bytes")
        file.write_bytes(pickle.dumps({**whole, b"more": evil}, protocol))
        line = complaint(*WITHOUT_CODE, "--input_size", "32", "--imagenet_dir", str(tmp_path / "set"), "--dry_run")
        assert str(file) in line and "its pickle asks for" in line and not canary.exists()
        file.write_bytes(pickle.dumps(whole, protocol))


def cut_off(folder):
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-200])
    return file, "is damaged"


def missing_batch(folder):
    (folder / "data_batch_3").unlink()
    return folder, "has no data_batch_3"


def missing_names(folder):
    (folder / "batches.meta").unlink()
    return folder, "has no batches.meta"


def other_rows(folder):
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 0]}))
    return folder / "test_batch", "has no rows of 3,072 bytes"


def text(folder):
    (folder / "test_batch").write_text("no such file\n")
    return folder / "test_batch", "is damaged"


def unknown_class(folder):
    file = folder / "test_batch"
    found = pickle.loads(file.read_bytes(), encoding="bytes")
    file.write_bytes(pickle.dumps({**found, b"labels": [0, 1, 2, 7]}))
    return folder, "a validation image has label 7"


@pytest.mark.parametrize("damage", [cut_off, missing_batch, missing_names, other_rows, text, unknown_class])
def test_batches_that_cannot_be_used_are_one_line_that_names_them(tmp_path, damage):
    write_cifar(tmp_path / "set")
    named, said = damage(tmp_path / "set")
    line = complaint(*WITHOUT_CODE, "--input_size", "32", "--imagenet_dir", str(tmp_path / "set"), "--dry_run")
    assert str(named) in line and said in line


# Tiny-ImageNet


def write_tiny(root):
    rng = np.random.default_rng(0)
    wnids = {}
    for wnid in ("n01443537", "n01629819", "n01641577"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n0_0.JPEG\t0\t0\t62\t62\n")
        for i in range(3):
            pixels = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            pixels.save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    for i in range(5):
        wnids[f"val_{i}.JPEG"] = sorted(("n01443537", "n01629819", "n01641577"))[(i * 2) % 3]
        for split in ("val", "test"):
            Image.fromarray(np.full((64, 64, 3), i, np.uint8)).save(root / split / "images" / f"{split}_{i}.JPEG")
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62" for name, wnid in reversed(wnids.items())]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return wnids


def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path):
    wnids = write_tiny(tmp_path)
    source = opened(tmp_path)
    assert (source.name, len(source.train), len(source.val)) == ("folders", 9, 5)
    for i in range(5):
        assert source.classes[source.val.labels[i]] == wnids[Path(source.val.file(i)).name]
    for i in range(9):
        assert source.classes[source.train.labels[i]] == Path(source.train.file(i)).parent.parent.name


def test_a_class_or_image_that_tiny_imagenets_table_lacks_is_one_line(tmp_path):
    write_tiny(tmp_path)
    table = tmp_path / "val" / "val_annotations.txt"
    for text, said in (
        (table.read_text().replace("n01629819", "n99"), "val_2.JPEG has class n99"),
        (table.read_text().splitlines()[0], "has no class"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            _ = opened(tmp_path).val.labels


def test_a_folder_of_images_is_none_of_arrays(tmp_path):
    (tmp_path / "train").mkdir()
    assert arrays.open_splits(tmp_path) is None
    assert arrays.open_splits(tmp_path / "not there") is None
    (tmp_path / "test").write_text("a stray file of a name that CIFAR-100 has, too")
    assert arrays.open_splits(tmp_path) is None
