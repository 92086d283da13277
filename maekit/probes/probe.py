"""What a probe is: it watches a pre-training and says, in columns of the log, what the encoder knows."""

from importlib import import_module

from ..settings.probes import PROBES


class Probe:
    """Base of all probes, which by itself watches nothing. A probe defines what it needs of this.

    During training: `features` of every forward pass, `observe` after it, `step` with each optimizer step, so that gradient
    accumulation equals a larger batch. On the validation images: `predict` for every batch of masked images; and every few
    epochs and after the last `means` for every batch, and `score` once they are through. Accuracies are in percent, by the name of their column. networks: encoders of its own, which are
    compiled like the run's.
    """

    networks = ()

    @classmethod
    def of(cls, task):
        """The probe of a training.pretraining.Pretraining, whose autoencoder is as it was before training."""
        return cls()

    def features(self, out, images, mask_ratio, noise):
        """{name: tensor (N, ...)} to be kept of a forward pass, names its own; may be part of a CUDA graph.

        out: JointOutput of images (N, 3, H, W), normalised, under masks of noise (N, L).
        """
        return {}

    def observe(self, features, labels):
        """Take notice of a batch: what `features` returned, labels int64 (N,)."""

    def step(self, progress):
        """Learn from what was observed since the last step; progress of the run is 0 to 1."""

    def predict(self, out, features):
        """{column: class index (N,)} for a batch of masked validation images."""
        return {}

    def truth(self, labels):
        """What `predict` should have said of images of these classes (N,); -1 where nobody can know."""
        return labels

    def prepare(self):
        """Have ready what `means` needs; called in all processes, before the validation images of a score."""

    def means(self, out, images):
        """{name: scalar} of a batch of masked validation images (N, 3, H, W), normalised, whose means over all of them `score`
        gets; names its own; may be part of a CUDA graph. out: JointOutput with prediction and mask."""
        return {}

    def score(self, means):
        """{column: number} of the encoder as it is now, which may take a pass over images of its own."""
        return {}

    def baseline(self):
        """{column: percent}, measured once, before training."""
        return {}

    def ending(self, folder):
        """Leave files in the run's RunFolder, once training is over; called in all processes."""

    def state_dict(self):
        """What a checkpoint keeps; {} for nothing."""
        return {}

    def load_state_dict(self, state, same_seed=True):
        """Go on from a state; same_seed: whether it is of a run of this one's seed, with the same untrained encoder."""


def open_probes(names, task):
    """{name: Probe} of the table of probes, watching a Pretraining."""
    probes = {}
    for name in names:
        module, _, kind = PROBES[name].home.partition(":")
        probes[name] = getattr(import_module(module), kind).of(task)
    return probes
