"""k-NN as an evaluation: no training at all."""

from .. import distributed, files
from ..probes import knn
from ..probes.accuracy import percent
from ..runs import measures
from ..settings.probes import ALL, OUTPUT
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
            checkpoint.load_encoder(run.init, checkpoint.read_weights(run.init), mae, norm=run.norm.name)
        self.network = self.model = mae.to(self.device.torch)
        self.epochs = 0

    def ending(self, folder):
        (readout,) = self.run.probes.readouts
        data = self.loaders.whole(), self.loaders.validation, self.classes, self.device, self.pixels
        if self.run.probes.layers != ALL:
            found, _ = knn.knn_outcomes(self.network, *data, (readout,))
            return {"acc1": percent(found[readout])}
        by_layer = knn.outcomes_by_layer(self.network, *data, readout)
        accuracies = {layer: percent(outcomes) for layer, outcomes in by_layer.items()}
        if distributed.is_main():
            rows = [{"layer": layer, "accuracy": accuracy} for layer, accuracy in accuracies.items()]
            files.write_csv(folder.by_layer, ["layer", "accuracy"], rows)
        return {"acc1": accuracies[OUTPUT]}
