"""Upstream's numbers, as they were recorded once, and the weights that they are of."""

import json
import zlib

import numpy as np
import torch

from tests.support import KIT

GOLDEN = json.loads((KIT / "tests" / "golden" / "mae_forward.json").read_text())


def close(value, golden):
    """golden to 1e-4 of itself, or 1e-6 where it is nearly zero; lists entry by entry."""
    value, golden = np.asarray(value, dtype=float), np.asarray(golden, dtype=float)
    return value.shape == golden.shape and bool((np.abs(value - golden) <= 1e-4 * np.abs(golden) + 1e-6).all())


def fill_by_rule(mae):
    """Weights by the rule that the golden file states."""
    for name, tensor in mae.state_dict().items():
        if name not in ("pos_embed", "decoder_pos_embed"):
            random = np.random.RandomState(zlib.crc32(name.encode()))
            value = 0.02 * random.standard_normal(tuple(tensor.shape)).astype(np.float32)
            tensor.copy_(torch.from_numpy(value + ("norm" in name and name.endswith("weight"))))
