"""The run folder: what is in it, how it is written so that nothing is ever half there, and how it is read. No torch.

config.json            settings, data, versions, hardware
log.csv                a row per epoch
norm_alpha.csv         a row per epoch and layer, for norms that have an alpha
trajectory.json        (mse, ...) per epoch, in the format of the original gap scripts
summary.json           the run in one line, once it has ended
checkpoint.pth         weights, optimizer, epoch
reconstructions.npz    pictures
loss_curve.png .pdf, tensorboard/
"""

import csv
import io
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from .errors import InputError

LOG_COLUMNS = (
    "epoch",
    "train_loss",
    "val_mse",
    "lr",
    "epoch_time_s",
    "images_per_s",
    "peak_memory_mb",
    "norm_alpha_mean",
    "norm_alpha_min",
    "norm_alpha_max",
    "norm_alpha_saturated",
)
ALPHA_COLUMNS = ("epoch", "layer", "alpha", "saturated")
FINISHED, DIVERGED, RUNNING = "finished", "diverged", "running"


class RunFolder:
    """One run's folder. Creating the object touches nothing; `claim` decides whether the run may use it."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.log = self.path / "log.csv"
        self.norm_alpha = self.path / "norm_alpha.csv"
        self.trajectory = self.path / "trajectory.json"
        self.summary = self.path / "summary.json"
        self.checkpoint = self.path / "checkpoint.pth"
        self.reconstructions = self.path / "reconstructions.npz"
        self.loss_curve = self.path / "loss_curve.png"
        self.tensorboard = self.path / "tensorboard"

    def claim(self, identity, *, overwrite=False):
        """Make the folder this run's own and return the summary of the run if it has ended already, else None.

        identity: everything that decides the run's numbers, as a flat dict. Raises InputError if the folder cannot
        be written, or holds a run of another identity; `overwrite` deletes that run, and only files of ours.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output_dir {self.path}: is a file. Choose another --output_dir.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path / ".writable") as f:
                f.write(b"")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise InputError(
                f"--output_dir {self.path}: cannot be written ({error.strerror}). Choose another --output_dir."
            ) from error
        if overwrite:
            self.clear()
        stored = read_json(self.config) if self.config.exists() else None
        if stored is not None:
            difference = first_difference(stored.get("identity", {}), identity)
            if difference:
                name, theirs, ours = difference
                raise InputError(
                    f"--output_dir {self.path}: holds a run with {_spell(name, theirs)}, this one has "
                    f"{_spell(name, ours)}. Choose another --output_dir, or --overwrite to delete that run."
                )
        return read_json(self.summary) if stored is not None and self.summary.exists() else None

    def clear(self):
        """Delete the files of a run, and nothing else that may be in the folder."""
        for file in (self.summary, self.config, self.checkpoint, self.log, self.norm_alpha, self.trajectory,
                     self.reconstructions, self.loss_curve, self.loss_curve.with_suffix(".pdf")):  # fmt: skip
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)


class Record:
    """What a run has measured so far, epoch by epoch, and the files that hold it.

    folder: RunFolder. head: the run's entry in trajectory.json (alpha, lr, model, decoder, norm, seed). Epochs before
    `first_epoch` are read back from the folder, later ones, of a run killed before its checkpoint, are dropped.
    """

    def __init__(self, folder, head, first_epoch=0):
        self.folder, self.head = folder, head
        self.log = [row for row in read_csv(folder.log) if row["epoch"] < first_epoch]
        self.alphas = [row for row in read_csv(folder.norm_alpha) if row["epoch"] < first_epoch]

    def add(self, row, layers, status):
        """Append an epoch and write log.csv, norm_alpha.csv and trajectory.json.

        row: values of LOG_COLUMNS but the norms' alphas; layers: (name, alpha, saturated or None) of each norm layer.
        """
        self.log.append({**row, **_alpha_columns(layers)})
        self.alphas += [dict(zip(ALPHA_COLUMNS, (row["epoch"], *layer))) for layer in layers]
        write_csv(self.folder.log, LOG_COLUMNS, self.log)
        write_csv(self.folder.norm_alpha, ALPHA_COLUMNS, self.alphas)
        self.write_trajectory(status)

    def write_trajectory(self, status):
        """Write trajectory.json, in the format of the original gap scripts."""
        points = [
            {"epoch": row["epoch"], "mse": row["val_mse"], "alpha": self.head["alpha"], "lr": self.head["lr"]}
            for row in self.log
        ]
        write_json(self.folder.trajectory, {**self.head, "status": status, "trajectory": points})


def _alpha_columns(layers):
    """The log's columns on the norms' alphas: over layers, mean, min, max and the share that sits at a bound."""
    if not layers:
        return {}
    values = [alpha for _, alpha, _ in layers]
    bounded = [saturated for _, _, saturated in layers if saturated is not None]
    return {
        "norm_alpha_mean": sum(values) / len(values),
        "norm_alpha_min": min(values),
        "norm_alpha_max": max(values),
        "norm_alpha_saturated": sum(bounded) / len(bounded) if bounded else None,
    }


def first_difference(stored, identity):
    """(name, stored value, new value) of the first setting that differs, or None; settings unknown then are equal."""
    for name, value in identity.items():
        if name in stored and stored[name] != value:
            return name, stored[name], value
    return None


def _spell(name, value):
    if name == "data":
        return f"data {value}"
    return f"no --{name}" if value in (None, False) else f"--{name}" if value is True else f"--{name} {value}"


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
        "val_mse": log[-1]["val_mse"],
        "images_per_s": sum(row["images_per_s"] for row in log) / len(log),
        "peak_memory_mb": max((row["peak_memory_mb"] for row in log if row["peak_memory_mb"]), default=None),
    }


def load_runs(root):
    """All runs below a folder, sorted by path: a list of dicts with path, config, summary or None, log rows, alphas."""
    runs = []
    for config in sorted(Path(root).rglob("config.json")):
        folder = RunFolder(config.parent)
        settings = read_json(config)
        if "identity" not in settings:
            continue
        runs.append(
            {
                "path": folder.path,
                "config": settings,
                "summary": read_json(folder.summary) if folder.summary.exists() else None,
                "log": read_csv(folder.log),
                "norm_alpha": read_csv(folder.norm_alpha),
            }
        )
    return runs


@contextmanager
def atomic_write(path):
    """Open a binary file that appears under `path` whole or not at all: temporary name, flush to disk, rename."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_json(path, value):
    """Write JSON that any parser reads: what is not finite becomes null."""
    with atomic_write(path) as f:
        f.write((json.dumps(_finite(value), indent=1, allow_nan=False) + "\n").encode())


def read_json(path):
    """Parsed JSON. Raises InputError naming the file if it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}). Delete the run's folder, or --overwrite it.") from error


def write_csv(path, columns, rows):
    """Write rows; floats keep all their digits, None is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as f:
        f.write(text.getvalue().encode())


def write_arrays(path, arrays):
    """Write a compressed .npz."""
    import numpy as np

    with atomic_write(path) as f:
        np.savez_compressed(f, **arrays)


def read_csv(path):
    """Rows of a file of write_csv with numbers as numbers; an empty list if there is no file."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(f)]


def _number(cell):
    if cell in ("", None):
        return None
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _finite(value):
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


def package_versions():
    """Versions of the packages that decide numbers, where installed."""
    versions = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-image"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit():
    """Commit of the kit, with "+" if files differ from it; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None if described.returncode == 0 else None
