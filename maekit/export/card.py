"""README.md of an export: what the weights are, how to load them, how they were made and what they score, from the run."""

import re
from pathlib import Path

from ..runs import measures
from ..settings.spelling import spell
from ..settings.tasks import PRETRAIN
from ..stats import t_interval
from . import pictures, scores
from .trained import TASKS

MADE = "Made with the MAE reproduction kit"  # by which an export is known
_RECIPE = (  # flags
    *("epochs", "batch_size", "accum_iter", "processes", "lr", "min_lr", "warmup_epochs", "weight_decay", "mask_ratio"),
    *("norm_pix_loss", "pos_embed", "crop", "alpha", "probes", "readout", "freeze", "clip_grad", "ema", "layer_decay"),
    *("drop_path", "mixup", "cutmix", "smoothing", "reprob", "aa", "precision", "seed"),
)


def text(trained, package, licence=None, repository=None):
    """The card of a Package, with the front matter that the hub reads. licence: its name of one; repository: where it is pushed."""
    lines = [*_front(trained, package, licence), "", f"# {_title(trained)}", "", _about(trained, package), ""]
    lines += ["## Load it", "", "```python", *_loading(package, repository), "```", "", _pixels(trained), ""]
    lines += ["## What it is", "", *_table(("", ""), _network(trained, package)), ""]
    lines += ["## How it was trained", "", *_table(("", ""), _training(trained)), ""]
    lines += ["## What it scores", "", *_scores(trained), ""]
    lines += ["## Licence", "", _licence(trained, licence), ""]
    return "\n".join(lines)


def _front(trained, package, licence):
    tags = ["mae", "vision-transformer", "masked-autoencoder", trained.norm.lower(), package.pipeline]
    lines = ["---", f"license: {licence or 'unknown'}", f"library_name: {package.library}"]
    return [*lines, f"pipeline_tag: {package.pipeline}", "tags:", *(f"- {tag}" for tag in tags), "---"]


def _title(trained):
    new = ", a new decoder on a frozen encoder" if trained.identity.get("freeze") else ""
    return f"{trained.norm} {TASKS[trained.task]}{new}, {trained.identity['model']}, {trained.side} pixels"


def _about(trained, package):
    averaged = " Its weights are the moving average of those that were trained." if trained.averaged else ""
    return f"{MADE}, written as {package.what}.{averaged}"


def _loading(package, repository):
    if repository is None:
        return package.loading.replace('FOLDER + "/', '"').replace("FOLDER", '"."').rstrip().splitlines()
    fetched = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repository}")\n'
    if "norms import" in package.loading:
        fetched += "import sys\n\nsys.path.insert(0, folder)  # for norms.py\n"
    return (fetched + package.loading.replace("FOLDER", "folder")).rstrip().splitlines()


def _pixels(trained):
    mean, std = (", ".join(map(str, values)) for values in (pictures.MEAN, pictures.STD))
    return (
        f"Images: shorter side to {pictures.short_side(trained)} pixels (bicubic), the middle {trained.side} x {trained.side}, "
        f"values of 0 to 1 minus {mean}, by {std}."
    )


def _network(trained, package):
    sizes, options = trained.architecture, trained.norm_arguments.items()
    network = str(sizes) if package.whole else f"patch {sizes.patch}; encoder {sizes.encoder}"
    rows = [("network", network), ("images", f"{trained.side} x {trained.side}")]
    rows.append(
        ("norm", ", ".join([trained.norm, *(f"{name} {value}" for name, value in options if value is not None)]))
    )
    if trained.classes:
        place = "the mean of the patches" if trained.reads_mean else "the CLS token"
        rows.append(("classes", f"{trained.classes}, read from {place}"))
    written = trained.weights if package.whole else trained.encoder
    return [*rows, ("values written", f"{sum(value.numel() for value in written.values()):,}")]


def _training(trained):
    config, identity = trained.config, trained.identity
    data = config.get("data") or {}
    images = f"{data.get('train_images', 0):,} for training, {data.get('val_images', 0):,} for validation"
    source = f"{_without_folders(data.get('source') or 'unknown')}: {images}, {data.get('classes')} classes"
    told = [(name, identity.get(name)) for name in _RECIPE]
    rows = [
        ("data", f"{source}, fingerprint {data.get('fingerprint')}"),
        ("began from", _beginning(trained)),
        *((f"--{name}", _spelled(value)) for name, value in told if value is not None and value is not False),
        ("model's code", trained.code),
        ("hardware", config.get("hardware")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items())),
        ("commit of the kit", config.get("git_commit") or "unknown"),
    ]
    return [(name, value) for name, value in rows if value]


def _without_folders(source):
    """A data set's name, without the folders of who trained where it is a path."""
    of_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists()
    return source if of_hub else _last(source, 1)


def _last(path, n):
    return "/".join(re.split(r"[\\/]", path)[-n:])


def _beginning(trained):
    """What training began from: the last names of a file, without the folders of who trained, and its hash."""
    resumed, init = trained.identity.get("resume"), trained.identity.get("init")
    told = (trained.config.get("settings") or {}).get("init") or ""
    named = [] if not init else [_last(told, 2 if told.endswith("checkpoint.pth") else 1), f"({init})"]
    named += ["a training that went on,", _last(str(resumed), 2)] if resumed else []
    return " ".join(filter(None, named)) or "random weights"


def _scores(trained):
    """The table of what this run and its siblings, of other seeds, score."""
    folder = trained.folder.resolve()
    own = scores.own(folder, trained.averaged)
    others = scores.of_siblings(folder, trained.config["identity"], trained.averaged)
    images = (trained.config.get("data") or {}).get("val_images")
    rows = []
    for column, score in own.items():
        title = measures.MEASURES[column].title
        row = [
            title if score.images in (images, None) else f"{title}, {score.images:,} images",
            _with_bounds(column, score),
        ]
        values = scores.pooled(score, column, others)
        rows.append([*row, _interval(values) if values else ""] if others else row)
    if not rows:
        return ["Nothing of these weights was measured."]
    said = [f"Over {images:,} validation images{' but where it says otherwise' if others else ''}."] if images else []
    said += ["Masks are the same for every norm and seed."] if trained.task == PRETRAIN else []
    bounded = any(measures.MEASURES[c].kind is measures.ACCURACY and score.images for c, score in own.items())
    said += ["In brackets behind an accuracy: 95 % by the number of its images (Wilson)."] if bounded else []
    said += [] if others else ["One seed: nothing here says how much another one would change."]
    said += ["Of the moving average nothing else was measured."] if trained.averaged else []
    heads = ("measure", "this run", f"mean of {len(others) + 1} seeds (95 % by seeds)")
    return [*_table(heads if others else heads[:2], rows), "", " ".join(said)]


def _with_bounds(column, score):
    """A number, and of an accuracy in percent its bounds by the number of images."""
    if measures.MEASURES[column].kind is not measures.ACCURACY:
        return f"{score.value:.4g}"
    if not score.images:
        return f"{score.value:.1f}"
    from scipy.stats import binomtest

    hits = round(score.value * score.images / 100)
    bounds = binomtest(hits, score.images).proportion_ci(method="wilson")
    return f"{score.value:.1f} ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})"


def _interval(values):
    of = t_interval(values)
    bounds = of["note"] if of["low"] is None else f"{of['low']:.4g} to {of['high']:.4g}"
    return f"{of['mean']:.4g} ({bounds})"


def _licence(trained, licence):
    said = [
        f"The weights: {licence}." if licence else "Who trained them has not said under which licence the weights are."
    ]
    said += ["The kit that trained them is under the MIT licence."]
    if not trained.code.startswith("builtin"):
        said += ["The network's code was that of facebookresearch/mae, under CC BY-NC 4.0."]
    said += ["The training images may have terms of their own."]
    if trained.identity.get("init") or trained.identity.get("resume"):
        said += ["Training began from other weights, whose licence goes on (upstream's MAE is under CC BY-NC 4.0)."]
    return " ".join(said)


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _spelled(value):
    return spell(value) if isinstance(value, float) else str(value)
