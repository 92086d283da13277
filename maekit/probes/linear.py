"""Linear classifiers of features: layers, optimizer, initial weights."""

import torch
from timm.optim import Lars
from torch import nn

PROBE_MOMENTUM = 0.9
NORM_MOMENTUM = 0.3  # features move while the encoder learns: with 0.1 the demo reads up to 15 points less on the way


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


def encoder_width(mae):
    """Width D of an encoder's tokens; upstream's models have it, too."""
    return mae.cls_token.shape[-1]


def linear(width, classes, seed):
    """A linear layer, Xavier-uniform from a generator of its own, bias 0: the global stream is not touched."""
    layer = nn.utils.skip_init(nn.Linear, width, classes)
    nn.init.xavier_uniform_(layer.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer
