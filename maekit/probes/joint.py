"""The joint probe: a classifier on the encoder that is trained together with the autoencoder."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.probes import CLS, accuracy_of
from .linear import encoder_width, linear
from .probe import Probe
from .readouts import read


class JointOutput(NamedTuple):
    """Losses are scalars; classification and logits (N, classes) are None where there is no classifier. tokens: those of the
    masked encoding, (N, 1 + kept, D), the CLS token first, without a gradient. pred, mask: as the autoencoder returns them,
    None where gradients are wanted, whose memory they would add to."""

    loss: Tensor
    reconstruction: Tensor
    classification: Tensor | None
    tokens: Tensor
    logits: Tensor | None
    pred: Tensor | None
    mask: Tensor | None


class JointMAE(nn.Module):
    """A masked autoencoder with a linear classifier on a read-out of its masked encoding, trained together.

    loss = reconstruction + alpha x cross entropy: SupMAE (arXiv 2205.14540) with an alpha of any sign. At alpha 0 the
    classifier is not trained and the loss is the reconstruction itself, to the last bit. classes None: no classifier.
    The classifier's initial weights are drawn from `seed` alone. label_of: the label of each class, indices from 0 on, -1 for
    none, where the classes themselves are not to be told apart; labelled: then the share of the training images that have one.
    An image without one has the reconstruction alone.
    """

    def __init__(self, mae, alpha=0.0, classes=None, seed=0, readout=CLS, label_of=None, labelled=1.0):
        super().__init__()
        self.mae, self.alpha, self.readout, self.labelled = mae, alpha, readout, labelled
        self.head = None
        if label_of is not None:
            label_of = torch.tensor(label_of, device=mae.cls_token.device)
            classes = int(label_of.max()) + 1
        self.register_buffer("label_of", label_of, persistent=False)
        if classes is not None:
            self.head = linear(encoder_width(mae), classes, seed)
            # Small, as in MAE's linear probing, so that no class is ahead at first: from larger weights a negative
            # alpha ends in naming one and the same class for every image.
            nn.init.normal_(self.head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
            self.head.to(mae.cls_token.device)
            self.head.requires_grad_(alpha != 0)

    def forward(self, images, mask_ratio, noise, labels=None):
        """images (N, 3, H, W) normalised, noise (N, L), labels (N,) or None -> JointOutput."""
        latent, mask, ids_restore = self.mae.forward_encoder(images, mask_ratio, noise)
        pred = self.mae.forward_decoder(latent, ids_restore)
        reconstruction = self.mae.forward_loss(images, pred, mask)
        tokens = latent.detach()
        drawn = (None, None) if torch.is_grad_enabled() else (pred, mask)
        if self.head is None:
            return JointOutput(reconstruction, reconstruction, None, tokens, None, *drawn)
        logits = self.head(read(latent if self.alpha else tokens, self.readout))
        classification = self.classification(logits.float(), labels)
        loss = reconstruction + self.alpha * classification if self.alpha else reconstruction
        return JointOutput(loss, reconstruction, classification, tokens, logits, *drawn)

    def classification(self, logits, labels):
        """Cross entropy, the mean of images; of those that have a label, as many as there are of a batch on average, so that
        parts of a batch add up to the whole."""
        if self.label_of is None:
            return F.cross_entropy(logits, labels)
        found = F.cross_entropy(logits, self.label_of[labels], ignore_index=-1, reduction="sum")
        return found / (self.labelled * len(labels))


class JointProbe(Probe):
    """The classifier of a JointMAE, scored on masked validation images."""

    @classmethod
    def of(cls, task):
        return cls(task.model)

    def __init__(self, model):
        self.model, self.head = model, model.head
        self.column = accuracy_of("joint", model.readout).column

    def predict(self, out, features):
        return {self.column: out.logits.argmax(dim=1)}

    def truth(self, labels):
        return labels if self.model.label_of is None else self.model.label_of[labels]

    def state_dict(self):
        return self.head.state_dict()

    def load_state_dict(self, state, same_seed=True):
        self.head.load_state_dict(state)
