"""The run folder: what is in it, who may use it, and how it is read. No torch.

config.json            settings, data, versions, hardware
log.csv                a row per epoch
norm_alpha.csv         a row per epoch and layer, for norms that have an alpha
trajectory.json        (mse, accuracies) per epoch, in the format of the original gap scripts
summary.json           the run in one line, once it has ended
checkpoint.pth         weights, optimizer, probes, epoch (in --checkpoint_dir, if there is one), and the one before
status.json            where the run is, for drivers: written every few seconds
output.txt             what it printed, if it ran beside others
wandb_id.txt           what Weights & Biases calls the run, if it is logged there
run.lock               held by the process that trains
reconstructions.npz    pictures
loss_curve.png .pdf, tensorboard/
"""

import json
import shutil
from decimal import Decimal
from pathlib import Path

from . import identities
from .errors import Busy, InputError
from .files import Damaged, draft_of, read_csv, read_json, remove_drafts, write_csv, write_json
from .locks import Lock
from .recipes import EVALUATIONS, PRETRAIN

ACCURACIES = {"joint": "accuracy", "frozen": "frozen_accuracy", "knn": "knn_accuracy"}  # probe: column, percent
UNTRAINED = {  # what an accuracy is to be compared with: the encoder of the same seed before any training
    "accuracy": "untrained_frozen_accuracy",
    "frozen_accuracy": "untrained_frozen_accuracy",
    "knn_accuracy": "untrained_knn_accuracy",
}
ACCURACY_COLUMNS = (*ACCURACIES.values(), *dict.fromkeys(UNTRAINED.values()))
EVALUATION_ACCURACIES = tuple(  # top-1 in percent, of a pre-trained encoder and of the same network with random weights
    f"{of}{task}_accuracy" for task in EVALUATIONS for of in ("", "untrained_")
)
LOG_COLUMNS = (
    "epoch",
    "train_loss",
    "train_loss_rec",
    "train_loss_cls",
    "val_mse",
    *ACCURACY_COLUMNS,
    "lr",
    "epoch_time_s",
    "images_per_s",
    "peak_memory_mb",
    "norm_alpha_mean",
    "norm_alpha_min",
    "norm_alpha_max",
    "norm_alpha_saturated",
)
EVALUATION_COLUMNS = ("epoch", "train_loss", "val_loss", "acc1", "acc5", *LOG_COLUMNS[LOG_COLUMNS.index("lr") :])
SCORES = {**ACCURACIES, "top-1": "acc1", "top-5": "acc5"}  # for the terminal
MEASURED_LAST = ("val_mse", *ACCURACY_COLUMNS, "val_loss", "acc1", "acc5")  # of the last epoch, in summary.json
ALPHA_COLUMNS = ("epoch", "layer", "alpha", "saturated")
FINISHED, DIVERGED, RUNNING, PREEMPTED, FAILED = "finished", "diverged", "running", "preempted", "failed"


class RunFolder:
    """One run's folder. Creating the object touches nothing; `claim` decides whether the run may use it.

    checkpoint_dir: where the checkpoint lies, the folder itself if None.
    """

    def __init__(self, path, checkpoint_dir=None):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.log = self.path / "log.csv"
        self.norm_alpha = self.path / "norm_alpha.csv"
        self.trajectory = self.path / "trajectory.json"
        self.summary = self.path / "summary.json"
        self.checkpoint = Path(checkpoint_dir or path) / "checkpoint.pth"
        self.previous_checkpoint = self.checkpoint.with_name("checkpoint.previous.pth")
        self.damaged_checkpoint = self.checkpoint.with_name("checkpoint.damaged.pth")
        self.status = self.path / "status.json"
        self.lock = self.path / "run.lock"
        self.output = self.path / "output.txt"
        self._held = Lock(self.lock)
        self.reconstructions = self.path / "reconstructions.npz"
        self.loss_curve = self.path / "loss_curve.png"
        self.tensorboard = self.path / "tensorboard"
        self.wandb_id = self.path / "wandb_id.txt"

    def claim(self, identity, *, overwrite=False, fresh=False):
        """Make the folder this run's own and return the summary of the run if it has ended already, else None.

        identity: everything that decides the run's numbers, as a flat dict. Raises InputError if the folder cannot
        be written, or holds a run of another identity; `overwrite` deletes that run, with `fresh` one of the same identity
        as well, and only files of ours. Raises Busy if another process is training there; until `release` no other can.
        """
        _make_writable(self.status, "--output_dir")
        if self.checkpoint.parent != self.path:
            _make_writable(self.checkpoint, "--checkpoint_dir")
        summary = None if overwrite else self._ended(identity)
        if summary is not None:
            return summary
        if not self._held.acquire():
            raise Busy(f"{self.path}: {self._held.holder()} is training it.")
        goes_on = False
        try:
            remove_drafts(self._written())
            if overwrite and (self._is_other(identity) or fresh):
                self.clear()
            elif self.identity() is None:
                self.wandb_id.unlink(missing_ok=True)  # of another run, perhaps, that never came to a checkpoint
            summary = self._ended(identity)  # by now, perhaps
            goes_on = summary is None
        finally:
            if not goes_on:
                self.release()
        return summary

    def settle(self, identity, found):
        """The identity of the claimed run with what the machine decided, `found`: its precision, and what its pixels are.

        Raises InputError if what the run has done so far was done otherwise.
        """
        if wrong := identities.unsettled(self.identity(), found):
            raise InputError(f"{self.path}: {wrong}")
        return {**identity, **found}

    def release(self):
        """Let other processes have the folder."""
        self._held.release()

    def identity(self):
        """What decided the numbers of the run that is here, None if there is none. Raises InputError.

        A run that left no state behind, one that was out of memory say, binds nobody.
        """
        if not self.config.exists():
            return None
        config = read_json(self.config)
        stored = config.get("identity") if isinstance(config, dict) else None
        if not isinstance(stored, dict):
            raise InputError(f"{self.config}: is not of a run. Move it away, or choose another --output_dir.")
        return stored if any(f.exists() for f in (self.checkpoint, self.previous_checkpoint, self.summary)) else None

    def _is_other(self, identity):
        """Whether what is here is damaged, or of another run than this one; of a checkpoint alone see read_newest."""
        try:
            stored = self.identity()
            if self.summary.exists():
                read_json(self.summary)
        except Damaged:
            return True
        return stored is not None and identities.difference(stored, identity) is not None

    def _ended(self, identity):
        stored = self.identity()
        if stored is None:
            return None
        identities.check(stored, identity, f"--output_dir {self.path}: holds")
        return read_json(self.summary) if self.summary.exists() else None

    def history(self, first_epoch):
        """Rows of log.csv and norm_alpha.csv of the epochs before one, as Record takes them."""
        parts = {"log": read_csv(self.log), "alphas": read_csv(self.norm_alpha)}
        return {name: [row for row in rows if row["epoch"] < first_epoch] for name, rows in parts.items()}

    def clear(self):
        """Delete the files of a run, and nothing else that may be in the folder."""
        for file in self._written():
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def _written(self):
        """The files that a training process writes."""
        return (self.summary, self.status, self.config, self.checkpoint, self.previous_checkpoint,
                self.damaged_checkpoint, self.log, self.norm_alpha, self.trajectory, self.wandb_id,
                self.reconstructions, self.loss_curve, self.loss_curve.with_suffix(".pdf"))  # fmt: skip


class Record:
    """What a run has measured so far, epoch by epoch, and the files that hold it.

    folder: RunFolder, or None to write nothing. columns: of log.csv, LOG_COLUMNS or EVALUATION_COLUMNS. head: the run's entry in trajectory.json
    (alpha, lr, model, decoder, norm, seed), None for no such file. log, alphas: the rows of log.csv and norm_alpha.csv
    so far; the checkpoint keeps them, so that files and weights always agree.
    """

    def __init__(self, folder, columns, head, log=(), alphas=()):
        self.folder, self.columns, self.head = folder, columns, head
        self.log, self.alphas = list(log), list(alphas)

    def history(self):
        """What another Record needs to go on from here."""
        return {"log": self.log, "alphas": self.alphas}

    def add(self, row, layers, status):
        """Append an epoch and write.

        row: values of the columns but the norms' alphas, others are left out; layers: (name, alpha, saturated or None)
        of each norm layer.
        """
        row = {**row, **_alpha_columns(layers)}
        self.log.append({name: row.get(name) for name in self.columns})
        self.alphas += [dict(zip(ALPHA_COLUMNS, (row["epoch"], *layer))) for layer in layers]
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
        points = [
            {
                "epoch": row["epoch"],
                "mse": row["val_mse"],
                **{name: row.get(name) for name in ACCURACY_COLUMNS},
                "alpha": self.head["alpha"],
                "lr": self.head["lr"],
            }
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


def _make_writable(path, flag):
    """Create the folder of a file if need be and write in it. Raises InputError naming the flag."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder}: is a file. Choose another {flag}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(draft_of(path), "wb"):  # what remove_drafts knows
            pass
        draft_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder}: cannot be written ({error.strerror}). Choose another {flag}.") from error


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


def is_evaluation(run):
    """Whether a run of load_runs is no pre-training."""
    return run["config"]["identity"].get("task", PRETRAIN) != PRETRAIN


def evaluation_column(run):
    """Which of EVALUATION_ACCURACIES an evaluation gives."""
    identity = run["config"]["identity"]
    return f"{'' if identity['init'] else 'untrained_'}{identity['task']}_accuracy"


def load_trajectories(folder):
    """DataFrame of all points below a folder, a row an epoch of a run; see read_trajectories."""
    return tabulate_points(read_trajectories(folder)[0])


def tabulate_points(trajectories):
    """DataFrame with a row a point: the run's path, alpha, lr, norm, seed, model, decoder and status, then epoch, mse,
    and accuracies in percent, nan where they were not measured."""
    import pandas as pd

    rows = [{**_head(run), **point} for run in trajectories for point in run["trajectory"]]
    return pd.DataFrame(rows, columns=["run", *_HEAD, "status", "epoch", "mse", *ACCURACY_COLUMNS]).astype(
        dict.fromkeys(("alpha", "lr", "mse", *ACCURACY_COLUMNS), float)
    )


def read_trajectories(folder):
    """Every trajectory.json below a folder, sorted by path: (trajectories, problems).

    A trajectory is the file's dict with `run`, its path, and what the original gap scripts did not write: lr 1.5e-4,
    norm LayerNorm, seed 0, status finished. A file that cannot be used is left out and gives a line in problems.
    """
    trajectories, problems = [], []
    for path in sorted(Path(folder).rglob("trajectory.json")):
        try:
            trajectories.append({**_ORIGINAL, **_read_trajectory(path), "run": str(path.parent)})
        except (_Unusable, OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: {error}; left out.")
    return trajectories, problems


class _Unusable(Exception):
    """What is wrong with a trajectory."""


_HEAD = ("alpha", "lr", "norm", "seed", "model", "decoder")
_ORIGINAL = {"lr": 1.5e-4, "norm": "LayerNorm", "seed": 0, "model": None, "decoder": None, "status": FINISHED}


def _head(run):
    return {name: run[name] for name in ("run", *_HEAD, "status")}


def _read_trajectory(path):
    """The dict of a trajectory.json. Raises _Unusable with what is wrong with it."""

    def not_finite(name):
        raise _Unusable(f"holds {name}")

    try:
        run = json.loads(path.read_text(encoding="utf-8"), parse_constant=not_finite)
    except json.JSONDecodeError as error:
        raise _Unusable(f"is no JSON, or cut off ({error})") from None
    if not isinstance(run, dict):
        raise _Unusable("is no trajectory")
    run = {name: value for name, value in run.items() if value is not None}
    _check(run, {"alpha": _NUMBER}, required=True)
    _check(run, {"lr": _NUMBER, "seed": _WHOLE, "flat_colour": _NUMBER, "smooth_colour": _NUMBER}, required=False)
    _check(run, dict.fromkeys(("norm", "model", "decoder", "status"), _TEXT), required=False)
    if not isinstance(run.get("trajectory"), list):
        raise _Unusable("lacks the key trajectory")
    for i, point in enumerate(run["trajectory"]):
        if not isinstance(point, dict):
            raise _Unusable(f"point {i} is no point")
        _check(point, {"epoch": _WHOLE, "mse": _NUMBER}, required=True, where=f" in point {i}")
        _check(point, dict.fromkeys(ACCURACY_COLUMNS, _NUMBER), required=False, where=f" in point {i}")
        if "accuracy" not in point:
            raise _Unusable(f"lacks the key accuracy in point {i}")
    if not run["trajectory"] and run.get("status", FINISHED) == FINISHED:
        raise _Unusable("has no points")
    return run


_NUMBER, _WHOLE, _TEXT = (int, float), (int,), (str,)


def _check(values, kinds, *, required, where=""):
    """Raise _Unusable unless values has, for each name in kinds, one of those kinds and finite, or is free not to."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value is None and required:
            raise _Unusable(f"lacks the key {name}{where}")
        wrong = isinstance(value, bool) or not isinstance(value, kind) or (kind is not _TEXT and value - value)
        if value is not None and wrong:
            raise _Unusable(f"holds {value!r} for {name}{where}")


def spell(number):
    """A number as a decimal with a point, the way folders and commands have it: -0.00001, 0.5, 10.0."""
    text = f"{Decimal(repr(float(number) + 0.0)):f}"  # + 0.0: minus zero is zero
    return text if "." in text else f"{text}.0"
