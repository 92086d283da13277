"""What every training has in common: a model, its optimizer, one epoch of steps, and going on from a checkpoint."""

import inspect
import math
import time
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .. import distributed
from ..data import loader, resident
from ..data.pixels import Pixels
from ..errors import InputError
from ..model import compiling
from . import checkpoint
from .device import Device

# processes keep their own buffers, which are equal; the option as torch 2.15 names it, or as those before it
OWN_BUFFERS = {
    next(
        name
        for name in ("forward_sync_buffers", "broadcast_buffers")
        if name in inspect.signature(DistributedDataParallel).parameters
    ): False
}


class Job:
    """Base of Pretraining, Finetuning, LinearProbing and Knn: what the loop in train.py asks of a training.

    A job sets `model` (what is trained), `optimizer`, `batches` and `network` (the part that has the norm layers and is
    saved), and defines `losses` and `validate`. `adapt` is called with `network` before each optimizer step. Several
    processes train `parallel_model`, which averages their gradients.

    columns: the names of a row of its log. keeps_trajectory: whether its epochs are points of the reconstruction gap.
    compiles: whether the blocks of `network` are most of the work of a step, so that compiling them pays.
    """

    columns = ()
    keeps_trajectory = False
    compiles = False

    def __init__(self, run, source, adapt, with_labels):
        self.run, self.source, self.adapt = run, source, adapt
        self.device = Device(run.device, run.precision)
        self.pixels = Pixels(self.device.torch)
        self.broken = loader.BrokenImages(tqdm.write)
        self.loading = {
            "broken": self.broken,
            "workers": loader.workers(run.data.num_workers, source.train, self.device.torch),
            "pin": self.device.torch.type == "cuda",
            "with_labels": with_labels,
        }
        self.val_batches = resident.keep(
            loader.val_batches(source.val, run.model, batch_size=run.optim.batch_size, **self.loading),
            self.device.torch,
        )
        self.classes = len(source.classes)
        self.epochs = run.optim.epochs
        self.parallel_model, self.compiled = None, False
        self.resident = None  # training images that live on the device

    # what a kind of job says of itself

    def losses(self, batch, epoch, i):
        """Losses of batch i of an epoch, a list of scalars: the one to be trained first, named by `loss_names`."""
        raise TypeError(f"{type(self).__name__} has no batches to train on")

    loss_names = ("train_loss",)

    def gradients(self, batch, epoch, i):
        """What `losses` returns, and the gradients of the first added to those that the parameters have."""
        losses = self.losses(batch, epoch, i)
        self.backward(losses[0])
        return losses

    def backward(self, loss):
        """Add the gradients of a batch's loss to those that the parameters have."""
        self.device.scaler.scale(loss / self.run.optim.accum_iter).backward()

    def after_step(self, at):
        """What else moves with an optimizer step, `at` so many epochs."""

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

    def probe_states(self):
        """What a checkpoint keeps of classifiers beside the network."""
        return {}

    def load_probes(self, path, state):
        """The inverse of probe_states."""

    # what all of them do

    def resume(self, folder, identity):
        """Load the folder's newest whole checkpoint, or the one --resume names.

        Returns a dict: first_epoch to train, position in it (None: its start), elapsed_s so far, baselines (None if not
        measured), history of the log.
        """
        fresh = {"first_epoch": 0, "position": None, "elapsed_s": 0.0, "baselines": None, "history": {}}
        named = None if self.run.resume in ("auto", "never") else self.run.resume
        path, state = checkpoint.read_newest(folder, identity, self.run.overwrite)
        own = path is not None
        if not own:
            if named is None:
                return fresh
            path, state = named, checkpoint.read(named)
        if not checkpoint.has_decoder(state) and hasattr(self.network, "decoder_pred"):
            raise InputError(
                f"{path}: an encoder without decoder, no state of a training. Start from its weights: --init {path}."
            )
        checkpoint.load_model(path, state, self.network, self.run.norm.name)
        self.load_probes(path, state)
        first_epoch = checkpoint.load_training(path, state, self.optimizer, self.device.scaler)
        if path == named and first_epoch >= self.epochs:
            raise InputError(f"--resume {path}: has {first_epoch} epochs already; --epochs {self.epochs} adds none.")
        position = state.get("position")
        if position and not (own or self._has_place(position, state["args"], identity)):
            distributed.say(
                f"{path}: is of the middle of an epoch with other batches, which is trained again from its start."
            )
            position = None
        within = "" if not position else f", batch {position['batch']}"
        distributed.say(f"{path}: goes on with epoch {first_epoch}{within} of {self.epochs}.")
        if own:
            fresh |= {"history": folder.history(first_epoch)}  # of a kit whose checkpoints did not have it
            fresh |= {name: state[name] for name in fresh if name in state}
        return {**fresh, "first_epoch": first_epoch, "position": position}

    def _has_place(self, position, theirs, identity):
        """Whether a place in an epoch of a run with identity `theirs` is the same place in this run's."""
        order = ("data", "max_images", "seed", "batch_size", "accum_iter", "processes")
        return all(theirs.get(name) == identity.get(name) for name in order) and (
            len(position["sums"]) == len(self.loss_names)
        )

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

    def crops(self, batch):
        """uint8 images (N, 3, S, S) of a training batch on the device, cropped there where they live there."""
        if self.resident is None:
            return batch["images"].to(self.device.torch, non_blocking=True)
        return self.resident.crop(batch["index"], batch["box"], batch["flip"], self.run.model.input_size)

    def count_broken(self):
        """Unreadable images that all processes have met."""
        return int(distributed.add(torch.tensor(len(self.broken))))

    def save(self, folder, **extra):
        """Write the checkpoint; the one before stays beside it."""
        checkpoint.save(
            folder, model=self.network, optimizer=self.optimizer, scaler=self.device.scaler,
            probes=self.probe_states(), **extra,
        )  # fmt: skip

    def measure_epoch(self, epoch, bar, after_step, position=None):
        """Train one epoch and validate: the epoch's row of the log, or None if a loss is not finite.

        after_step: called with a function that makes the position, after every optimizer step but the epoch's last.
        position: where in the epoch to begin, as a checkpoint has it: {epoch, batch, sums, seconds}.
        """
        before = position["seconds"] if position else 0.0
        started = time.monotonic() - before
        row = self.train_one_epoch(epoch, bar, started, after_step, position)
        epoch_time = time.monotonic() - started
        if not math.isfinite(row["train_loss"]):
            return None
        row |= self.validate(epoch)
        if not all(math.isfinite(row.get(name, 0)) for name in ("val_mse", "val_loss")):
            return None
        return {
            "epoch": epoch,
            **row,
            "epoch_time_s": epoch_time,
            "images_per_s": len(self.batches) * self.run.optim.batch_size * distributed.size() / epoch_time,
            "peak_memory_mb": self.device.peak_memory_mb(),
        }

    def train_one_epoch(self, epoch, bar, started=None, after_step=None, position=None):
        """One pass over the training images: mean losses, train_loss nan as soon as it is not finite, and the last lr.

        Every process returns the same. started: when the epoch began, now if None; the rest as measure_epoch has it.
        """
        started = time.monotonic() if started is None else started
        optim, device, optimizer = self.run.optim, self.device, self.optimizer
        self.model.train()
        optimizer.zero_grad(set_to_none=True)
        first, sums = 0, torch.zeros(len(self.loss_names), dtype=device.sum_dtype, device=device.torch)
        if position:
            first = position["batch"]
            sums += torch.tensor(position["sums"], dtype=device.sum_dtype, device=device.torch)
        self.batches.order.set_epoch(epoch, first)
        drawn = time.monotonic()  # reading a loss waits for the device, so only when the bar is drawn
        for i, batch in enumerate(self.batches, start=first):
            if i % optim.accum_iter == 0:
                at = epoch + i / len(self.batches)  # in epochs
                lr = learning_rate(at, optim)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("lr_scale", 1)

            last = (i + 1) % optim.accum_iter == 0
            with nullcontext() if last or not self.parallel_model else self.parallel_model.no_sync():
                losses = self.gradients(batch, epoch, i)
            sums[: len(losses)] += torch.stack([loss.detach().to(device.sum_dtype) for loss in losses])
            if last:
                device.scaler.unscale_(optimizer)
                self.adapt(self.network)
                device.scaler.step(optimizer)
                device.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                self.after_step(at)

            bar.update(len(batch["labels"]) * distributed.size())
            if time.monotonic() - drawn > bar.mininterval:
                drawn, mean = time.monotonic(), float(sums[0]) / (i + 1)
                if not math.isfinite(mean) and distributed.size() == 1:
                    return {"train_loss": math.nan}
                bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
            if after_step and last and i + 1 < len(self.batches):
                seconds = time.monotonic() - started
                after_step(partial(self.position, epoch, i + 1, sums, seconds), epoch, (i + 1) / len(self.batches))
        means = (distributed.add(sums) / (len(self.batches) * distributed.size())).tolist()
        return {**dict(zip(self.loss_names[: len(losses)], means)), "lr": lr}

    def position(self, epoch, batch, sums, seconds):
        """A place between two steps, as a checkpoint has it. Called by all processes, which all get the same.

        batch: the next one. sums: of the losses so far, of this process; seconds: spent on the epoch so far.
        """
        sums = distributed.add(sums.clone()) / distributed.size()
        return {"epoch": epoch, "batch": batch, "sums": sums.tolist(), "seconds": seconds}

    @property
    def trained(self):
        """What the forward pass of a step goes through."""
        return self.parallel_model or self.model


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
