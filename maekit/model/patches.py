"""Patches and masking: what a masked autoencoder does to images before and after its transformers."""

import numpy as np
import torch
from torch import nn

from ..settings.architectures import visible_patches


def interpolate_positions(table, grid):
    """A position table (1, 1 + g^2, D) for another grid (1, 1 + grid^2, D): bicubic, the CLS row as it is.

    As upstream's util/pos_embed.py.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def random_masking(x, mask_ratio, noise):
    """Keep the patches of least noise, as many as architectures.visible_patches says; upstream's rule.

    x (N, L, D), noise (N, L) -> visible (N, kept, D), mask (N, L), ids_restore (N, L).
    """
    ids_keep, ids_restore = in_order_of_noise(noise, mask_ratio)
    return rows_at(x, ids_keep), mask_of(ids_restore, ids_keep.shape[1]), ids_restore


def hidden_patches(noise, mask_ratio):
    """Mask (N, L), 1 where hidden, of mask noise (N, L)."""
    ids_keep, ids_restore = in_order_of_noise(noise, mask_ratio)
    return mask_of(ids_restore, ids_keep.shape[1])


def in_order_of_noise(noise, mask_ratio):
    """ids_keep (N, kept), the patches of least noise, and ids_restore (N, L), the rank of each patch's noise.

    Where none is hidden all are in place, whatever their noise: a transformer's tokens have no order.
    """
    in_place = torch.arange(noise.shape[1], device=noise.device).expand(len(noise), -1)
    kept = visible_patches(noise.shape[1], mask_ratio)
    if kept == noise.shape[1]:
        return in_place, in_place
    ids_shuffle = noise.argsort(dim=1)
    return ids_shuffle[:, :kept], torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, in_place)


def mask_of(ids_restore, kept):
    """float32 (N, L), 1 where a patch's rank is `kept` or more."""
    return (ids_restore >= kept).float()


def rows_at(x, ids):
    """x (N, L, D), ids (N, K) -> (N, K, D): rows `ids` of each x."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


def patches_at(images, patch_size, ids):
    """(N, C, H, W), ids (N, K) -> (N, K, C * patch^2): patches by their numbers, row by row, values channel by channel."""
    n, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(n, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    return grid[torch.arange(n, device=ids.device)[:, None], ids // columns, ids % columns].flatten(2)


def patchify(images, patch_size):
    """(N, C, H, W) -> (N, L, patch^2 * C), patches row by row, values row by row with channels last."""
    n, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(n, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(n, rows * columns, patch_size**2 * channels)


def unpatchify(patches, patch_size):
    """(N, L, patch^2 * C) -> (N, C, H, W) for a square image; the inverse of patchify."""
    n, length, values = patches.shape
    side = round(length**0.5)
    channels = values // patch_size**2
    x = patches.reshape(n, side, side, patch_size, patch_size, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(n, channels, side * patch_size, side * patch_size)


def patch_statistics(patches):
    """Mean and deviation of each patch, (N, L, 1) each: norm_pix_loss's, unbiased variance plus 1e-6."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def sincos_positions(width, grid):
    """Fixed 2-D sine-cosine table (1, 1 + grid^2, width) of MoCo v3 and MAE; the CLS row is zero.

    The first half of a row encodes the column, the second the row, each as sines then cosines.
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    angles = np.arange(grid)[:, None] * frequencies
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (grid, width / 2)
    table = np.concatenate([np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table])).float()[None]
