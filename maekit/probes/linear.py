"""Linear classifiers of features: layers, optimizer, initial weights."""

import torch
from timm.optim import Lars
from torch import nn

PROBE_MOMENTUM = 0.9
NORM_MOMENTUM = 0.3  # features move while the encoder learns: with 0.1 the demo reads up to 15 points less on the way


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous().clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm without affine part over the batches of all processes.

    What SyncBatchNorm is, which refuses to work on CPU. State dict as nn.BatchNorm1d's.
    """

    def __init__(self, width):
        super().__init__(width, eps=1e-6, affine=False)

    def forward(self, x):
        """(N, D) -> (N, D)."""
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return super().forward(x)
        n = _Sum.apply(x.new_tensor(float(len(x))))
        mean = _Sum.apply(x.sum(dim=0)) / n
        square = _Sum.apply(((x - mean) ** 2).sum(dim=0))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(square / (n - 1), self.momentum)
        return (x - mean) / (square / n + self.eps).sqrt()


def probe_layers(width, classes, seed):
    """A linear classifier of batch-normalised features, nn.Sequential."""
    return nn.Sequential(GlobalBatchNorm1d(width), linear(width, classes, seed))


def lars(module, *, lr, weight_decay=0.0, bias_scale=1.0):
    """LARS (arXiv 1708.03888) for a linear layer, or a module of some: biases have neither decay nor trust ratio; as
    upstream's util/lars.py at no weight decay, which is its recipe's.

    bias_scale: the biases' rate over lr. Each group's lr_scale is for a schedule to multiply its rate by.
    """
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    # timm's Lars leaves the trust ratio out where there is no weight decay, unless told otherwise
    groups = [
        {"params": weights, "always_adapt": True, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_scale": bias_scale},
    ]
    return Lars(groups, lr=lr, momentum=PROBE_MOMENTUM)


class AttentionPool(nn.Module):
    """One learned query that attends over an encoder's patch tokens: (N, 1 + L, D), the CLS token first -> (N, D).

    The attentive probe of arXiv 2202.03026 (CAE) without its later layers, so that what follows is linear. Its initial
    weights are drawn from `seed` alone.
    """

    def __init__(self, width, heads, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens):
        patches = tokens[:, 1:]
        query = self.query.expand(len(patches), -1, -1)
        return self.attention(query, patches, patches, need_weights=False)[0][:, 0]


def encoder_width(mae):
    """Width D of an encoder's tokens; upstream's models have it, too."""
    return mae.cls_token.shape[-1]


def linear(width, classes, seed):
    """A linear layer, Xavier-uniform from a generator of its own, bias 0: the global stream is not touched."""
    layer = nn.utils.skip_init(nn.Linear, width, classes)
    nn.init.xavier_uniform_(layer.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer
