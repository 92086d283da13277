"""Our model, checkpoints and recipes beside upstream's own code (facebookresearch/mae), run and compared.

They need a clone of upstream: at $MAE_CLONE, in mae beside the scripts, or on PYTHONPATH. It is copied, the copy is
patched with compatibility-fix.patch. Without one these tests are skipped, and nothing else shows that the two are equal.
"""

import importlib
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from maekit.data import demo
from maekit.model import upstream
from tests.support import train_here
from tests.support.upstream import SHORT


@pytest.fixture(scope="module", autouse=True)  # without one, nothing else is begun
def clone(tmp_path_factory):
    """A patched copy of the clone that there is."""
    found = upstream.find(os.environ.get("MAE_CLONE") or None)
    if found is None:
        reason = (
            "no clone of upstream found, EQUALITY WITH UPSTREAM WAS NOT TESTED. "
            "Run ./run_comparison.sh --clone_mae, or set MAE_CLONE to the path of a clone."
        )
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("upstream") / "mae"
    subprocess.run(["git", "clone", "--quiet", str(found.path), str(path)], check=True)
    return upstream.find(str(path)).ensure_patched()


@pytest.fixture(scope="module")
def theirs(clone):
    """Import a module of upstream's by its name. Afterwards none of them is loaded or found any more."""
    path, trusted = list(sys.path), torch.serialization.get_safe_globals()
    clone.module()
    yield importlib.import_module
    sys.path[:] = path
    torch.serialization.clear_safe_globals()  # to which upstream's util.misc adds
    torch.serialization.add_safe_globals(trusted)
    for name in list(sys.modules):
        if name.split(".")[0] in ("models_mae", "models_vit", "engine_pretrain", "util"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder for checkpoints of a gigabyte each, gone afterwards."""
    folder = tmp_path_factory.mktemp("room")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def class_folders(room):
    """Crops of two photographs as JPEGs in train/<class>/ and val/<class>/, 4 of each class in each."""
    rng = np.random.default_rng(0)
    for name in ("chelsea.png", "coffee.png"):
        photo = Image.open(demo.photograph(name)).convert("RGB")
        for i in range(8):
            folder = room / "data" / ("train", "val")[i % 2] / name.partition(".")[0]
            folder.mkdir(parents=True, exist_ok=True)
            x, y = rng.integers(photo.width - 240), rng.integers(photo.height - 200)
            photo.crop((x, y, x + 240, y + 200)).save(folder / f"{i}.jpg", quality=95)
    return room / "data"


@pytest.fixture(scope="module")
def ours(room, class_folders):
    """The folder of a pre-training of ours, ViT-B at 224 pixels."""
    train_here(
        *SHORT,
        "--mae_dir",
        "builtin",
        "--input_size",
        "224",
        "--imagenet_dir",
        class_folders,
        "--lr",
        "1e-4",
        "--output_dir",
        room / "ours",
        check=0,
    )
    return room / "ours"
