"""What a run writes down as it goes: its log and trajectory, where it is, and what loggers get. No torch."""

import time

from .measures import SCORES
from .record import Record, summarize_log
from .status import RUNNING, Status


class Journal:
    """The journal of a run. Of several processes of a run all keep one, and that of the main process is written.

    task: training.task.Task; folder: RunFolder, or None to write nothing; start: its Start, whose baselines are measured;
    identity: what decides the run's numbers. Give it a logger and a bar, `log` and `bar`, before the first epoch.
    """

    def __init__(self, task, folder, start, identity):
        run = self.run = task.run
        self.baselines, self.identity = start.baselines, identity
        head = None
        if task.keeps_trajectory:
            head = {
                "alpha": run.probes.alpha,
                "lr": run.optim.lr,
                "model": run.model.name,
                "decoder": run.model.decoder_type,
                "norm": run.norm.name,
                "seed": run.seed,
                **self.baselines,
            }
        self.record = Record(folder, task.columns, head, **start.history)
        self.record.write(RUNNING)
        self.status = Status(folder, task.epochs)
        self.folder, self.epochs = folder, task.epochs
        self.started = time.monotonic() - start.elapsed_s
        self.log = self.bar = None

    def elapsed_s(self):
        """Seconds that the run has taken over all its starts."""
        return time.monotonic() - self.started

    def add(self, row, layers, pictures):
        """An epoch: its row of the log, those of norm_alpha.csv, see Record.add, and a function that makes pictures of it for
        the loggers."""
        self.record.add({**row, **self.baselines}, layers, RUNNING)
        if self.folder is not None:
            alphas = [layer["alpha"] for layer in layers if layer["alpha"] is not None]
            self.log.add(self.record.log[-1], alphas, pictures())
            self.bar.write(one_line(row, self.epochs))
        self.status.write(RUNNING, row["epoch"] + 1, 0.0, row["images_per_s"])

    def finish(self, status, measured):
        """Write down that the run has ended; its summary. measured: what was measured after training."""
        run = self.run
        self.record.write(status)
        return {
            "model": run.norm.name,
            "task": run.task,
            "alpha": run.probes.alpha,
            "seed": run.seed,
            "status": status,
            "total_time": self.elapsed_s(),
            **summarize_log(self.record.log),
            **measured,
            **self.baselines,
        }

    def state(self):
        """What a checkpoint keeps of it, for a Journal to go on from."""
        return {
            "elapsed_s": self.elapsed_s(),
            "history": self.record.history(),
            "args": self.identity,
            "baselines": self.baselines,
        }


def one_line(row, epochs=None):
    """An epoch, or scores alone, for the terminal."""
    scores = [f"{probe} {row[name]:.1f} %" for probe, name in SCORES.items() if row.get(name) is not None]
    if epochs is None:
        return ", ".join(scores)
    losses = f"training loss {row['train_loss']:.4f}, validation {row.get('val_mse', row.get('val_loss')):.4f}"
    return ", ".join([f"epoch {row['epoch'] + 1}/{epochs}: {losses}", *scores, f"{row['epoch_time_s']:.1f} s"])
