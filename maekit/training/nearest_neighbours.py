"""k-NN as an evaluation: no training at all."""

from ..probes import knn
from ..probes.accuracy import percent
from ..runs import measures
from . import checkpoint
from .task import Task


class NearestNeighbours(Task):
    """k-nearest neighbours among the training images, no training at all; see probes.knn_predict.

    build: function that makes the masked autoencoder with random weights.
    """

    columns = measures.EVALUATION_COLUMNS

    def __init__(self, run, source, build, norms):
        super().__init__(run, source, norms, with_labels=True)
        mae = build()
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read(run.init), mae, norm=run.norm.name)
        self.network = self.model = mae.to(self.device.torch)
        self.epochs = 0

    def ending(self, folder):
        data = self.loaders.whole(), self.loaders.validation, self.classes, self.device, self.pixels
        found, _ = knn.knn_outcomes(self.network, *data, self.run.probes.readouts)
        (outcomes,) = found.values()
        return {"acc1": percent(outcomes)}
