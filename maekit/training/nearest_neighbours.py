"""k-NN as an evaluation: no training at all."""

from ..data import loader
from ..probes import knn
from ..runs import measures
from . import checkpoint
from .trainer import Job


class Knn(Job):
    """k-nearest neighbours among the training images, no training at all; see probes.knn_predict.

    mae: the masked autoencoder with random weights.
    """

    columns = measures.EVALUATION_COLUMNS

    def __init__(self, run, source, mae, adapt):
        super().__init__(run, source, adapt, with_labels=True)
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read(run.init), mae, norm=run.norm.name)
        self.network = self.model = mae.to(self.device.torch)
        self.epochs = 0

    def ending(self, folder):
        known = loader.whole_batches(self.source.train, self.run, self.loading)
        accuracy = knn.knn_accuracy(self.network, known, self.val_batches, self.classes, self.device, self.pixels)
        return {"acc1": accuracy}
