"""Norms of gradients over the steps of an epoch, as they are before clipping, and clipping."""

import torch


class GradientNorms:
    """Means over an epoch's optimizer steps of the norm of the gradient: of all that is trained, and of the own parameters of
    each norm layer.

    parameters: all that are trained. layers: {name: module}. A step whose gradient is not finite, which a GradScaler leaves out,
    does not count.
    """

    def __init__(self, parameters, layers, sum_dtype):
        self.parameters = list(dict.fromkeys(parameters))
        place = {parameter: i for i, parameter in enumerate(self.parameters)}
        where = self.parameters[0].device
        self.zero = torch.zeros(1, device=where)
        members = torch.zeros(len(layers), len(self.parameters))
        for row, layer in zip(members, layers.values()):
            for parameter in layer.parameters():
                if parameter in place:
                    row[place[parameter]] = 1
        self.names = [name for name, row in zip(layers, members) if row.any()]
        self.members = torch.cat([torch.ones(1, len(self.parameters)), members[members.any(dim=1)]]).to(where)
        self.start(sum_dtype)

    def start(self, sum_dtype=None, sums=None):
        """Begin an epoch, or go on in one with the sums of `state`."""
        kind = sum_dtype or self.sums.dtype
        known = [0.0] * (len(self.names) + 2) if sums is None else sums
        self.sums = torch.tensor(known, dtype=kind, device=self.zero.device)

    @torch.no_grad()
    def add(self):
        """Take in the gradients that the parameters have now, unscaled and of all processes; returns the norm of all, (1,)."""
        gradients = [self.zero if parameter.grad is None else parameter.grad for parameter in self.parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).float().square()
        norms = (self.members @ squares).sqrt()
        found = torch.cat([norms, torch.ones_like(norms[:1])]).to(self.sums.dtype)
        self.sums += torch.where(norms[0].isfinite(), found, torch.zeros_like(found))
        return norms[:1]

    @torch.no_grad()
    def clip(self, norm, most):
        """Make the gradient, whose norm is `norm`, as long as `most` where it is longer."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0).squeeze())

    def means(self):
        """(mean of the whole gradient's norm, {layer: mean}) of the epoch; nothing where no step counted."""
        *sums, steps = self.sums.tolist()
        if not steps:
            return None, {}
        whole, *layers = (each / steps for each in sums)
        return whole, dict(zip(self.names, layers))

    def state(self):
        """What `start` needs to go on within an epoch."""
        return self.sums.tolist()
