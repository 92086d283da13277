"""What the files of a run may hold, looked at when they are read: after that nobody meets what no run has written. No torch."""

from pathlib import Path

from .. import files
from ..files import damaged
from ..settings import identities
from ..settings.probes import READOUTS
from ..settings.tasks import PRETRAIN
from .measures import LOSS, MEASURES
from .status import DIVERGED, FINISHED

MOST = 1e39  # no number is larger that was a float32 once

# columns of log.csv and norm_alpha.csv without which nothing can be said of a run
_LOG = ("epoch", "train_loss", "epoch_time_s", "images_per_s", "peak_memory_mb")
_LAYERS = ("epoch", "layer", "alpha", "saturated")
_BY_CLASS, _BY_LAYER = ("class", "label", "images"), ("layer", "accuracy")
_COUNTS = ("train_images", "val_images", "classes")


def read_config(file):
    """The dict of a run's config.json, None if it is another program's. Raises files.Damaged."""
    config = files.read_json(file)
    if not isinstance(config, dict) or "identity" not in config:
        return None
    identity = config["identity"]
    _dict(file, "identity", identity)
    check_identity(file, identity)
    evaluates = identity.get("task", PRETRAIN) != PRETRAIN or bool(identity.get("freeze"))
    for name in ("norm", "seed", *(("init",) if evaluates else ()), *(("lr",) if identity.get("freeze") else ())):
        _there(file, identity, name, " in its identity")
    if evaluates:
        _there(file, config, "data")
    for name in ("data", "settings", "versions", "architecture"):
        if config.get(name) is not None:
            _dict(file, name, config[name])
    if evaluates:
        _there(file, config["data"] or {}, "classes", " in its data")
    for of, name in [("data", name) for name in _COUNTS] + [(None, "effective_batch"), (None, "runs_at_a_time")]:
        values = config if of is None else config.get(of) or {}
        if name in values:
            _whole(file, name, values[name], 1)
    if config.get("trainable_parameters") is not None:
        _whole(file, "trainable_parameters", config["trainable_parameters"])
    command = config.get("command") or []
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise damaged(file, f"holds {command!r:.40} for command")
    return config


def check_sizes(file, config):
    """Raise files.Damaged unless a config has what tells how long a run on some of the images was."""
    _there(file, config["identity"], "epochs", " in its identity")
    _there(file, config, "effective_batch")
    _there(file, config.get("data") or {}, "train_images", " in its data")


def check_identity(file, identity):
    """Raise files.Damaged unless the values of an identity have the types that those of their flags have."""
    for name, value in identity.items():
        if text := identities.wrong(name, value):
            raise damaged(file, text)


def read_summary(file, identity=None):
    """The dict of a run's summary.json, None if there is no such file. Raises files.Damaged.

    identity: of its config.json, whose seed it has to have; None to do without.
    """
    if not Path(file).exists():
        return None
    summary = files.read_json(file)
    _dict(file, None, summary)
    if summary.get("status") not in (FINISHED, DIVERGED):
        raise damaged(file, f"holds {summary.get('status')!r:.40} for status")
    for name in ("seed", "total_epochs"):
        if identity is not None:
            _there(file, summary, name)
        _whole(file, name, summary.get(name, 0))
    if identity is not None and summary["seed"] != identity["seed"]:
        raise damaged(file, f"is of seed {summary['seed']}, its config.json of seed {identity['seed']}")
    for name, value in summary.items():
        if name in MEASURES and name != "alpha":
            measured(file, name, value)
        elif isinstance(value, (dict, list)) or (isinstance(value, str) and not files.is_text(value)):
            raise damaged(file, f"holds {value!r:.40} for {name}")
    return summary


def read_log(file, task=PRETRAIN):
    """Rows of log.csv, [] if there is none. Raises files.Damaged."""
    rows, before = _table(file, (*_LOG, *(("val_mse",) if task == PRETRAIN else ()))), -1
    for row in rows:
        for name, value in row.items():
            if name != "peak_memory_mb" or value is not None:
                measured(file, name, value, in_log=name in _LOG)
        if row["epoch"] <= before:
            raise damaged(file, f"has epoch {row['epoch']} after epoch {before}")
        before = row["epoch"]
    return rows


def read_layers(file):
    """Rows of norm_alpha.csv, [] if there is none. Raises files.Damaged."""
    rows = _table(file, _LAYERS)
    for row in rows:
        _whole(file, "epoch", row["epoch"])
        if not isinstance(row["layer"], str):
            raise damaged(file, f"holds {row['layer']!r:.40} for layer")
        if row.get("saturated") not in (None, True, False):
            raise damaged(file, f"holds {row['saturated']!r:.40} for saturated")
        for name in ("alpha", "flat"):
            if row.get(name) is not None:
                measured(file, name, row[name])
    return rows


def read_by_class(file):
    """Rows of accuracy_by_class.csv, [] if there is none. Raises files.Damaged."""
    rows = _table(file, _BY_CLASS)
    for row in rows:
        _whole(file, "images", row["images"])
        if row["label"] is not None:
            _whole(file, "label", row["label"])
        for name in row.keys() - set(_BY_CLASS):
            if row[name] is not None:
                _number(file, name, row[name], 0, 100)
    return rows


def read_by_layer(file):
    """Rows of accuracy_by_layer.csv, [] if there is none. Raises files.Damaged."""
    rows = _table(file, _BY_LAYER)
    for row in rows:
        if row["layer"] is None:
            raise damaged(file, "has a row without layer")
        _number(file, "accuracy", row["accuracy"], 0, 100)
    return rows


def read_pictures(file):
    """Arrays of reconstructions.npz by name. Raises files.Damaged."""
    arrays = files.read_arrays(file, ("image", "masked", "reconstruction", "mask"))
    image = arrays["image"]
    for name in ("image", "masked", "reconstruction"):
        value = arrays[name]
        if value.shape != image.shape or value.ndim != 4 or value.shape[-1:] != (3,) or value.dtype != "uint8":
            raise damaged(file, f"has pictures {name} of {value.dtype}, {value.shape}")
    for name in arrays.keys() & {"mask", "attention", "tokens", "name"}:
        if arrays[name].shape[:1] != image.shape[:1]:
            raise damaged(file, f"has {name} of {arrays[name].shape} for {len(image)} pictures")
    return arrays


def read_features(file):
    """Arrays of features.npz by name: labels (N,), and features (N, D) of each read-out. Raises files.Damaged."""
    arrays = files.read_arrays(file, ("labels", *READOUTS))
    for name in READOUTS:
        if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f" or len(arrays[name]) != len(arrays["labels"]):
            raise damaged(file, f"has {name} of {arrays[name].dtype}, {arrays[name].shape}")
    return arrays


def usable(read, file):
    """What read(file) returns, None where the file is damaged: the run's other files are used all the same, which is said."""
    try:
        return read(file)
    except files.Damaged as error:
        print(f"note: {error} Gone on without it.")
        return None


def wrong(name, value):
    """What is wrong with the value of a measure of this name, None if nothing is: 'holds -1 for psnr'."""
    least, most = _range(name)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    return None if fits else f"holds {value!r:.40} for {name}"


def measured(file, name, value, in_log=True):
    """Raise files.Damaged unless value is one that a measure of this name can have; None is, where it is not in_log."""
    if name not in MEASURES or (value is None and not (in_log and name in _LOG)):
        return
    if name in ("epoch", "total_epochs", "min_loss_epoch"):
        _whole(file, name, value)
    elif name == "grad_norm" and isinstance(value, float):
        pass  # it may overflow, and the run goes on
    elif text := wrong(name, value):
        raise damaged(file, text)


def _range(name):
    """(least, largest) value of a measure."""
    measure = MEASURES.get(name)
    if measure is None or name in ("alpha", "train_loss", "final_loss", "min_loss", "lr", "psnr"):
        return -MOST, MOST
    if measure.unit == "%":
        return 0, 100 + 1e-6
    if name in ("flat", "norm_flat", "norm_alpha_saturated"):
        return 0, 1 + 1e-6
    return (0 if measure.unit or measure.kind is LOSS else -MOST), MOST


def _table(file, needed):
    rows = files.read_csv(file)
    for name in needed if rows else ():
        _there(file, rows[0], name)
    return rows


def _there(file, values, name, where=""):
    if name not in values:
        raise damaged(file, f"lacks {name}{where}")


def _dict(file, name, value):
    if not isinstance(value, dict):
        raise damaged(file, f"holds {value!r:.40}" + (f" for {name}" if name else ""))


def _whole(file, name, value, least=0):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < identities.MOST_WHOLE:
        raise damaged(file, f"holds {value!r:.40} for {name}")


def _number(file, name, value, least, most):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise damaged(file, f"holds {value!r:.40} for {name}")
