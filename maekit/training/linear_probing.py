"""Linear probing: a classifier on a frozen encoder."""

import torch
import torch.nn.functional as F
from torch import nn

from ..data.crops import single_try_crop_box
from ..model.formats import to_timm
from ..probes.linear import lars, probe_layers
from . import checkpoint
from .classification import Classification


class LinearProbing(Classification):
    """A linear classifier of the batch-normalised CLS token of a frozen encoder: LARS, crops and flips only.

    build: function that makes the masked autoencoder with random weights.
    """

    exact = True

    def __init__(self, run, source, build, norms):
        super().__init__(run, source, norms, with_labels=True)
        mae = build()
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read(run.init), mae, norm=run.norm.name)
        self.network = to_timm(mae).requires_grad_(False)
        self.network.head = probe_layers(mae.cls_token.shape[-1], self.classes, run.seed)
        layer = self.network.head[1]
        # Small: upstream's value, from MoCo v3
        nn.init.trunc_normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(run.seed))
        self.network.eval().to(self.device.torch)
        self.model = self.network.head  # what train() and eval() are called on; the encoder stays in eval mode
        self.batches = self.loaders.training(box=single_try_crop_box)
        self.optimizer = lars(layer, lr=run.optim.lr, weight_decay=run.optim.weight_decay)

    def logits(self, images, classifier=None):
        with torch.no_grad(), self.device.autocast():
            features = self.network.forward_features(images)
        return (classifier or self.network.head)(features[:, 0].float())  # in float32, whatever the encoder's precision

    def losses(self, batch, epoch, i):
        logits = self.logits(self.pixels.normalize(batch["images"]), self.trained)
        return [F.cross_entropy(logits, batch["labels"])]
