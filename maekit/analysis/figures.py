"""What all plots of the kit share: one style, one look per norm, saving, and the loss curve of a single run.

Drawing functions take tables and return a matplotlib Figure; no statistics, no files but in save().

Sizes are a paper's: 85 mm for one column, 174 mm for two, 8-point text; a figure of two columns is drawn a second time
for one, with `narrow` and <name>_column as its file. Colours are Okabe and Ito's, safe for
colour-blind readers; a norm keeps its colour and its line style in every figure.
"""

import re
from functools import partial

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import atomic_write
from ..machine import each
from ..runs.measures import BASELINES, MEASURES
from ..runs.status import DIVERGED
from ..settings.methods import NORMS, in_order

COLUMN, PAGE = 85 / 25.4, 174 / 25.4  # widths in inches

STYLE = {  # and of the rest matplotlib's own, whatever the user's matplotlibrc says
    **{name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")},
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}
LOOK = {name: (norm.colour, norm.line) for name, norm in NORMS.items()}  # colour, line style
VARIANT_STYLES = ((0, (3, 1)), (0, (7, 1.5)), (0, (1.5, 1)), (0, (6, 1, 2, 1)), (0, (6, 1, 1, 1, 1, 1)), "-")
BASELINE_STYLES = dict(zip(BASELINES, ((0, (4, 2)), (0, (1, 1.5)))))
LOSS_AXIS = f"loss ({MEASURES['val_mse'].unit})"  # of training and validation
GREY = "#767676"
DENSE = 20_000  # points


def save(figure, path):
    """Write a figure as PNG and, beside it, as PDF; both appear whole or not at all."""
    with rc_context(STYLE):  # each is drawn once, where savefig draws it twice
        figure.dpi = STYLE["savefig.dpi"]
        with atomic_write(path.with_suffix(".png")) as f:
            FigureCanvasAgg(figure).print_png(f)
        figure.set_layout_engine("none")  # where all is has been decided
        with atomic_write(path.with_suffix(".pdf")) as f:
            FigureCanvasPdf(figure).print_pdf(f, metadata={"CreationDate": None})


def save_all(drawings, points=0):
    """Save each draw(narrow=False) of {path: draw} and, if that is wider than a column, draw(narrow=True) as
    <name>_column.

    points: how many they show; from DENSE on there is no second version, which takes as long and as much room again.
    """
    each(partial(_save_both, points=points), drawings.items())


def _save_both(drawing, points):
    path, draw = drawing
    figure, column = draw(narrow=False), path.with_stem(f"{path.stem}_column")
    save(figure, path)
    if figure.get_figwidth() > COLUMN and points < DENSE:
        save(draw(narrow=True), column)
    else:
        for suffix in (".png", ".pdf"):
            column.with_suffix(suffix).unlink(missing_ok=True)


def styled(draw):
    """Decorator: run a drawing function under the kit's style."""

    def drawn(*args, **kwargs):
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    drawn.__doc__, drawn.__name__ = draw.__doc__, draw.__name__
    return drawn


def look_of(method):
    """(colour, line style) of a method's norm; one that is none of ours gets grey."""
    return LOOK.get(method.partition("-")[0], (GREY, "-"))


def looks(methods):
    """{method: (colour, line style)}: norms as in look_of, those with options in their names in paler shades."""
    found = {method: look_of(method) for method in methods}
    for norm in LOOK:
        variants = [method for method in in_order(methods) if method.startswith(f"{norm}-")]
        palest = 0.45 if len(variants) == 1 else 0.55
        darkest = 0.45 if norm in found else 0.0
        for i, method in enumerate(variants):
            share = palest + (darkest - palest) * i / max(1, len(variants) - 1)
            colour = np.array(to_rgb(LOOK[norm][0]))
            found[method] = to_hex(colour + share * (1 - colour)), VARIANT_STYLES[i % len(VARIANT_STYLES)]
    return found


def run_curve(log, summary):
    """loss_curve of a pre-training, evaluation_curve of another task."""
    return evaluation_curve(log, summary) if "acc1" in log[-1] else loss_curve(log, summary)


@styled
def evaluation_curve(log, summary):
    """Losses and accuracy of a fine-tuning or linear probing over epochs. log: rows of log.csv; summary: its run's."""
    figure = new_figure(PAGE, 2.5)
    losses, accuracy = figure.subplots(1, 2)
    colour, _ = look_of(summary["model"])
    epochs = [row["epoch"] for row in log]
    marker = "o" if len(epochs) == 1 else None
    losses.plot(epochs, [r["train_loss"] for r in log], color=colour, label="training", alpha=0.45, marker=marker)
    losses.plot(epochs, [row["val_loss"] for row in log], color=colour, label="validation", marker=marker)
    losses.set_ylabel(MEASURES["val_loss"].unit)
    losses.set_title(
        f"{summary['model']}, seed {summary['seed']}, {summary['task']}" + diverged_note(summary), loc="left"
    )
    losses.legend(loc="upper right")
    accuracy.plot(epochs, [row["acc1"] for row in log], color=colour, marker=marker)
    accuracy.set_ylabel(MEASURES["acc1"].axis)
    for ax in (losses, accuracy):
        epoch_axis(ax)
    return figure


@styled
def loss_curve(log, summary):
    """Training and validation loss of one run over epochs. log: rows of log.csv; summary: of summary.json."""
    figure = new_figure(COLUMN, 2.5)
    ax = figure.subplots()
    colour, _ = look_of(summary["model"])
    epochs = [row["epoch"] for row in log]
    marker = "o" if len(epochs) == 1 else None
    ax.plot(
        epochs, [reconstruction_loss(row) for row in log], color=colour, label="training", alpha=0.45, marker=marker
    )
    ax.plot(epochs, [row["val_mse"] for row in log], color=colour, label="validation", marker=marker)
    draw_baselines(ax, summary)
    ax.set_title(f"{summary['model']}, seed {summary['seed']}" + diverged_note(summary), loc="left")
    epoch_axis(ax)
    ax.set_ylabel(LOSS_AXIS)
    ax.legend(loc="upper right")
    return figure


def reconstruction_loss(row):
    """Training loss of a row of the log without the classification in it; older logs have no such column."""
    value = row.get("train_loss_rec")
    return row["train_loss"] if value is None or np.isnan(value) else value


def panels(n, width, height, narrow, most=4, **shared):
    """(figure, n axes): side by side on a page's width, at most so many in a row, or below each other on a column's; height:
    inches of one."""
    rows = n if narrow else -(-n // most)
    columns = -(-n // rows)
    figure = new_figure(COLUMN if narrow else width, 0.5 + (height - 0.5) * rows)
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for ax in axes[n:]:
        ax.remove()
    for ax in axes[max(0, n - columns) : n]:  # the lowest of their columns, though there may be a row below
        ax.tick_params(labelbottom=True)
    return figure, axes[:n]


def new_figure(width, height):
    """An empty figure of a size in inches, with no window and no pyplot behind it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_baselines(ax, summary):
    """Horizontal lines of the baselines that a summary has; returns their legend handles."""
    handles = []
    for column, style in BASELINE_STYLES.items():
        value = summary.get(column)
        if value is not None and np.isfinite(value):
            label = f"{MEASURES[column].label}: {value:.3f}"
            handles.append(ax.axhline(value, color=GREY, linestyle=style, linewidth=1, label=label))
    return handles


def epoch_axis(ax, label=True):
    """Label the x axis as epochs, or not, and tick it at integers."""
    ax.set_xlabel("epoch" if label else "")
    steps = [1, 2, 5, 10]  # as many as there is room for, of one epoch too
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=steps, integer=True, min_n_ticks=1))


def legend_below(figure, handles):
    """One legend for the whole figure, below it; one of more than two rows makes the figure higher."""
    if not handles:
        return
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(3, int(figure.get_figwidth() / (0.06 * longest + 0.45))))  # inches: text, line and gap
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, rows - 2))  # inches; the axes keep theirs
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)))


def diverged_note(summary):
    """What a title adds for a run that diverged."""
    return f", diverged after {summary['total_epochs']} epochs" if summary["status"] == DIVERGED else ""


def broken_name(method):
    """A long name on several lines: AdaptiveDynamicTanh-lambda0.1 -> Adaptive / DynamicTanh / lambda 0.1."""
    norm, *options = method.split("-")
    options = [re.sub(r"([a-z]+)([\d.]+)$", r"\1 \2", option) for option in options]
    return "\n".join([norm.replace("AdaptiveDynamicTanh", "Adaptive\nDynamicTanh"), *options])
