"""Linear probing: a classifier on a frozen encoder."""

import torch
import torch.nn.functional as F
from torch import nn

from ..data.crops import single_try_crop_box
from ..model.formats import to_timm
from ..probes.linear import AttentionPool, encoder_width, lars, probe_layers
from ..probes.readouts import read
from ..settings.probes import ATTENTIVE
from . import checkpoint
from .classification import Classification


class LinearProbing(Classification):
    """A linear classifier of a frozen encoder's batch-normalised features, as --readout has them: LARS, crops and flips only.

    build: function that makes the masked autoencoder with random weights.
    """

    exact = True

    def __init__(self, run, source, build, norms):
        super().__init__(run, source, norms, with_labels=True)
        mae = build()
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read_weights(run.init), mae, norm=run.norm.name)
        self.network = to_timm(mae).requires_grad_(False)
        (self.readout,) = run.probes.readouts
        width, head = encoder_width(mae), []
        if self.readout == ATTENTIVE:
            head = [AttentionPool(width, self.network.blocks[0].attn.num_heads, run.seed)]
        self.network.head = nn.Sequential(*head, *probe_layers(width, self.classes, run.seed))
        layer = self.network.head[-1]
        # Small: upstream's value, from MoCo v3
        nn.init.trunc_normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(run.seed))
        self.network.eval().to(self.device.torch)
        self.model = self.network.head  # what train() and eval() are called on; the encoder stays in eval mode
        self.batches = self.loaders.training(box=single_try_crop_box)
        self.optimizer = lars(self.network.head, lr=run.optim.lr, weight_decay=run.optim.weight_decay)

    def logits(self, images, classifier=None):
        with torch.no_grad(), self.device.autocast():
            tokens = self.network.forward_features(images)
        features = tokens if self.readout == ATTENTIVE else read(tokens, self.readout)
        return (classifier or self.network.head)(features.float())  # in float32, whatever the encoder's precision

    def losses(self, batch, epoch, i):
        logits = self.logits(self.pixels.normalize(batch["images"]), self.trained)
        return [F.cross_entropy(logits, batch["labels"])]
