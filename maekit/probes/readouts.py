"""Read-outs: how the tokens of an encoder become one vector of features."""

import torch

from ..settings.probes import CLS


def read(tokens, readout):
    """Features (N, D) of an encoder's tokens (N, 1 + L, D), the CLS token first.

    cls: that token. mean: the mean of the others, of the visible ones where the image is masked; float32.
    """
    return tokens[:, 0] if readout == CLS else tokens[:, 1:].mean(dim=1, dtype=torch.float32)
