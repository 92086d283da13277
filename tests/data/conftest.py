"""Image sets that several files share."""

import numpy as np
import pytest
from PIL import Image

from maekit.data import demo
from tests.support.batches import open_folder


@pytest.fixture(scope="session")
def demo_images(demo_dir):
    """40 training and 40 validation images of the demo."""
    source = open_folder(demo_dir, max_images=40)
    source.val = source.val.subset(np.arange(0, 200, 5))
    return source


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of 500 x 375 JPEGs, ImageNet's usual size: each of the ten photographs twice, upright every third time."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(20):
        photo = Image.open(demo.photograph(demo.PHOTOGRAPHS[i % 10])).convert("RGB")
        size = (375, 500) if i % 3 == 0 else (500, 375)
        for split in ("train", "val"):
            file = root / split / f"class{i % 2}" / f"{i:02d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo.resize(size, Image.LANCZOS).save(file, quality=90 + i // 10)
    return root
