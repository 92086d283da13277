"""Images of the demo as data sets of the hub, and a cache of its own for each test."""

import datasets
import pytest

from tests.support.hub import CLASSES, dataset_dict, save

PER_CLASS = {"train": 40, "validation": 5}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What the library caches goes to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def files(demo_dir):
    """{split: [(file, label)]} of three demo classes; images of a class are not in a row."""
    base = demo_dir / "Data" / "CLS-LOC"
    table = [line.split(",") for line in (demo_dir / "LOC_val_solution.csv").read_text().splitlines()[1:]]
    validation = [[base / "val" / f"{stem}.JPEG" for stem, words in table if words.split()[0] == c] for c in CLASSES]
    of_class = {"train": [sorted((base / "train" / c).glob("*.JPEG")) for c in CLASSES], "validation": validation}
    found = {}
    for split, n in PER_CLASS.items():
        found[split] = [(str(of_class[split][label][i]), label) for i in range(n) for label in range(len(CLASSES))]
    return found


@pytest.fixture(scope="session")
def saved(files, tmp_path_factory):
    """A folder that save_to_disk wrote; not to be changed."""
    return save(dataset_dict(files), tmp_path_factory.mktemp("hub") / "saved")
