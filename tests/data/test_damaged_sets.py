"""The other files that data come in, damaged at random: tables of labels, IDX files, CIFAR's batches, caches."""

import json
import pickle
import shutil

import numpy as np
import pytest

from maekit.data import cache
from maekit.errors import InputError
from maekit.settings import label_map, published, start
from tests.data.test_arrays import write_cifar, write_set
from tests.support import write_ilsvrc
from tests.support.batches import open_folder, write_annotated, write_folders
from tests.support.commands import resolved
from tests.support.damage import damaged_bytes, damaged_json, damaged_table, how_many

HUGGING_FACE = {"model_type": "vit_mae", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDES = {"image_size": [32, 32], "patch_size": 8, "num_channels": 3, "intermediate_size": 64, "hidden_act": "gelu"}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def tiny(root):
    """A folder of images as Tiny-ImageNet has them, labels of validation in a table."""
    write_folders(root, train=2, val=2)
    (root / "val" / "images").mkdir()
    lines = []
    for file in sorted((root / "val").glob("*/*.JPEG")):
        lines.append(f"{file.name}\t{file.parent.name}\t0\t0\t62\t62\n")
        shutil.move(file, root / "val" / "images")
    for name in ("ant", "bee", "cat"):
        (root / "val" / name).rmdir()
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


SETS = {  # what writes a data set, and which of its files are damaged
    "ilsvrc": (lambda root: write_ilsvrc(root, train_images=6, val_images=6), "LOC_val_solution.csv"),
    "annotated": (write_annotated, "Annotations/CLS-LOC/val/*.xml"),
    "tiny": (tiny, "val/val_annotations.txt"),
    "idx": (lambda root: write_set(root, packed=""), "*ubyte"),
    "packed": (write_set, "*ubyte.gz"),
    "cifar10": (lambda root: write_cifar(root / "cifar-10-batches-py"), "cifar*/*"),
    "cifar100": (lambda root: write_cifar(root / "cifar-100-python", 100), "cifar*/*"),
}
TABLES = ("LOC_val_solution.csv",)


def other_pickle(data, rng):
    """A pickle in which a value is another one."""
    value = pickle.loads(data, encoding="bytes")
    key = list(value)[rng.integers(len(value))]
    odd = (None, 3, "text", b"text", [None], [[1]], {}, [1.5], ["a"], [10**30], np.zeros(3), np.zeros((2, 2), np.int8))
    value[key] = odd[rng.integers(len(odd))]
    return pickle.dumps(value)


@pytest.mark.parametrize("kind", SETS)
def test_a_damaged_data_set_is_read_or_refused_in_one_line(kind, tmp_path, recwarn):
    write, pattern = SETS[kind]
    write(tmp_path)
    rng, refused, targets = np.random.default_rng(0), 0, sorted(tmp_path.glob(pattern))
    for i in range(how_many(60, 600)):
        file = targets[i % len(targets)]
        content = file.read_bytes()
        if file.name in TABLES:
            file.write_bytes(damaged_table(content.decode(), rng))
        else:
            file.write_bytes(
                other_pickle(content, rng) if kind.startswith("cifar") and i % 2 else damaged_bytes(content, rng)
            )
        try:
            source = open_folder(tmp_path)
            for images in (source.train, source.val):
                assert images.labels is None or (len(images.labels) == len(images) and images.labels.dtype == np.int64)
                assert images.labels is None or images.labels.max() < len(source.classes)
                with images.open(0) as image:
                    assert image.size
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        file.write_bytes(content)
    assert refused and not recwarn.list


def test_a_damaged_label_map_is_read_or_refused_in_one_line(tmp_path):
    rng, refused, file = np.random.default_rng(0), 0, tmp_path / "map.csv"
    for _ in range(how_many(100, 1000)):
        file.write_bytes(damaged_table("class,label\nant,insect\nbee,insect\ncat,mammal\n", rng))
        try:
            label_map.read(str(file)).of(["ant", "bee", "cat"])
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


def test_a_damaged_cache_is_made_again_with_the_same_pixels(tmp_path):
    write_folders(tmp_path, train=24, val=1)
    source, folder = open_folder(tmp_path), tmp_path / "cache"
    whole = cache.cached(source, str(folder), 64, str).train.store
    pixels, rng = [whole.picture(i).pixels.copy() for i in range(72)], np.random.default_rng(0)
    for i in range(how_many(40, 400)):
        kind = (".npz", ".pixels", ".parts")[i % 3]
        if kind == ".parts":  # of a process that was killed
            (whole.path.with_suffix(".npz")).unlink()
            whole.path.rename(whole.path.with_suffix(".draft"))
            lines = json.dumps([0, 1, []]) + "\n" + json.dumps([1, 2, [3]]) + "\n"
            damage = damaged_json(lines.splitlines()[0], rng) if i % 2 else damaged_bytes(lines.encode(), rng)
            whole.path.with_suffix(kind).write_bytes(damage)
        else:
            file = whole.path.with_suffix(kind)
            file.write_bytes(damaged_bytes(file.read_bytes(), rng))
        again = cache.cached(source, str(folder), 64, str).train.store
        assert all(np.array_equal(again.picture(i).pixels, kept) for i, kept in enumerate(pixels))


def test_a_damaged_config_of_others_weights_is_read_or_refused_in_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    rng, refused, text = np.random.default_rng(0), 0, json.dumps({**HUGGING_FACE, **SIDES, **DECODER})
    for _ in range(how_many(150, 1500)):
        (tmp_path / "config.json").write_bytes(damaged_json(text, rng))
        try:
            published.weights_in(tmp_path, str(tmp_path))
            resolved("--demo", "--task", "knn", "--init", tmp_path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


def test_a_damaged_config_of_a_run_to_start_from_is_read_or_refused_in_one_line(tmp_path):
    identity = {
        "norm": "DynamicTanh",
        "dyt_alpha_init": 0.5,
        "model": "enc16d1h2p8",
        "input_size": 32,
        "seed": 0,
        "task": "pretrain",
    }
    folders = {"output_dir": str(tmp_path), "checkpoint_dir": str(tmp_path / "kept")}
    rng, refused, text = np.random.default_rng(0), 0, json.dumps({"identity": identity, "settings": folders})
    (tmp_path / "checkpoint.pth").touch()
    (tmp_path / "summary.json").write_text("{}")
    for _ in range(how_many(150, 1500)):
        (tmp_path / "config.json").write_bytes(damaged_json(text, rng))
        try:
            resolved("--demo", "--task", "knn", "--init", tmp_path)
            start.resumed(str(tmp_path))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused
