"""The table of measures: a row for everything that a run measures. No torch.

log.csv and norm_alpha.csv, the points of trajectory.json, the scores in the terminal, the comparison's table and
statistics, titles of tables and labels of axes come from it. To measure something more, add a row here and give the
value under its column with an epoch's other values; Record.add refuses a column that has no row.
"""

from enum import Enum, Flag, auto
from typing import NamedTuple

from ..settings import probes
from ..settings.probes import EVALUATIONS
from ..settings.tasks import FINETUNE, KNN, LINPROBE


class Place(Flag):
    """Where a measure is recorded and shown."""

    PRETRAINING = auto()  # log.csv of a pre-training
    EVALUATION = auto()  # log.csv of a fine-tuning, a linear probing or k-NN
    LAYER = auto()  # norm_alpha.csv, a row per epoch and layer
    POINT = auto()  # a point of trajectory.json
    LAST = auto()  # summary.json, from the last epoch
    ONCE = auto()  # summary.json and the head of trajectory.json: measured once, before training
    TABLE = auto()  # comparison_table.csv, with mean and deviation over seeds
    PRINTED = auto()  # the table that a comparison prints
    COMPARED = auto()  # means, intervals and differences in comparison_statistics.json and in the report
    SHOWN = auto()  # the report's table of methods alone


class Kind(Enum):
    """What a measure says something about. Tables for reading have columns in this order, files in the rows'."""

    LENGTH = 1
    LOSS = 2
    QUALITY = 3
    ACCURACY = 4
    FEATURES = 5
    COST = 6
    NORM = 7


class Measure(NamedTuple):
    """A row of the table."""

    column: str
    label: str
    unit: str  # "" for a plain number
    better: str | None  # "lower", "higher"; None where neither is
    kind: Kind
    places: Place
    short: str | None = None  # its name in the terminal's line after an epoch; None: not in it

    @property
    def title(self):
        """Title of a table's column: joint probe (%)."""
        return self.label if not self.unit or self.kind is LOSS else f"{self.label} ({self.unit})"

    @property
    def axis(self):
        """Label of a figure's axis: joint probe accuracy (%); k-NN accuracy (%), mean of patches."""
        label, _, readout = self.label.rpartition(", ")
        if readout not in probes.LABELS.values():
            label, readout = self.label, ""
        label = f"{label} accuracy" if self.kind is ACCURACY else label
        return label + (f" ({self.unit})" if self.unit else "") + (f", {readout}" if readout else "")


PRETRAINING, EVALUATION, LAYER, POINT, LAST, ONCE, TABLE, PRINTED, COMPARED, SHOWN = Place
LENGTH, LOSS, QUALITY, ACCURACY, FEATURES, COST, NORM = Kind

# Accuracies while an encoder is pre-trained, and what each is to be compared with: the encoder of the same seed before
# any training.
ACCURACIES = {name: accuracy.column for name, accuracy in probes.ACCURACIES.items()}
UNTRAINED = {accuracy.column: accuracy.untrained for accuracy in probes.ACCURACIES.values()}

# Top-1 accuracies of evaluations: of a pre-trained encoder, and of the same network with random weights.
_TASKS = {FINETUNE: "fine-tuning", LINPROBE: "linear probing", KNN: "k-NN"}
EVALUATION_LABELS = {
    name: _TASKS[task] if name == task else f"{_TASKS[task]}, {probes.LABELS[readout]}"
    for name, (task, readout) in EVALUATIONS.items()
}
EVALUATION_ACCURACIES = tuple(f"{of}{name}_accuracy" for name in EVALUATIONS for of in ("", "untrained_"))
EVALUATION_RESULTS = (*EVALUATION_ACCURACIES, "decoder_mse", "untrained_decoder_mse")


def _accuracies():
    """Rows of the probes' accuracies, the untrained encoder's, and the evaluations'. k-NN is a probe and a task."""
    watched = PRETRAINING | POINT | LAST | TABLE | PRINTED
    labels = {a.column: a.label for a in probes.ACCURACIES.values()}
    rows = [
        Measure(a.column, a.label, "%", "higher", ACCURACY, watched | COMPARED, name.replace("_", " "))
        for name, a in probes.ACCURACIES.items()
    ]
    for column, untrained in UNTRAINED.items():
        label = labels.get(untrained.removeprefix("untrained_"), labels[column])
        rows.append(Measure(untrained, f"untrained, {label}", "%", None, ACCURACY, watched))
    for name, label in EVALUATION_LABELS.items():
        rows.append(Measure(f"{name}_accuracy", label, "%", "higher", ACCURACY, TABLE | COMPARED))
        rows.append(Measure(f"untrained_{name}_accuracy", f"untrained, {label}", "%", None, ACCURACY, TABLE))
    return rows


def _representation():
    """Rows of what the probe of this name says."""
    watched = PRETRAINING | POINT | LAST | TABLE
    of = {f"rank_{readout}": f"effective rank, {label}" for readout, label in probes.READOUTS.items()}
    rows = [Measure(column, label, "", None, FEATURES, watched | COMPARED) for column, label in of.items()]
    rows += [
        Measure(f"untrained_{column}", f"untrained, {label}", "", None, FEATURES, watched)
        for column, label in of.items()
    ]
    bands = {
        "mse_90": "error where 90 % of the variance is",
        "mse_9": "where the next 9 % are",
        "mse_1": "where the last 1 % is",
    }
    return rows + [Measure(name, label, _MSE, "lower", FEATURES, watched | COMPARED) for name, label in bands.items()]


_LOGGED = PRETRAINING | EVALUATION
_SUMMARY = TABLE | PRINTED | COMPARED
_MSE = "MSE, hidden patches"
_ROWS = [
    Measure("epoch", "epoch", "", None, LENGTH, _LOGGED | LAYER | POINT),
    Measure("train_loss", "training loss", "", "lower", LOSS, _LOGGED),
    Measure("train_loss_rec", "training loss of the reconstruction", _MSE, "lower", LOSS, PRETRAINING),
    Measure("train_loss_cls", "training loss of the joint probe", "cross entropy", None, LOSS, PRETRAINING),
    Measure("total_epochs", "epochs", "", None, LENGTH, TABLE | PRINTED),
    Measure("total_time", "total time", "s", "lower", COST, TABLE),
    Measure("avg_epoch_time", "training time per epoch", "s", "lower", COST, _SUMMARY),
    Measure("final_loss", "training loss", "", "lower", LOSS, _SUMMARY),
    Measure("min_loss", "least training loss", "", "lower", LOSS, TABLE | PRINTED | SHOWN),
    Measure("min_loss_epoch", "epoch of the least training loss", "", None, LENGTH, TABLE),
    Measure("val_mse", "validation loss", _MSE, "lower", LOSS, _SUMMARY | PRETRAINING | POINT | LAST),
    Measure(
        "ema_val_mse",
        "validation loss of the averaged weights",
        _MSE,
        "lower",
        LOSS,
        PRETRAINING | LAST | TABLE | COMPARED,
    ),
    *_accuracies(),
    *_representation(),
    Measure("val_loss", "validation loss", "cross entropy", "lower", LOSS, EVALUATION | LAST),
    Measure("acc1", "top-1", "%", "higher", ACCURACY, EVALUATION | LAST, "top-1"),
    Measure("acc5", "top-5", "%", "higher", ACCURACY, EVALUATION | LAST, "top-5"),
    Measure("psnr", "PSNR", "dB", "higher", QUALITY, _SUMMARY),
    Measure("ssim", "SSIM", "", "higher", QUALITY, _SUMMARY),
    Measure("lr", "learning rate", "", None, LENGTH, _LOGGED),
    Measure("grad_norm", "norm of the gradient", "", None, LENGTH, _LOGGED),
    Measure("epoch_time_s", "training time of the epoch", "s", "lower", COST, _LOGGED),
    Measure("images_per_s", "speed", "images/s", "higher", COST, _LOGGED | TABLE),
    Measure("peak_memory_mb", "peak memory", "MB", "lower", COST, _LOGGED | TABLE | COMPARED),
    Measure("norm_alpha_mean", "mean α of the norm layers", "", None, NORM, _LOGGED),
    Measure("norm_alpha_min", "least α of a norm layer", "", None, NORM, _LOGGED),
    Measure("norm_alpha_max", "largest α of a norm layer", "", None, NORM, _LOGGED),
    Measure("norm_alpha_saturated", "share of norm layers with α at a bound", "", None, NORM, _LOGGED),
    Measure("norm_flat", "share of activations where a norm layer is flat", "", None, NORM, PRETRAINING),
    Measure("layer", "norm layer", "", None, NORM, LAYER),
    Measure("alpha", "α of a norm layer", "", None, NORM, LAYER),
    Measure("saturated", "whether α is at a bound", "", None, NORM, LAYER),
    Measure("layer_grad_norm", "norm of the gradient of a norm layer", "", None, NORM, LAYER),
    Measure("flat", "share of a norm layer's activations where it is flat", "", None, NORM, LAYER),
    Measure("decoder_mse", "validation loss of a new decoder", _MSE, "lower", LOSS, TABLE | COMPARED),
    Measure("untrained_decoder_mse", "untrained encoder, validation loss of a new decoder", _MSE, None, LOSS, TABLE),
    Measure("flat_colour", "flat colour", _MSE, None, LOSS, ONCE | TABLE),
    Measure("smooth_colour", "smoothed colour", _MSE, None, LOSS, ONCE | TABLE),
]
MEASURES = {}
for _row in _ROWS:
    MEASURES.setdefault(_row.column, _row)  # of a column that is there twice the first row counts


def columns(place):
    """Columns of the measures of a Place, in the order of the table, which is that of files."""
    return tuple(row.column for row in MEASURES.values() if row.places & place)


def for_reading(place):
    """Columns of the measures of a Place by what they say something about: losses, quality, accuracies, cost."""
    return tuple(sorted(columns(place), key=lambda column: MEASURES[column].kind.value))


LOG_COLUMNS = columns(PRETRAINING)
EVALUATION_COLUMNS = columns(EVALUATION)
ALPHA_COLUMNS = columns(LAYER)
MEASURED_LAST = columns(LAST)
BASELINES = columns(ONCE)
# Name in a point of trajectory.json, that of the original gap scripts: column of log.csv.
POINT_COLUMNS = {{"val_mse": "mse"}.get(column, column): column for column in columns(POINT)}
ACCURACY_COLUMNS = tuple(c for c in POINT_COLUMNS.values() if MEASURES[c].kind is ACCURACY)
WATCHED = tuple(c for c in POINT_COLUMNS.values() if MEASURES[c].kind in (ACCURACY, FEATURES))  # by probes
SCORES = {row.short: row.column for row in MEASURES.values() if row.short}  # in the terminal: column
