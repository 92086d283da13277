"""What an encoder knows about classes: a joint classifier, a probe that never touches the encoder, and k-NN.

Features are the CLS token of the encoder's output, (N, D); labels int64 (N,); accuracies in percent.
"""

import copy
import math
from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn

from . import parallel

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
# Of a layer-wise rate: a step moves the weight by lr / 1000 of its norm. On the demo at alpha 0, 1 reaches 51 % and 10 reaches 71 %.
PROBE_LR = 10.0
BIAS_LR = 0.001  # share of that for the bias, which has no trust ratio
PROBE_MOMENTUM = 0.9
NORM_MOMENTUM = 0.3  # features move while the encoder learns: with 0.1 the demo reads up to 15 points less on the way


class JointOutput(NamedTuple):
    """Losses are scalars; classification and logits (N, classes) are None where there is no classifier."""

    loss: Tensor
    reconstruction: Tensor
    classification: Tensor | None
    cls_token: Tensor
    logits: Tensor | None


class JointMAE(nn.Module):
    """A masked autoencoder with a linear classifier on the CLS token of its masked encoding, trained together.

    loss = reconstruction + alpha x cross entropy: SupMAE (arXiv 2205.14540) with an alpha of any sign. At alpha 0 the
    classifier is not trained and the loss is the reconstruction itself, to the last bit. classes None: no classifier.
    The classifier's initial weights are drawn from `seed` alone.
    """

    def __init__(self, mae, alpha=0.0, classes=None, seed=0):
        super().__init__()
        self.mae, self.alpha = mae, alpha
        self.head = None
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
        cls_token = latent[:, 0]
        if self.head is None:
            return JointOutput(reconstruction, reconstruction, None, cls_token, None)
        logits = self.head(cls_token if self.alpha else cls_token.detach())
        classification = F.cross_entropy(logits.float(), labels)
        loss = reconstruction + self.alpha * classification if self.alpha else reconstruction
        return JointOutput(loss, reconstruction, classification, cls_token, logits)


class OnlineProbe:
    """A linear classifier trained beside the encoder on detached features, in float32 whatever the run's precision.

    Batch-normalised features (no affine part, as in MAE's linear probing, arXiv 2111.06377 A.1: it makes the probe
    indifferent to their scale, which differs between norms), a linear layer, LARS, half a cosine over the run.
    """

    def __init__(self, width, classes, device, seed):
        self.layers = probe_layers(width, classes, seed).to(device)
        self.optimizer = lars(self.layers[1], lr=PROBE_LR, bias_scale=BIAS_LR)
        self.steps = 0

    @torch.enable_grad()
    def step(self, features, labels, progress):
        """One optimizer step on features (N, D) of any dtype, of which nothing but their values is used.

        progress: how much of the run is over, 0 to 1; the rate is half a cosine of it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * PROBE_LR * 0.5 * (1 + math.cos(math.pi * progress))
        self.steps += 1
        self.layers[0].momentum = max(NORM_MOMENTUM, 1 / self.steps)  # a plain mean at first
        with torch.autocast(features.device.type, enabled=False):
            self.layers.train()
            loss = F.cross_entropy(self.layers(features.detach().float()), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def predict(self, features):
        """Class index (N,) for features (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            self.layers.eval()
            return self.layers(features.float()).argmax(dim=1)

    def state_dict(self):
        return {"layers": self.layers.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.layers.load_state_dict(state["layers"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm without affine part for features that no gradient goes through, over the batches of all processes.

    What SyncBatchNorm is, which refuses to work on CPU. State dict as nn.BatchNorm1d's.
    """

    def __init__(self, width):
        super().__init__(width, eps=1e-6, affine=False)

    def forward(self, x):
        """(N, D) -> (N, D)."""
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return super().forward(x)
        n = x.new_tensor(float(len(x)))
        torch.distributed.all_reduce(n)
        mean = x.sum(dim=0)
        torch.distributed.all_reduce(mean)
        mean /= n
        var = ((x - mean) ** 2).sum(dim=0)
        torch.distributed.all_reduce(var)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var / (n - 1), self.momentum)
        return (x - mean) / (var / n + self.eps).sqrt()


def probe_layers(width, classes, seed):
    """A linear classifier of batch-normalised features, nn.Sequential."""
    return nn.Sequential(GlobalBatchNorm1d(width), linear(width, classes, seed))


def lars(layer, *, lr, weight_decay=0.0, bias_scale=1.0):
    """LARS (arXiv 1708.03888) for a linear layer: its bias has neither decay nor trust ratio; as upstream's util/lars.py
    at no weight decay, which is its recipe's.

    bias_scale: the bias's rate over lr. Each group's lr_scale is for a schedule to multiply its rate by.
    """
    # timm's Lars leaves the trust ratio out where there is no weight decay, unless told otherwise
    groups = [
        {"params": [layer.weight], "always_adapt": True, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": [layer.bias], "weight_decay": 0.0, "lr_scale": bias_scale},
    ]
    return Lars(groups, lr=lr, momentum=PROBE_MOMENTUM)


class FrozenProbes:
    """The online probe of a run's encoder and, as its baseline, one on the same encoder as it was before training.

    Both see the same images, crops and masks at every step. `observe` each forward pass of the training, `step` with
    each optimizer step, so that gradient accumulation equals a larger batch. `untrained` is the encoder, frozen.
    """

    def __init__(self, mae, classes, seed):
        self.untrained = copy.deepcopy(mae).requires_grad_(False).eval()
        self.probes = {
            name: OnlineProbe(encoder_width(mae), classes, mae.cls_token.device, seed)
            for name in ("frozen_accuracy", "untrained_frozen_accuracy")
        }
        self.observed = defaultdict(list)

    @torch.no_grad()
    def features(self, cls_token, images, mask_ratio, noise):
        """Features by the name of the accuracy; cls_token is the trained encoder's for these images and masks."""
        untrained = self.untrained.forward_encoder(images, mask_ratio, noise)[0][:, 0]
        return {"frozen_accuracy": cls_token.detach(), "untrained_frozen_accuracy": untrained}

    def observe(self, features, labels):
        """Keep the features of a forward pass, of all processes, for the next step."""
        for name, values in features.items():
            self.observed[name].append(parallel.gather(values.clone()))  # the next pass of a CUDA graph is over it
        self.observed["labels"].append(parallel.gather(labels))

    def step(self, progress):
        """Train both probes on what was observed since the last step; progress of the run is 0 to 1."""
        seen = {name: torch.cat(parts) for name, parts in self.observed.items()}
        for name, probe in self.probes.items():
            probe.step(seen[name], seen["labels"], progress)
        self.observed.clear()

    def predict(self, features):
        """{accuracy: class index (N,)} for what `features` returned."""
        return {name: probe.predict(features[name]) for name, probe in self.probes.items()}

    def state_dict(self):
        return {name: probe.state_dict() for name, probe in self.probes.items()}

    def load_state_dict(self, state):
        for name in state:
            self.probes[name].load_state_dict(state[name])


@torch.inference_mode()
def knn_accuracy(mae, known, asked, classes, device, pixels):
    """Percent of the images of `asked` whose class k-NN finds among those of `known`, both iterables of batches.

    Features are of unmasked images. See knn_predict.
    """
    mae.eval()
    features, labels = cls_features(mae, known, device, pixels)
    features, labels = (parallel.gather_interleaved(t, len(known.dataset)) for t in (features, labels))
    queries, truth = cls_features(mae, asked, device, pixels)
    rows = max(1, 2**26 // len(features))  # similarities at a time, so that memory stays bounded
    predicted = torch.cat([knn_predict(features, labels, part, classes) for part in queries.split(rows)])
    return percent(predicted == truth)


def knn_predict(features, labels, queries, classes, k=KNN_NEIGHBOURS, temperature=KNN_TEMPERATURE):
    """Class of each query by its k nearest neighbours in cosine similarity, each voting exp(similarity / temperature).

    features (M, D), labels (M,), queries (N, D) -> (N,). Wu et al., arXiv 1805.01978; DINO's eval_knn.
    """
    similarity = F.normalize(queries.float()) @ F.normalize(features.float()).T
    nearest, index = similarity.topk(min(k, len(features)))
    votes = torch.zeros(len(queries), classes, device=queries.device)
    # less the largest: the winner is the same, and exp() stays small
    votes.scatter_add_(1, labels[index], ((nearest - nearest[:, :1]) / temperature).exp())
    return votes.argmax(dim=1)


@torch.inference_mode()
def cls_features(mae, batches, device, pixels):
    """CLS tokens of unmasked images, float32 (N, D), and labels (N,), on the device."""
    features, labels = [], []
    for batch in batches:
        with device.autocast():
            latent, _, _ = mae.forward_encoder(pixels.normalize(batch["images"]), 0.0, batch["noise"].to(device.torch))
        features.append(latent[:, 0].float())
        labels.append(batch["labels"].to(device.torch))
    return torch.cat(features), torch.cat(labels)


def percent(correct):
    """Share of true values (n,) of all processes in percent, a float."""
    right, n = parallel.add(torch.stack([correct.sum(), correct.new_tensor(len(correct), dtype=torch.int64)])).tolist()
    return 100 * right / n


def encoder_width(mae):
    """Width D of an encoder's tokens; upstream's models have it, too."""
    return mae.cls_token.shape[-1]


def linear(width, classes, seed):
    """A linear layer, Xavier-uniform from a generator of its own, bias 0: the global stream is not touched."""
    layer = nn.utils.skip_init(nn.Linear, width, classes)
    nn.init.xavier_uniform_(layer.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer
