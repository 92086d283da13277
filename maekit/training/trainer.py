"""The training loop: epochs of steps, each epoch measured, written down and kept."""

import math
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from tqdm import tqdm

from .. import distributed
from ..runs.status import DIVERGED, FINISHED


class Trainer:
    """Trains a Task.

    journal: runs.journal.Journal of what is measured; saver: saving.Saver, which decides when the state is saved; bar: tqdm's
    progress bar over images. Without a journal and a saver single epochs can be trained; without a bar none is drawn.
    """

    def __init__(self, task, journal=None, saver=None, bar=None):
        self.task, self.journal, self.saver = task, journal, saver
        self.bar = bar or NoBar()

    def train(self, start):
        """The epochs of the run from its Start on. Returns FINISHED, or DIVERGED as soon as a loss is not finite."""
        position = start.position
        for epoch in range(start.first_epoch, self.task.epochs):
            row = self.measure_epoch(epoch, position)
            if row is None:
                distributed.say(
                    f"epoch {epoch}: the loss is not finite, the run has diverged; its finite epochs are kept."
                )
                return DIVERGED
            self.journal.add(row, self.task.layers(), partial(self.task.pictures, epoch))
            self.saver.after_epoch(epoch)
            position = None
        return FINISHED

    def measure_epoch(self, epoch, position=None):
        """Train one epoch and validate: the epoch's row of the log, or None if a loss is not finite.

        position: where in the epoch to begin, as `position` makes it and a checkpoint has it.
        """
        task = self.task
        started = time.monotonic() - (position["seconds"] if position else 0.0)
        row = self.train_epoch(epoch, position, started)
        epoch_time = time.monotonic() - started
        if not math.isfinite(row["train_loss"]):
            return None
        row |= task.validate(epoch)
        if not all(math.isfinite(row.get(name, 0)) for name in ("val_mse", "val_loss")):
            return None
        return {
            "epoch": epoch,
            **row,
            "epoch_time_s": epoch_time,
            "images_per_s": len(task.batches) * task.run.optim.batch_size * distributed.size() / epoch_time,
            "peak_memory_mb": task.device.peak_memory_mb(),
        }

    def train_epoch(self, epoch, position=None, started=None):
        """One pass over the training images: mean losses, train_loss nan as soon as it is not finite, and the last lr.

        Every process returns the same. started: when the epoch began, time.monotonic's; now if None.
        """
        task, optim, device, optimizer = self.task, self.task.run.optim, self.task.device, self.task.optimizer
        started = time.monotonic() if started is None else started
        task.model.train()
        optimizer.zero_grad(set_to_none=True)
        first, sums = 0, torch.zeros(len(task.loss_names), dtype=device.sum_dtype, device=device.torch)
        if position:
            first = position["batch"]
            sums += torch.tensor(position["sums"], dtype=device.sum_dtype, device=device.torch)
        task.gradient_norms.start(sums=position.get("gradient_norms") if position else None)
        task.batches.order.set_epoch(epoch, first)
        self.drawn = time.monotonic()
        for i, batch in enumerate(task.batches, start=first):
            if i % optim.accum_iter == 0:
                at = epoch + i / len(task.batches)  # in epochs
                lr = set_learning_rate(optimizer, at, optim)

            last = (i + 1) % optim.accum_iter == 0
            with nullcontext() if last or not task.parallel_model else task.parallel_model.no_sync():
                losses = task.gradients(batch, epoch, i)
            sums[: len(losses)] += torch.stack([loss.detach().to(device.sum_dtype) for loss in losses])
            if last:
                device.scaler.unscale_(optimizer)
                task.adapt()
                norm = task.gradient_norms.add()
                if optim.clip_grad:
                    task.gradient_norms.clip(norm, optim.clip_grad)
                device.scaler.step(optimizer)
                device.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                task.after_step(at)

            self.bar.update(len(batch["labels"]) * distributed.size())
            if not self.draw(epoch, sums[0], i + 1):
                return {"train_loss": math.nan}
            if self.saver and last and i + 1 < len(task.batches):
                place = partial(self.position, epoch, i + 1, sums, time.monotonic() - started)
                self.saver.after_step(place, epoch, (i + 1) / len(task.batches))
        means = (distributed.add(sums) / (len(task.batches) * distributed.size())).tolist()
        return {
            **dict(zip(task.loss_names[: len(losses)], means)),
            "lr": lr,
            "grad_norm": task.gradient_norms.means()[0],
        }

    def draw(self, epoch, total, batches):
        """The mean loss beside the bar, at times: reading it waits for the device. False if one process alone reads that
        it is not finite."""
        if time.monotonic() - self.drawn <= self.bar.mininterval:
            return True
        self.drawn, mean = time.monotonic(), float(total) / batches
        if not math.isfinite(mean) and distributed.size() == 1:
            return False
        self.bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}", refresh=False)
        return True

    def position(self, epoch, batch, sums, seconds):
        """A place between two steps, as a checkpoint has it. Called by all processes, which all get the same.

        batch: the next one. sums: of the losses so far, of this process; seconds: spent on the epoch so far.
        """
        sums = distributed.add(sums.clone()) / distributed.size()
        return {
            "epoch": epoch,
            "batch": batch,
            "sums": sums.tolist(),
            "gradient_norms": self.task.gradient_norms.state(),
            "seconds": seconds,
        }


class NoBar:
    """A progress bar that is not drawn."""

    mininterval = math.inf

    def update(self, images):
        pass


def set_learning_rate(optimizer, epoch, optim):
    """Give the optimizer the rate of a fractional epoch, times the share that a group of parameters has; returns the rate."""
    lr = learning_rate(epoch, optim)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1)
    return lr


def learning_rate(epoch, optim):
    """Linear warm-up, then half a cosine down to min_lr, at a fractional epoch; upstream's util/lr_sched.py."""
    if epoch < optim.warmup_epochs:
        return optim.lr * epoch / optim.warmup_epochs
    progress = (epoch - optim.warmup_epochs) / (optim.epochs - optim.warmup_epochs)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def progress_bar(task, start):
    """One bar over all images of a run, on stderr of the main process: loss, images/s, time left."""
    images = len(task.batches) * task.run.optim.batch_size * distributed.size() if task.epochs else 0
    done = start.first_epoch * images
    if start.position:
        done += start.position["batch"] * images // len(task.batches)
    seconds = 0.5 if sys.stderr.isatty() else 60
    how = {"total": task.epochs * images, "initial": done, "mininterval": seconds, "dynamic_ncols": True}
    with open(os.devnull, "w") as nowhere:
        file = sys.stderr if distributed.is_main() else nowhere
        with tqdm(desc=task.run.norm.name, unit="img", file=file, **how) as bar:
            yield bar
