"""Data sets of the hub, made and saved in the layouts that there are."""

import datasets
import pytest

from maekit.data import sources
from maekit.errors import InputError
from maekit.settings.typed import DataSettings

CLASSES = ("astronaut", "chelsea", "coffee")


def features(**columns):
    return datasets.Features({"image": datasets.Image(), **(columns or {"label": datasets.ClassLabel(names=CLASSES)})})


def split_of(rows, kind=None):
    """A Dataset of (file or bytes or None, label) pairs."""
    images = [
        None if x is None else {"bytes": x if isinstance(x, bytes) else read(x), "path": f"{i}.JPEG"}
        for i, (x, _) in enumerate(rows)
    ]
    return datasets.Dataset.from_dict({"image": images, "label": [y for _, y in rows]}, features=kind or features())


def read(file):
    with open(file, "rb") as f:
        return f.read()


def dataset_dict(files, **splits):
    """The demo's DatasetDict, with other splits or some left out (None)."""
    rows = {"train": files["train"], "validation": files["validation"], **splits}
    made = {name: split_of(r) if isinstance(r, list) else r for name, r in rows.items() if r is not None}
    return datasets.DatasetDict(made)


def save(made, folder):
    made.save_to_disk(folder, num_shards=dict.fromkeys(made, 1))  # to count them, datasets 4.0 divides by the images
    return folder


def save_converted(made, folder, config, shards=2):
    """The layout of the hub's parquet conversion: <config>/<split>/NNNN.parquet."""
    for split, rows in made.items():
        (folder / config / split).mkdir(parents=True)
        for i in range(shards):
            rows.shard(shards, i, contiguous=True).to_parquet(folder / config / split / f"{i:04d}.parquet")
    return folder


def save_named(made, folder, prefix="data/"):
    """The layout of push_to_hub: data/<split>-NNNNN-of-NNNNN.parquet."""
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for split, rows in made.items():
        rows.to_parquet(folder / f"{prefix}{split}-00000-of-00001.parquet")
    return folder


def save_split_folders(made, folder):
    for split, rows in made.items():
        (folder / split).mkdir(parents=True)
        rows.to_parquet(folder / split / "part.parquet")
    return folder


def message(name, config=None):
    with pytest.raises(InputError) as raised:
        sources.open_source(DataSettings(None, None, 0, str(name), config), seed=0)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 600
    assert str(name) in text
    return text


CLIENT = """
import json, sys, time
import datasets
from maekit import errors
from maekit.data import hub
for name, config in json.loads(sys.argv[1]):
    start = time.monotonic()
    try:
        train, val, classes, fingerprint, _ = hub.open_splits(name, config)
        said = [train.root, val.root, train.labels.tolist(), len(val), classes, fingerprint, train.open(17).tobytes().hex()]
    except errors.InputError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - start]), flush=True)
"""
