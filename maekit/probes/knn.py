"""The k-NN probe: k nearest neighbours among the training images, features of whole images."""

from functools import partial

import torch
import torch.nn.functional as F

from .. import distributed
from ..model import compiling
from ..settings.probes import CLS, OUTPUT, accuracy_of
from .accuracy import outcome, percent
from .linear import encoder_width
from .probe import Probe
from .readouts import read

KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07
ROOM = 8 * 2**30  # bytes of features of training images at a time: both read-outs of a ViT-B's of ImageNet


class NearestNeighbours(Probe):
    """k-NN of a Pretraining's encoder, every few epochs and after the last; its baseline on the encoder before training."""

    @classmethod
    def of(cls, task):
        return cls(task)

    def __init__(self, task):
        self.task = task
        self.known = None  # training images, whole

    def score(self, means):
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
            data = self.known, lambda wanted: task.validation_features(mae), task.classes, task.device, task.pixels
            found, labels = outcomes_among(mae, *data, by_output(task.run.probes.readouts))
        return [(accuracy_of("knn", readout), outcomes, labels) for readout, outcomes in found.items()]


@torch.inference_mode()
def knn_outcomes(mae, known, asked, classes, device, pixels, readouts=(CLS,)):
    """{read-out: accuracy.outcome of this process's images of `asked` by k-NN among those of `known`} and their classes.

    known, asked: iterables of batches, the former with the data set as `dataset`. Features are of unmasked images, all
    read-outs of one forward pass if there is ROOM for them. See knn_predict.
    """
    queries = partial(features_of, mae, asked, device, pixels)
    return outcomes_among(mae, known, queries, classes, device, pixels, by_output(readouts))


@torch.inference_mode()
def outcomes_by_layer(mae, known, asked, classes, device, pixels, readout=CLS):
    """{layer: outcomes}, as of knn_outcomes, of every block's output, 1 and on, and of OUTPUT, which is the encoder's, normed."""
    layers = [*range(1, len(mae.blocks) + 1), OUTPUT]
    queries = partial(features_of, mae, asked, device, pixels)
    wanted = {layer: (layer, readout) for layer in layers}
    return outcomes_among(mae, known, queries, classes, device, pixels, wanted)[0]


@torch.inference_mode()
def outcomes_among(mae, known, queries, classes, device, pixels, wanted):
    """({name: outcomes}, classes) for what features_of takes as `wanted`, in as many passes as ROOM asks for.

    queries: function of some of `wanted`, which returns what features_of does of the images that are asked about.
    """
    mae.eval()
    names, found = list(wanted), {}
    at_once = max(1, ROOM // (4 * encoder_width(mae) * len(known.dataset)))
    for start in range(0, len(names), at_once):
        some = {name: wanted[name] for name in names[start : start + at_once]}
        features, labels = features_of(mae, known, device, pixels, some)
        labels = distributed.gather_interleaved(labels, len(known.dataset))
        of, truth = queries(some)
        for name in some:
            whole = distributed.gather_interleaved(features.pop(name), len(known.dataset))
            rows = max(1, 2**26 // len(whole))  # similarities at a time, so that memory stays bounded
            predicted = [knn_predict(whole, labels, part, classes) for part in of[name].split(rows)]
            found[name] = outcome(torch.cat(predicted), truth)
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
def features_of(mae, batches, device, pixels, wanted):
    """{name: features of unmasked images, float32 (N, D)}, and classes (N,), on the device, all of one forward pass.

    wanted: {name: (layer, read-out)}; a layer is the number of a block, from 1 on, or OUTPUT.
    """
    features, labels, tokens = {name: [] for name in wanted}, [], {}

    def keep(layer):
        return mae.blocks[layer - 1].register_forward_hook(lambda block, inputs, out: tokens.update({layer: out}))

    hooks = [keep(layer) for layer in {layer for layer, _ in wanted.values()} - {OUTPUT}]
    try:
        for batch in batches:
            with device.autocast():
                noise = batch["noise"].to(device.torch)
                tokens[OUTPUT], _, _ = mae.forward_encoder(pixels.normalize(batch["images"]), 0.0, noise)
            for name, (layer, readout) in wanted.items():
                features[name].append(read(tokens[layer], readout).float())
            labels.append(batch["labels"].to(device.torch))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(features.pop(name)) for name in wanted}, torch.cat(labels)  # parts of one at a time twice


def by_output(readouts):
    """What features_of takes for the encoder's output by some read-outs, under their names."""
    return {readout: (OUTPUT, readout) for readout in readouts}
