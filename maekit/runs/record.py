"""What a run has measured, epoch by epoch, and the files that hold it. No torch."""

from ..files import write_csv, write_json
from .measures import ALPHA_COLUMNS, BASELINES, MEASURED_LAST, POINT_COLUMNS


class Record:
    """What a run has measured so far, epoch by epoch, and the files that hold it.

    folder: RunFolder, or None to write nothing. columns: of log.csv, LOG_COLUMNS or EVALUATION_COLUMNS. head: the run's
    entry in trajectory.json (alpha, lr, model, decoder, norm, seed), None for no such file. log, alphas: the rows of
    log.csv and norm_alpha.csv so far; the checkpoint keeps them, so that files and weights always agree.
    """

    def __init__(self, folder, columns, head, log=(), alphas=()):
        self.folder, self.columns, self.head = folder, columns, head
        self.log, self.alphas = list(log), list(alphas)

    def history(self):
        """What another Record needs to go on from here."""
        return {"log": self.log, "alphas": self.alphas}

    def add(self, row, layers, status):
        """Append an epoch and write.

        row: values of the columns but the norms' alphas; the baselines, which are measured once, may be in it and are
        in no row of the log. layers: rows of norm_alpha.csv without the epoch, a dict each. Raises ValueError for a column
        that the log does not have.
        """
        row = {**row, **_layer_columns(layers)}
        unknown = [name for name in row if name not in self.columns and name not in BASELINES]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such column of log.csv. Add a row to maekit/runs/measures.py.")
        self.log.append({name: row.get(name) for name in self.columns})
        self.alphas += [{"epoch": row["epoch"], **layer} for layer in layers]
        self.write(status)

    def write(self, status):
        """Write log.csv, norm_alpha.csv and trajectory.json.

        The latter has the format of the original gap scripts; null is what was not measured.
        """
        if self.folder is None:
            return
        write_csv(self.folder.log, self.columns, self.log)
        write_csv(self.folder.norm_alpha, ALPHA_COLUMNS, self.alphas)
        if self.head is None:
            return
        of_run = {name: self.head[name] for name in ("alpha", "lr")}
        points = [{**{name: row.get(column) for name, column in POINT_COLUMNS.items()}, **of_run} for row in self.log]
        write_json(self.folder.trajectory, {**self.head, "status": status, "trajectory": points})


def _layer_columns(layers):
    """The log's columns on the norm layers: mean, min and max of their alphas, the share of those at a bound, and of their
    activations where they are flat."""
    values, bounded, flat = (
        [layer[name] for layer in layers if layer.get(name) is not None] for name in ("alpha", "saturated", "flat")
    )
    columns = {"norm_flat": sum(flat) / len(flat)} if flat else {}
    if values:
        columns |= {
            "norm_alpha_mean": sum(values) / len(values),
            "norm_alpha_min": min(values),
            "norm_alpha_max": max(values),
            "norm_alpha_saturated": sum(bounded) / len(bounded) if bounded else None,
        }
    return columns


def summarize_log(log):
    """What the rows of a log say of a run as a whole; losses are the training loss unless they say val."""
    if not log:
        return {"total_epochs": 0}
    best = min(log, key=lambda row: row["train_loss"])
    return {
        "total_epochs": len(log),
        "avg_epoch_time": sum(row["epoch_time_s"] for row in log) / len(log),
        "final_loss": log[-1]["train_loss"],
        "min_loss": best["train_loss"],
        "min_loss_epoch": best["epoch"],
        **{name: log[-1][name] for name in MEASURED_LAST if log[-1].get(name) is not None},
        **({"max_acc1": max(row["acc1"] for row in log)} if "acc1" in best else {}),
        "images_per_s": sum(row["images_per_s"] for row in log) / len(log),
        "peak_memory_mb": max((row["peak_memory_mb"] for row in log if row["peak_memory_mb"]), default=None),
    }
