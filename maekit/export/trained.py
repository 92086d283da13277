"""What a run has trained, as it is exported."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..files import read_json
from ..model.formats import encoder_weights
from ..runs.folder import RunFolder
from ..runs.status import FINISHED
from ..settings import identities, start
from ..settings.architectures import Architecture, Transformer, architecture
from ..settings.methods import NONE, OPTIONS, options_of
from ..settings.probes import MEAN
from ..settings.tasks import FINETUNE, KNN, LINPROBE, PRETRAIN
from ..training import checkpoint

_NORM_EPS = 1e-6  # of the batch norm that is a linear probing's, see probes.linear


@dataclass(frozen=True)
class Trained:
    """A run that has ended, and its weights, {name of this kit: tensor on the CPU}: of the autoencoder, or of a classifier, an
    encoder and a linear head."""

    folder: Path
    config: dict
    summary: dict
    weights: dict
    averaged: bool = False

    @property
    def identity(self):
        return {**identities.SINCE, **self.config["identity"]}

    @property
    def task(self):
        return self.identity.get("task", PRETRAIN)

    @property
    def norm(self):
        return self.identity["norm"]

    @property
    def norm_options(self):
        """The options of the norm, {name of the flag: value}."""
        return {o.flag: self.identity.get(o.flag, o.default) for o in options_of(self.norm)}

    @property
    def norm_arguments(self):
        """What norms.convert_norms takes beside the name."""
        options = {OPTIONS[flag].argument: value for flag, value in self.norm_options.items()}
        return {name: None if value == NONE else value for name, value in options.items()}

    @property
    def told(self):
        """What says which network it is, {name of the flag: value}."""
        names = ("model", "decoder_type", "input_size", "norm_pix_loss", "pos_embed")
        return {"norm": self.norm, **self.norm_options, **{name: self.identity.get(name) for name in names}}

    @property
    def code(self):
        """Whose code the network was: builtin, or upstream and its commit."""
        source = self.config.get("model_source") or "builtin"
        return (
            source if isinstance(source, str) else " ".join(str(source[k]) for k in ("source", "commit") if k in source)
        )

    @property
    def architecture(self):
        sizes = self.config.get("architecture")
        if not sizes:  # of a kit that did not write it down
            return architecture(self.identity["model"], self.identity.get("decoder_type"))
        decoder = sizes["decoder"] and Transformer(**sizes["decoder"])
        return Architecture(sizes["patch"], Transformer(**sizes["encoder"]), decoder)

    @property
    def side(self):
        """Of an image, in pixels."""
        return self.identity["input_size"]

    @property
    def classes(self):
        """How many a classifier tells apart; 0 of an autoencoder."""
        return 0 if self.task == PRETRAIN else len(self.weights["head.weight"])

    @property
    def reads_mean(self):
        """Whether a classifier reads the mean of the patches, not the CLS token."""
        return self.task != PRETRAIN and self.identity.get("readout") == MEAN

    @property
    def encoder(self):
        """The encoder's weights, and where there is a head, its."""
        head = {name: value for name, value in self.weights.items() if name.startswith(("head.", "fc_norm."))}
        return {**encoder_weights(self.weights), **head}


def read(run, averaged=False):
    """The Trained of a run's folder. averaged: the moving average of its weights. Raises InputError where there are none to export."""
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise InputError(f"{run}: no run in it (no config.json). Name a run's folder, such as outputs/LayerNorm/seed0.")
    config = read_json(folder.config)
    if not isinstance(config, dict) or not isinstance(config.get("identity"), dict):
        raise InputError(f"{folder.config}: is not of a run. Name a run's folder.")
    summary = read_json(folder.summary) if folder.summary.is_file() else None
    if summary is None:
        raise InputError(f"{run}: the run has not ended. Finish it: the command that began it goes on.")
    if summary.get("status", FINISHED) != FINISHED:
        raise InputError(f"{run}: the run has {summary['status']}, its weights are of no use. Name another run.")
    task = config["identity"].get("task", PRETRAIN)
    if task == KNN:
        raise InputError(f"{run}: k-NN trains no weights. Name the run that it is of.")
    state = _state(folder, run, config)
    weights = state.get("ema") if averaged else state["model"]
    if weights is None:
        raise InputError(f"{run}: keeps no moving average of its weights. Leave --ema out, or train with --ema 0.999.")
    if task == LINPROBE:
        weights = _with_linear_head(run, weights)
    for name, value in weights.items():
        if not value.isfinite().all():
            raise InputError(f"{run}: {name} has values that are not finite, so the weights are of no use.")
    return Trained(Path(run), config, summary, {n: v.detach().contiguous() for n, v in weights.items()}, averaged)


def _state(folder, run, config):
    places = start.checkpoints_of(folder.path, config)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = " nor ".join(map(str, places))
        raise InputError(f"{run}: its checkpoint is not there, not {looked}. Copy it to {folder.checkpoint}.")
    state = checkpoint.verified(path)
    if isinstance(state.get("args"), dict):
        identities.check(state["args"], config["identity"], f"{path}: is of")
    return state


def _with_linear_head(run, weights):
    """Weights whose head is one linear layer: the batch norm before it is one in evaluation, and part of it here."""
    if any(name.startswith("head.2.") for name in weights):
        raise InputError(f"{run}: reads its encoder by attention (--readout attentive), which no other program has.")
    weights = dict(weights)
    mean, var, _ = (weights.pop(f"head.0.{name}") for name in ("running_mean", "running_var", "num_batches_tracked"))
    weight, bias = (weights.pop(f"head.1.{name}").double() for name in ("weight", "bias"))
    weight = weight / torch.sqrt(var.double() + _NORM_EPS)
    bias = bias - weight @ mean.double()
    return {**weights, "head.weight": weight.float(), "head.bias": bias.float()}


TASKS = {PRETRAIN: "masked autoencoder", FINETUNE: "classifier, fine-tuned", LINPROBE: "classifier, a linear probe"}
