"""What an encoder's features and the errors of its reconstructions look like, whatever a classifier can read from them."""

import math

import numpy as np
import torch

from .. import distributed, files
from ..model.patches import patch_statistics, patchify
from .probe import Probe

# Columns, and the share of the pixels' variance that ends each band of principal components (arXiv 2402.11337).
BANDS = {"mse_90": 0.90, "mse_9": 0.99, "mse_1": 1.0}
N_PATCHES = 100_000  # of training images, that the components are of


class Representation(Probe):
    """Effective rank of the features and error of the reconstruction by band, on validation images, every few epochs.

    Ranks are of whole images, by each of READOUTS; errors of masked ones, as val_mse, which they add up to. Nothing of it
    is trained. At the end of the run the features are written down, see RunFolder.features.
    """

    @classmethod
    def of(cls, task):
        return cls(task)

    def __init__(self, task):
        self.task = task
        self.bands = None

    def prepare(self):
        if self.bands is None:
            task = self.task
            self.bands = Bands.of(task.loaders.some(-(-N_PATCHES // task.run.model.patches)), task.pixels, task.mae)

    def means(self, out, images):
        errors = self.bands.errors(out.pred.float() - targets(self.task.mae, images), out.mask)
        return dict(zip(BANDS, errors.unbind()))

    def score(self, means):
        return {**self._ranks(self.task.mae), **{column: means[column] for column in BANDS}}

    def baseline(self):
        mae = self.task.build().to(self.task.device.torch)
        return {f"untrained_{column}": rank for column, rank in self._ranks(mae).items()}

    def ending(self, folder):
        features, labels = self._features(self.task.mae)
        if distributed.is_main():
            halves = {name: values.cpu().numpy().astype(np.float16) for name, values in features.items()}
            files.write_arrays(folder.features, {**halves, "labels": labels.cpu().numpy().astype(np.int32)})

    def _features(self, mae):
        """{read-out: (N, D)} and labels (N,) of all validation images, in their order, in every process."""
        n, (features, labels) = len(self.task.loaders.validation.dataset), self.task.validation_features(mae)
        whole = {name: distributed.gather_interleaved(values, n) for name, values in features.items()}
        return whole, distributed.gather_interleaved(labels, n)

    def _ranks(self, mae):
        return {f"rank_{name}": effective_rank(values) for name, values in self._features(mae)[0].items()}


class Bands:
    """Principal components of patches, in bands of the variance that they explain.

    covariance: (P, P) of patches of P values. The first band holds the components that explain 90 % of the variance, as few
    as do, the second those up to 99 %, the third the rest.
    """

    def __init__(self, covariance):
        values, vectors = torch.linalg.eigh(covariance.cpu().double())
        share = values.flip(0).clamp(min=0).cumsum(0)
        share = share / share[-1].clamp(min=torch.finfo(share.dtype).tiny)
        # a component belongs to the band in which the variance before it lies
        before = torch.cat([share.new_zeros(1), share[:-1]])
        ends = torch.tensor(list(BANDS.values()), dtype=share.dtype)
        band = torch.bucketize(before, ends, right=True).clamp(max=len(BANDS) - 1)
        self.components = vectors.flip(1).to(covariance.device, torch.float32)
        self.members = torch.nn.functional.one_hot(band, len(BANDS)).to(self.components)  # (P, 3)

    @classmethod
    def of(cls, batches, pixels, mae):
        """Of the patches of images, an iterable of batches, in the space of an autoencoder's loss. Of all processes."""
        n, mean, square = 0.0, 0.0, 0.0
        for batch in batches:
            patches = targets(mae, pixels.normalize(batch["images"].to(pixels.device))).flatten(0, 1).cpu().double()
            n, mean, square = n + len(patches), mean + patches.sum(0), square + patches.T @ patches
        sums = torch.cat([square, mean[None], torch.full_like(mean, n)[None]])
        sums = distributed.add(sums.to(pixels.device, torch.float64 if pixels.device.type != "mps" else torch.float32))
        n, mean = sums[-1, 0], sums[-2] / sums[-1, 0]
        return cls(sums[:-2] / n - mean[:, None] * mean)

    def errors(self, difference, mask):
        """Mean squared error over hidden patches by band, (3,): of difference (N, L, P), mask (N, L), 1 where hidden.

        They add up to the mean squared error itself.
        """
        square = ((difference @ self.components) ** 2 * mask[:, :, None]).sum((0, 1)) / mask.sum()
        return (square[:, None] * self.members).sum(0) / difference.shape[2]


def targets(mae, images):
    """What an autoencoder's decoder is to predict of normalised images (N, 3, H, W): (N, L, P)."""
    patches = patchify(images, round((images.shape[-1] ** 2 / (mae.pos_embed.shape[1] - 1)) ** 0.5))
    if mae.norm_pix_loss:
        mean, std = patch_statistics(patches)
        patches = (patches - mean) / std
    return patches


def effective_rank(features, eps=1e-7):
    """RankMe (arXiv 2210.02885) of features (N, D): exp of the entropy of the singular values' shares, 1 to min(N, D).

    Comparable within one architecture and data set alone; nan of features that are no numbers.
    """
    if not features.isfinite().all():
        return math.nan
    features = features.cpu().double()
    small = features.T @ features if len(features) > features.shape[1] else features @ features.T
    singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
    share = singular / singular.sum() + eps
    return float((-(share * share.log()).sum()).exp())
