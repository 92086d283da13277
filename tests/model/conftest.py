"""Small models."""

import pytest
import torch

from maekit.model.mae import build_mae


@pytest.fixture(scope="module")
def small():
    """An untrained model with 16 patches an image."""
    torch.manual_seed(0)
    return build_mae("mae_vit_demo_patch8", img_size=32)


@pytest.fixture
def another():
    """A model of the same shape as `small` with other weights."""
    torch.manual_seed(99)
    return build_mae("mae_vit_demo_patch8", img_size=32)
