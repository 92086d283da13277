"""What every kind of training has in common: a model, its optimizer, its batches, and going on from a checkpoint."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .. import distributed
from ..data.loader import Loaders
from ..data.pixels import Pixels
from ..errors import InputError
from ..model import compiling, others
from ..settings.tasks import FINETUNE, KNN, LINPROBE, PRETRAIN
from . import checkpoint
from .device import Device
from .gradients import GradientNorms

# processes keep their own buffers, which are equal; the option as torch 2.15 names it, or as those before it
OWN_BUFFERS = {
    next(
        name
        for name in ("forward_sync_buffers", "broadcast_buffers")
        if name in inspect.signature(DistributedDataParallel).parameters
    ): False
}


HOMES = {
    PRETRAIN: "pretraining:Pretraining",
    FINETUNE: "finetuning:Finetuning",
    LINPROBE: "linear_probing:LinearProbing",
    KNN: "nearest_neighbours:NearestNeighbours",
}


def open_task(run, source, build, norms):
    """The Task of a run. run: Settings; source: Source; build: function that makes the masked autoencoder as it is before
    training, norms in place; norms: the module norms."""
    module, _, kind = HOMES[run.task].partition(":")  # loaded when it is needed: timm's augmentations take their time
    return getattr(import_module(f".{module}", __package__), kind)(run, source, build, norms)


@dataclass
class Start:
    """Where a run goes on: the first epoch to train and the position in it (None: its start), seconds it has taken so far,
    its baselines (None: not measured yet) and the history of its log."""

    first_epoch: int = 0
    position: dict | None = None
    elapsed_s: float = 0.0
    baselines: dict | None = None
    history: dict = field(default_factory=dict)


class Task:
    """Base of Pretraining, Finetuning, LinearProbing and NearestNeighbours, which --task names: what a Trainer trains.

    A task sets `model` (what is trained), `optimizer`, `batches` and `network` (the part that has the norm layers and is
    saved), and defines `losses` and `validate`. norms: the module norms, for what norm layers ask of a training. Several
    processes train `parallel_model`, which averages their gradients.

    columns: the names of a row of its log. keeps_trajectory: whether its epochs are points of the reconstruction gap.
    compiles: whether the blocks of `network` are most of the work of a step, so that compiling them pays. exact: whether
    gradients are of a probe alone, which is multiplied in float32 whatever the device could do faster.
    loss_names: of what `losses` returns, the first of which is trained. probes: {name: Probe} that watch it.
    """

    columns = ()
    loss_names = ("train_loss",)
    keeps_trajectory = False
    compiles = False
    exact = False

    def __init__(self, run, source, norms, with_labels):
        self.run, self.source, self.norms = run, source, norms
        self.device = Device(run.device, run.precision)
        self.pixels = Pixels(self.device.torch)
        self.loaders = Loaders(source, run, self.device.torch, with_labels, tqdm.write)
        self.classes = len(source.classes)
        self.epochs = run.optim.epochs
        self.parallel_model, self.compiled = None, False
        self.probes = {}
        self.flat = {}  # share of flat activations of the norm layers, where the last epoch measured it

    # what a kind of task says of itself

    def losses(self, batch, epoch, i):
        """Losses of batch i of an epoch, a list of scalars named by `loss_names`."""
        raise TypeError(f"{type(self).__name__} has no batches to train on")

    def gradients(self, batch, epoch, i):
        """What `losses` returns, and the gradients of the first added to those that the parameters have."""
        losses = self.losses(batch, epoch, i)
        self.backward(losses[0])
        return losses

    def backward(self, loss):
        """Add the gradients of a batch's loss to those that the parameters have."""
        with nullcontext() if self.exact else self.device.products():
            self.device.scaler.scale(loss / self.run.optim.accum_iter).backward()

    def after_step(self, at):
        """What else learns with an optimizer step; `at`: epochs of the run that are over, a fraction."""

    def validate(self, epoch):
        """What the row of the log says of the validation images."""
        return {}

    def baselines(self):
        """What is measured once, before training, and stands in every row."""
        return {}

    def pictures(self, epoch):
        """Pictures to look at after an epoch, uint8 (n, H, W, 3), or None. In the main process alone."""

    def ending(self, folder):
        """What is measured once, after training that did not diverge: more of summary.json."""
        return {}

    # what all of them do

    def resume(self, folder, identity):
        """Load the folder's newest whole checkpoint, or the one --resume names.

        Returns the Start of this process's part of the run.
        """
        named = None if self.run.resume in ("auto", "never") else self.run.resume
        path, state = checkpoint.read_newest(folder, identity, self.run.overwrite)
        own = path is not None
        if not own:
            if named is None:
                return Start()
            path, state = named, checkpoint.read_named(named)
        if not others.has_decoder(state["model"]) and hasattr(self.network, "decoder_pred"):
            raise InputError(
                f"{path}: an encoder without decoder, no state of a training. Start from its weights: --init {path}."
            )
        checkpoint.load_model(path, state, self.network, self.run.norm.name)
        checkpoint.load_probes(path, state, self.probes, self.run.seed)
        self.load_more(path, state)
        first_epoch = checkpoint.load_training(path, state, self.optimizer, self.device.scaler)
        if path == named and first_epoch >= self.epochs:
            raise InputError(
                f"--resume {path}: has {first_epoch} epochs already; {self.run.optim.length} adds none. Raise it."
            )
        position = state.get("position")
        if position is not None and not (own or self._has_place(position, state.get("args"), identity)):
            distributed.say(
                f"{path}: is of the middle of an epoch with other batches, which is trained again from its start."
            )
            position = None
        within = "" if position is None else f", batch {position['batch']}"
        distributed.say(f"{path}: goes on with epoch {first_epoch}{within} of {self.epochs}.")
        start = Start(first_epoch, position)
        if own:
            for name in ("elapsed_s", "baselines", "history"):
                setattr(start, name, state.get(name, getattr(start, name)))
            if "history" not in state:  # of a kit whose checkpoints did not have it
                start.history = folder.history(first_epoch)
        return start

    def _has_place(self, position, theirs, identity):
        """Whether a place in an epoch of a run with identity `theirs` is the same place in this run's."""
        order = ("data", "max_images", "val_share", "seed", "batch_size", "accum_iter", "processes")
        if not (isinstance(position, dict) and isinstance(theirs, dict)):
            return False
        batch, sums = position.get("batch"), position.get("sums")
        whole = isinstance(batch, int) and isinstance(sums, list) and len(sums) == len(self.loss_names)
        return whole and all(theirs.get(name) == identity.get(name) for name in order)

    def load_more(self, path, state):
        """Load what else `state` has put into a checkpoint."""

    def prepare(self):
        """Get `model`, which is complete now, ready for fast steps."""
        if self.run.grad_checkpointing:
            compiling.recompute_activations(self.network)
        if self.compiles and self.epochs:
            self.compiled = compiling.compile_for(self.network, self.run, self.device, self.steps)
        if distributed.size() > 1 and self.epochs:
            self.parallel_model = DistributedDataParallel(self.model, **OWN_BUFFERS)

    @property
    def steps(self):
        """Optimizer steps of the whole run."""
        return len(self.batches) // self.run.optim.accum_iter * self.epochs

    @property
    def trained(self):
        """What the forward pass of a step goes through."""
        return self.parallel_model or self.model

    def adapt(self):
        """Let the norm layers adapt to the gradients, unscaled, before an optimizer step."""
        self.norms.update_adaptive(self.network)

    @cached_property
    def gradient_norms(self):
        """gradients.GradientNorms of what the optimizer trains."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return GradientNorms(parameters, self.norm_layers(), self.device.sum_dtype)

    def norm_layers(self):
        """{name: module} of the norm layers of `network`."""
        kinds = tuple(self.norms.NORMS.values())
        return {name: module for name, module in self.network.named_modules() if isinstance(module, kinds)}

    def layers(self):
        """Rows of norm_alpha.csv, a dict for each norm layer of which something is known; what all of them share is not in it."""
        alphas = {name: (alpha, saturated) for name, alpha, saturated in self.norms.norm_alphas(self.network)}
        gradients = self.gradient_norms.means()[1]
        rows = []
        for name in self.norm_layers():
            alpha, saturated = alphas.get(name, (None, None))
            row = {"alpha": alpha, "saturated": saturated}
            row |= {"layer_grad_norm": gradients.get(name), "flat": self.flat.get(name)}
            if any(value is not None for value in row.values()):
                rows.append({"layer": name, **row})
        return rows

    def broken_images(self):
        """Number of unreadable images that all processes have met."""
        return int(distributed.add(torch.tensor(len(self.loaders.broken))))

    def state(self, **extra):
        """What a checkpoint holds of it; extra: more of that."""
        states = {name: state for name, probe in self.probes.items() if (state := probe.state_dict())}
        return checkpoint.state_of(
            model=self.network, optimizer=self.optimizer, scaler=self.device.scaler, probes=states, **extra
        )
