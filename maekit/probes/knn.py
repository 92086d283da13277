"""The k-NN probe: k nearest neighbours among the training images, features of whole images."""

import torch
import torch.nn.functional as F

from .. import distributed
from ..model import compiling
from .accuracy import percent
from .probe import Probe

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07


class NearestNeighbours(Probe):
    """k-NN of a Pretraining's encoder, every few epochs and after the last; its baseline on the encoder before training."""

    @classmethod
    def of(cls, task):
        return cls(task)

    def __init__(self, task):
        self.task = task
        self.known = None  # training images, whole

    def score(self, epoch):
        every = self.task.run.probes.eval_every
        if epoch + 1 != self.task.epochs and (epoch + 1) % every:
            return {}
        return {"knn_accuracy": self.accuracy(self.task.mae)}

    def baseline(self):
        return {"untrained_knn_accuracy": self.accuracy(self.task.build().to(self.task.device.torch))}

    def accuracy(self, mae):
        """Percent of the validation images that k-NN gets right with the features of an autoencoder."""
        task = self.task
        if self.known is None:
            self.known = task.loaders.whole()
        with compiling.eagerly(task.compiled):
            return knn_accuracy(mae, self.known, task.loaders.validation, task.classes, task.device, task.pixels)


@torch.inference_mode()
def knn_accuracy(mae, known, asked, classes, device, pixels):
    """Percent of the images of `asked` whose class k-NN finds among those of `known`, both iterables of batches.

    Features are of unmasked images. See knn_predict.
    """
    mae.eval()
    features, labels = cls_features(mae, known, device, pixels)
    features, labels = (distributed.gather_interleaved(t, len(known.dataset)) for t in (features, labels))
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
