"""What every training has in common: a model, its optimizer, one epoch of steps, and going on from a checkpoint."""

import math
import time

import torch
from tqdm import tqdm

from . import checkpoint, data, runs
from .device import Device
from .errors import InputError


class Job:
    """Base of Pretraining, Finetuning, LinearProbing and Knn: what the loop in train.py asks of a training.

    A job sets `model` (what is trained), `optimizer`, `batches` and `network` (the part that has the norm layers and is
    saved), and defines `losses` and `validate`. `adapt` is called with `network` before each optimizer step.

    columns: the names of a row of its log. keeps_trajectory: whether its epochs are points of the reconstruction gap.
    """

    columns = ()
    keeps_trajectory = False

    def __init__(self, run, source, adapt, with_labels):
        self.run, self.source, self.adapt = run, source, adapt
        self.device = Device(run.device, run.precision)
        self.pixels = data.Pixels(self.device.torch)
        self.broken = data.BrokenImages(tqdm.write)
        self.loading = {
            "broken": self.broken,
            "workers": run.data.num_workers,
            "pin": self.device.torch.type == "cuda",
            "with_labels": with_labels,
        }
        self.val_batches = data.val_batches(source.val, run.model, batch_size=run.optim.batch_size, **self.loading)
        self.classes = len(source.classes)
        self.epochs = run.optim.epochs

    # what a kind of job says of itself

    def losses(self, batch, epoch, i):
        """Losses of batch i of an epoch, a list of scalars: the one to be trained first, named by `loss_names`."""
        raise TypeError(f"{type(self).__name__} has no batches to train on")

    loss_names = ("train_loss",)

    def after_step(self, at):
        """What else moves with an optimizer step, `at` so many epochs."""

    def validate(self, epoch):
        """What the row of the log says of the validation images."""
        return {}

    def baselines(self):
        """What is measured once, before training, and stands in every row."""
        return {}

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
        """Load the folder's checkpoint, or the one --resume names.

        Returns a dict: first_epoch to train, elapsed_s so far, baselines (None if not measured), history of the log.
        """
        fresh = {"first_epoch": 0, "elapsed_s": 0.0, "baselines": None, "history": {}}
        named = None if self.run.resume in ("auto", "never") else self.run.resume
        path = folder.checkpoint if folder.checkpoint.exists() else named
        if path is None:
            return fresh
        state = checkpoint.read(path)
        own = path == folder.checkpoint
        if own:
            if not isinstance(state.get("args"), dict):
                raise InputError(
                    f"{path}: is no checkpoint of a run. Move it away; --init {path.name} starts from its weights."
                )
            runs.check_identity(state["args"], identity, f"{path}: is of")
        if not checkpoint.has_decoder(state) and hasattr(self.network, "decoder_pred"):
            raise InputError(
                f"{path}: an encoder without decoder, no state of a training. Start from its weights: --init {path}."
            )
        checkpoint.load_model(path, state, self.network)
        self.load_probes(path, state)
        first_epoch = checkpoint.load_training(path, state, self.optimizer, self.device.scaler)
        if path == named and first_epoch >= self.epochs:
            raise InputError(f"--resume {path}: has {first_epoch} epochs already; --epochs {self.epochs} adds none.")
        print(f"{path}: goes on with epoch {first_epoch} of {self.epochs}.")
        if own:
            fresh |= {"history": folder.history(first_epoch)}  # of a kit whose checkpoints did not have it
            fresh |= {name: state[name] for name in fresh if name in state}
        return {**fresh, "first_epoch": first_epoch}

    def save(self, path, **extra):
        """Write the checkpoint."""
        checkpoint.save(
            path, model=self.network, optimizer=self.optimizer, scaler=self.device.scaler,
            probes=self.probe_states(), **extra,
        )  # fmt: skip

    def measure_epoch(self, epoch, bar):
        """Train one epoch and validate: the epoch's row of the log, or None if a loss is not finite."""
        started = time.monotonic()
        row = self.train_one_epoch(epoch, bar)
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
            "images_per_s": len(self.batches) * self.run.optim.batch_size / epoch_time,
            "peak_memory_mb": self.device.peak_memory_mb(),
        }

    def train_one_epoch(self, epoch, bar):
        """One pass over the training images: mean losses, train_loss nan as soon as it is not finite, and the last lr."""
        optim, device, optimizer = self.run.optim, self.device, self.optimizer
        self.model.train()
        optimizer.zero_grad(set_to_none=True)
        self.batches.order.set_epoch(epoch)
        sums = 0.0  # becomes a tensor on the device; reading it waits, so only when the bar is drawn
        drawn = time.monotonic()
        for i, batch in enumerate(self.batches):
            if i % optim.accum_iter == 0:
                at = epoch + i / len(self.batches)  # in epochs
                lr = learning_rate(at, optim)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("lr_scale", 1)

            losses = self.losses(batch, epoch, i)
            device.scaler.scale(losses[0] / optim.accum_iter).backward()
            if (i + 1) % optim.accum_iter == 0:
                device.scaler.unscale_(optimizer)
                self.adapt(self.network)
                device.scaler.step(optimizer)
                device.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                self.after_step(at)

            sums = sums + torch.stack([loss.detach().to(device.sum_dtype) for loss in losses])
            bar.update(len(batch["images"]))
            if time.monotonic() - drawn > bar.mininterval:
                drawn, mean = time.monotonic(), float(sums[0]) / (i + 1)
                if not math.isfinite(mean):
                    return {"train_loss": math.nan}
                bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
        means = (sums / len(self.batches)).tolist()
        return {**dict(zip(self.loss_names, means)), "lr": lr}


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
