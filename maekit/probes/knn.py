"""The k-NN probe: k nearest neighbours among the training images, features of whole images."""

import torch
import torch.nn.functional as F

from .. import distributed
from ..model import compiling
from ..settings.probes import CLS, accuracy_of
from .accuracy import outcome, percent
from .probe import Probe
from .readouts import read

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
        found = {}
        for accuracy, outcomes, labels in self.outcomes(self.task.mae):
            self.task.by_class.add(accuracy.column, outcomes, labels)
            found[accuracy.column] = percent(outcomes)
        return found

    def baseline(self):
        mae = self.task.build().to(self.task.device.torch)
        return {accuracy.untrained: percent(outcomes) for accuracy, outcomes, _ in self.outcomes(mae)}

    def outcomes(self, mae):
        """(Accuracy, outcomes of the validation images with an autoencoder's features, their classes) of each read-out."""
        task = self.task
        if self.known is None:
            self.known = task.loaders.whole()
        with compiling.eagerly(task.compiled):
            data = self.known, task.loaders.validation, task.classes, task.device, task.pixels
            found, labels = knn_outcomes(mae, *data, task.run.probes.readouts)
        return [(accuracy_of("knn", readout), outcomes, labels) for readout, outcomes in found.items()]


@torch.inference_mode()
def knn_outcomes(mae, known, asked, classes, device, pixels, readouts=(CLS,)):
    """{read-out: accuracy.outcome of this process's images of `asked` by k-NN among those of `known`} and their classes.

    known, asked: iterables of batches, the former with the data set as `dataset`. Features are of unmasked images, all read-outs of one forward pass. See knn_predict.
    """
    mae.eval()
    features, labels = features_of(mae, known, device, pixels, readouts)
    labels = distributed.gather_interleaved(labels, len(known.dataset))
    queries, truth = features_of(mae, asked, device, pixels, readouts)
    found = {}
    for readout in readouts:
        whole = distributed.gather_interleaved(features.pop(readout), len(known.dataset))
        rows = max(1, 2**26 // len(whole))  # similarities at a time, so that memory stays bounded
        predicted = [knn_predict(whole, labels, part, classes) for part in queries[readout].split(rows)]
        found[readout] = outcome(torch.cat(predicted), truth)
    return found, truth


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
def features_of(mae, batches, device, pixels, readouts=(CLS,)):
    """{read-out: features of unmasked images, float32 (N, D)}, and labels (N,), on the device."""
    features, labels = {readout: [] for readout in readouts}, []
    for batch in batches:
        with device.autocast():
            latent, _, _ = mae.forward_encoder(pixels.normalize(batch["images"]), 0.0, batch["noise"].to(device.torch))
        for readout, parts in features.items():
            parts.append(read(latent, readout).float())
        labels.append(batch["labels"].to(device.torch))
    return {readout: torch.cat(parts) for readout, parts in features.items()}, torch.cat(labels)
