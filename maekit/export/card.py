"""README.md of an export: what the weights are, how to load them, how they were made and what they score, from the run."""

from pathlib import Path

from ..runs import measures
from ..runs.reading import evaluation_column, evaluation_result, is_evaluation, load_runs
from ..runs.status import FINISHED
from ..settings import identities
from ..settings.spelling import spell
from ..stats import t_interval
from .trained import TASKS

_RECIPE = (  # flags
    *("epochs", "batch_size", "accum_iter", "processes", "lr", "min_lr", "warmup_epochs", "weight_decay", "mask_ratio"),
    *("norm_pix_loss", "crop", "alpha", "clip_grad", "ema", "precision", "seed"),
)
_KIT = "the MAE reproduction kit"


def text(trained, package, licence=None, repository=None):
    """The card of a Package, with the front matter that the hub reads. licence: its name of one; repository: where it is pushed."""
    lines = [*_front(trained, package, licence), "", f"# {_title(trained)}", "", _about(trained, package), ""]
    lines += ["## Load it", "", "```python", *_loading(package, repository), "```", "", _pixels(trained), ""]
    lines += ["## What it is", "", *_table(("", ""), _network(trained)), ""]
    lines += ["## How it was trained", "", *_table(("", ""), _training(trained)), ""]
    lines += ["## What it scores", "", *_scores(trained), ""]
    lines += ["## Licence", "", _licence(trained, licence), ""]
    return "\n".join(lines)


def _front(trained, package, licence):
    tags = ["mae", "vision-transformer", "masked-autoencoder", trained.norm.lower(), package.pipeline]
    lines = [
        "---",
        f"license: {licence or 'unknown'}",
        f"library_name: {package.library}",
        f"pipeline_tag: {package.pipeline}",
    ]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---"]


def _title(trained):
    return f"{trained.norm} {TASKS[trained.task]}, {trained.identity['model']}, {trained.side} pixels"


def _about(trained, package):
    averaged = " Its weights are the moving average of those that were trained." if trained.averaged else ""
    return f"Made with {_KIT}, written as {package.what}.{averaged}"


def _loading(package, repository):
    if repository is None:
        return package.loading.replace('FOLDER + "/', '"').replace("FOLDER", '"."').rstrip().splitlines()
    fetched = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repository}")\n'
    if "norms import" in package.loading:
        fetched += "import sys\n\nsys.path.insert(0, folder)  # for norms.py\n"
    return (fetched + package.loading.replace("FOLDER", "folder")).rstrip().splitlines()


def _pixels(trained):
    from . import pictures

    mean, std = (", ".join(map(str, values)) for values in (pictures.MEAN, pictures.STD))
    return (
        f"Images: shorter side to {pictures.short_side(trained)} pixels (bicubic), the middle {trained.side} x {trained.side}, "
        f"values of 0 to 1 minus {mean}, by {std}."
    )


def _network(trained):
    rows = [("network", str(trained.architecture)), ("images", f"{trained.side} x {trained.side}")]
    rows.append(
        ("norm", ", ".join([trained.norm, *(f"{n} {v}" for n, v in trained.norm_arguments.items() if v is not None)]))
    )
    if trained.classes:
        rows.append(
            ("classes", f"{trained.classes}, read from {'the mean of the patches' if trained.reads_mean else 'CLS'}")
        )
    return [*rows, ("values written", f"{sum(value.numel() for value in trained.weights.values()):,}")]


def _training(trained):
    config, identity = trained.config, trained.identity
    data = config.get("data") or {}
    images = f"{data.get('train_images', 0):,} for training, {data.get('val_images', 0):,} for validation"
    source = data.get("source")
    rows = [
        (
            "data",
            f"{source if source else 'unknown'}: {images}, {data.get('classes')} classes, fingerprint {data.get('fingerprint')}",
        ),
        ("began from", _beginning(config)),
        *(
            (f"--{name}", _spelled(identity[name]))
            for name in _RECIPE
            if identity.get(name) is not None and identity[name] is not False
        ),
        ("model's code", (config.get("model_source") or {}).get("source", "builtin")),
        ("hardware", config.get("hardware")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items())),
        ("commit of the kit", config.get("git_commit") or "unknown"),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _beginning(config):
    """What training began from: a file's last names, without the folders of who trained, and its hash."""
    init, told = config["identity"].get("init"), (config.get("settings") or {}).get("init")
    return f"{'/'.join(Path(told).parts[-2:])} ({init})" if init and told else init or "random weights"


def _scores(trained):
    """The table of what this run and its siblings, of other seeds, score."""
    own, others = _numbers(trained.folder), _siblings(trained)
    images = (trained.config.get("data") or {}).get("val_images")
    rows = []
    for column, value in own.items():
        row = [measures.MEASURES[column].title, _with_bounds(column, value, images)]
        found = [numbers[column] for numbers in (own, *others) if column in numbers]
        rows.append([*row, _interval(found) if len(found) > len(others) else ""] if others else row)
    said = f"Over {images:,} validation images; masks are the same for every norm and seed." if images else ""
    said += " In brackets behind an accuracy: 95 % by the number of these images (Wilson)." if _accuracies(own) else ""
    if not others:
        said += " One seed: nothing here says how much another one would change."
    heads = ("measure", "this run", f"mean of {len(others) + 1} seeds (95 % by seeds)")
    return [*_table(heads if others else heads[:2], rows), "", said.strip()]


def _accuracies(columns):
    return [column for column in columns if measures.MEASURES[column].kind is measures.ACCURACY]


def _with_bounds(column, value, images):
    """A number, and of an accuracy in percent of so many images its bounds."""
    if not images or not _accuracies([column]):
        return f"{value:.4g}"
    from scipy.stats import binomtest

    bounds = binomtest(round(value * images / 100), images).proportion_ci(method="wilson")
    return f"{value:.1f} ({100 * bounds.low:.1f} to {100 * bounds.high:.1f})"


def _interval(values):
    of = t_interval(values)
    return f"{of['mean']:.4g}" + (
        f" ({of['low']:.4g} to {of['high']:.4g})" if of["low"] is not None else f" ({of['note']})"
    )


def _numbers(folder):
    """{column: number} of a run's summary, and of the evaluations below its folder."""
    numbers = {}
    for run in load_runs(folder)[0]:
        summary = run["summary"]
        if run["path"] == folder and summary:
            shown = [*measures.columns(measures.LAST), "psnr", "ssim"]
            numbers |= {column: summary[column] for column in shown if _is_number(summary.get(column))}
        elif is_evaluation(run) and run["path"].parent == folder and _is_number(result := evaluation_result(run)):
            numbers[evaluation_column(run)] = result
    order = list(measures.MEASURES)
    return dict(sorted(numbers.items(), key=lambda item: order.index(item[0])))


def _siblings(trained):
    """Numbers of the finished runs beside this one that differ from it in their seed alone."""
    if not trained.folder.name.startswith("seed"):
        return []
    own, found = trained.config["identity"], []
    for run in load_runs(trained.folder.parent)[0]:
        identity = run["config"]["identity"]
        if run["path"].parent != trained.folder.parent or identity.get("seed") == own.get("seed"):
            continue
        ended = run["summary"] and run["summary"].get("status") == FINISHED
        if ended and identities.difference(identity, {**own, "seed": identity.get("seed")}) is None:
            found.append(_numbers(run["path"]))
    return found


def _licence(trained, licence):
    said = (
        f"The weights: {licence}." if licence else "Who trained them has not said under which licence the weights are."
    )
    said += " The code that made them is under the MIT licence; the training images may have terms of their own."
    if trained.identity.get("init"):
        said += " Training began from other weights, whose licence goes on (upstream's MAE is under CC BY-NC 4.0)."
    return said


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _spelled(value):
    return spell(value) if isinstance(value, float) else str(value)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
