"""Accuracies over all processes, of all images and by class."""

import torch

from .. import distributed

UNASKED = -1  # of an image whose label the classifier was never told


def outcome(predicted, truth):
    """int8 (N,): 1 where a prediction is right, 0 where it is wrong, UNASKED where `truth` is -1."""
    return (predicted == truth).to(torch.int8).masked_fill_(truth < 0, UNASKED)


def percent(outcomes):
    """Share of the asked images (n,) of all processes that are right, in percent, a float."""
    right, n = distributed.add(torch.stack([(outcomes == 1).sum(), (outcomes >= 0).sum()])).tolist()
    return 100 * right / n if n else float("nan")


class ByClass:
    """Accuracies by class, {column: [percent of each class, None where it has no asked image]}."""

    def __init__(self, classes):
        self.classes, self.images, self.percent = classes, [0] * classes, {}

    def add(self, column, outcomes, labels):
        """outcomes (n,) of this process's images, whose classes are labels (n,)."""
        counts = torch.zeros(3, self.classes, dtype=torch.int64, device=labels.device)
        for row, which in zip(counts, (outcomes == 1, outcomes >= 0, outcomes >= UNASKED)):
            row.index_add_(0, labels, which.to(torch.int64))
        right, asked, self.images = distributed.add(counts).tolist()
        self.percent[column] = [100 * r / n if n else None for r, n in zip(right, asked)]
