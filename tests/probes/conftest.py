"""A small encoder and images for the probes."""

import pytest
import torch

from maekit.data import sources
from maekit.data.datasets import TrainImages
from maekit.model.mae import build_mae
from maekit.settings.typed import DataSettings
from tests.support.probing import MODEL, PIXELS


@pytest.fixture(scope="session")
def source(demo_dir):
    return sources.open_source(DataSettings(str(demo_dir), 40, 0), 0)


@pytest.fixture(scope="session")
def batch(source):
    """Sixteen normalised training images with noise and labels."""
    dataset = TrainImages(source.train, 64, 64, 0, with_labels=True)
    samples = [dataset[0, i] for i in range(0, 32, 2)]
    images = torch.stack([s["images"] for s in samples])
    return (
        PIXELS.normalize(images),
        torch.stack([s["noise"] for s in samples]),
        torch.tensor([s["labels"] for s in samples]),
    )


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return build_mae(MODEL.name, img_size=64)
