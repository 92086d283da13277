"""The figures of a norm comparison: losses, times, reconstructions and the alphas of the norm layers."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..runs.measures import BASELINES, EVALUATION_LABELS, MEASURES
from ..runs.status import DIVERGED, FINISHED
from ..settings.methods import in_order
from ..settings.probes import EVALUATIONS
from .figures import (
    COLUMN,
    GREY,
    LOSS_AXIS,
    PAGE,
    broken_name,
    draw_baselines,
    epoch_axis,
    legend_below,
    looks,
    new_figure,
    panels,
    reconstruction_loss,
    styled,
)

MOST_COLUMNS = 9  # of pictures whose titles have room beside each other on a page


@styled
def loss_comparison(logs, table, narrow=False):
    """Training and validation loss of all methods over epochs, side by side on one scale.

    logs: DataFrame, a row per run and epoch (model, seed, epoch, train_loss, val_mse); table: a row per run, as
    summary.json. Lines are means over seeds, bands their range.
    """
    figure, axes = panels(2, PAGE, 2.6, narrow, sharey=True, sharex=True)
    look = looks(table["model"].unique())
    logs = logs.assign(train_loss=logs.apply(reconstruction_loss, axis=1))
    for ax, column, title in zip(axes, ("train_loss", "val_mse"), ("training", "validation")):
        for method, rows in _by_method(logs):
            colour, style = look[method]
            grouped = rows.groupby("epoch")[column]
            mean, low, high = grouped.mean(), grouped.min(), grouped.max()
            marker = "o" if len(mean) == 1 else None
            ax.plot(mean.index, mean, color=colour, linestyle=style, marker=marker)
            if rows["seed"].nunique() > 1:
                ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(title, loc="left")
        ax.set_ylabel(LOSS_AXIS if narrow or ax is axes[0] else "")
        epoch_axis(ax, label=ax is axes[-1] or not narrow)
    baselines = draw_baselines(axes[1], table.filter(list(BASELINES)).mean())
    handles = [_method_handle(method, rows, look) for method, rows in _by_method(table)]
    if logs.groupby("model")["seed"].nunique().max() > 1:
        handles.append(Patch(color=GREY, alpha=0.25, linewidth=0, label="range over seeds"))
    legend_below(figure, handles + baselines)
    return figure


@styled
def paired_differences(differences, reference, narrow=False):
    """What every method ends above or below the reference, seed by seed, with the 95 % interval of the mean.

    differences: {column: {method: dict of stats.paired}}. A method without seeds in common is left out.
    """
    methods = list(dict.fromkeys(m for of in differences.values() for m, known in of.items() if known["n"]))
    look = looks([reference, *methods])
    figure, axes = panels(len(differences), PAGE, 0.75 + 0.5 * len(methods), narrow, sharey=not narrow)
    for ax, (column, of) in zip(axes, differences.items()):
        ax.axvline(0, color=GREY, linewidth=1)
        for y, method in enumerate(methods):
            known, (colour, _) = of[method], look[method]
            values = list(known["differences"].values())
            if known["low"] is not None:
                ax.errorbar(known["mean"], y, xerr=known["high"] - known["mean"], color=colour, capsize=3)
            ax.plot(known["mean"], y, "o" if len(values) > 1 else "D", color=colour, markersize=5)
            if len(values) > 1:
                ax.plot(values, np.full(len(values), y + 0.27), "o", color=colour, markersize=2.5)
        names = [f"{broken_name(m)} (n = {of[m]['n']})" for m in methods]
        ax.set_yticks(range(len(methods)), names)
        ax.set_ylim(len(methods) - 0.45, -0.55)
        measure = MEASURES[column]
        better = f" ({measure.better} is better)" if measure.better else ""
        ax.set_xlabel(f"{measure.title}{better},\ndifference to {reference}")
        ax.margins(x=0.08)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    every = [known for of in differences.values() for known in of.values()]
    dot = {"linestyle": "none", "marker": "o", "color": GREY}
    handles = []
    if any(known["n"] > 1 for known in every):
        handles.append(Line2D([], [], markersize=5, label="mean", **dot))
        handles.append(Line2D([], [], markersize=2.5, label="single seeds", **dot))
    if any(known["n"] == 1 for known in every):
        handles.append(Line2D([], [], markersize=5, label="one seed", **{**dot, "marker": "D"}))
    if any(known["low"] is not None for known in every):
        handles.append(Line2D([], [], color=GREY, marker="|", label="95 % interval of the mean"))
    else:
        handles.append(Line2D([], [], linestyle="none", label="too few seeds for an interval"))
    legend_below(figure, handles)
    return figure


@styled
def timing_comparison(table, reference, narrow=False):
    """Mean time of a training epoch per method as bars, single runs as dots, the ratio to the reference written beside.

    reference: a method; without one (None) there are no ratios.
    """
    groups = [(m, rows["avg_epoch_time"].dropna()) for m, rows in _by_method(table)]
    groups = [(m, times) for m, times in groups if len(times)]
    look, unit = looks([m for m, _ in groups]), dict(groups).get(reference)
    figure = new_figure(COLUMN, 0.6 + 0.42 * len(groups))
    ax = figure.subplots()
    for y, (method, times) in enumerate(groups):
        ax.barh(y, times.mean(), height=0.6, color=look[method][0], alpha=0.75)
        if len(times) > 1:
            ax.plot(times, np.full(len(times), y), "o", markersize=3, color="white", markeredgecolor="black")
        ratio = "" if unit is None else f", {times.mean() / unit.mean():.2f}×"
        ax.annotate(
            f"{_seconds(times.mean())}{ratio}",
            (times.max(), y),
            (5, 0),
            textcoords="offset points",
            ha="left",
            va="center",
        )
    ax.set_yticks(range(len(groups)), [f"{broken_name(m)} (n = {len(t)})" for m, t in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlim(0, max((t.max() for _, t in groups), default=1) * 1.75)
    ax.set_xlabel(MEASURES["avg_epoch_time"].axis)
    ax.grid(axis="y", visible=False)
    return figure


@styled
def reconstruction_comparison(pictures, narrow=False):
    """Validation images, what the model saw, and what each method made of it.

    pictures: {method: arrays of reconstructions.npz}. Columns: original, masked, then per method its reconstruction
    and the composite with the visible patches as they are; of more than three methods the composite alone. Narrow, or of
    more methods than have room beside each other: these are rows, of composites.
    """
    first = next(iter(pictures.values()))
    columns = [("original", first["image"]), ("masked", first["masked"])]
    several = narrow or len(pictures) > 3  # too many for two columns each
    for method, arrays in pictures.items():
        if not several:
            columns.append((f"{broken_name(method)}\nreconstruction", arrays["reconstruction"]))
        columns.append((broken_name(method) if several else "\ncomposite", composite(arrays)))
    in_rows = narrow or len(columns) > MOST_COLUMNS
    rows = min(4 if narrow else 8 if in_rows else 6, len(first["image"]))
    if in_rows:
        width = COLUMN if narrow else PAGE
        cell = (width - 0.85) / rows
        figure = new_figure(width, cell * len(columns) + 0.1)
        axes = figure.subplots(len(columns), rows, squeeze=False).T
    else:
        cell = PAGE / len(columns)
        figure = new_figure(PAGE, cell * rows + 0.15 + 0.15 * max(title.count("\n") + 1 for title, _ in columns))
        axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns):
        if in_rows:
            axes[0, column].set_ylabel(title, rotation=0, ha="right", va="center")
        else:
            axes[0, column].set_title(title, fontsize=8)
        for row in range(rows):
            axes[row, column].imshow(images[row], interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


@styled
def alpha_dynamics(alphas, narrow=False):
    """The scalar in front of x over epochs: every layer, their mean and range, and the share of layers at a bound.

    alphas: DataFrame, a row per run, epoch and layer (model, seed, epoch, layer, alpha, saturated). Layers are means
    over seeds.
    """
    methods = list(_by_method(alphas))
    bounded = any(rows["saturated"].notna().any() for _, rows in methods)
    look = looks([method for method, _ in methods])
    figure, grid = _alpha_grid(len(methods), bounded, narrow)
    highest = 1.05 * alphas["alpha"].max()
    for i, (method, rows) in enumerate(methods):
        ax = grid[i][0]
        layers = rows.groupby(["epoch", "layer"], sort=False)["alpha"].mean().unstack("layer")
        marker = "." if len(layers) == 1 else None
        for layer in layers:
            ax.plot(layers.index, layers[layer], color=_layer_colour(layer, list(layers)), linewidth=0.7, marker=marker)
        ax.fill_between(layers.index, layers.min(axis=1), layers.max(axis=1), color="black", alpha=0.06, linewidth=0)
        ax.plot(layers.index, layers.mean(axis=1), color="black", linewidth=1.8, marker=marker)
        ax.set_ylim(min(0, alphas["alpha"].min()), highest)
        n, name = rows["seed"].nunique(), method if narrow or len(methods) < 3 else broken_name(method)
        ax.set_title(f"{name}\n{layers.shape[1]} layers, n = {n}", loc="left")
        lowest = not narrow or i == len(methods) - 1
        epoch_axis(ax, label=lowest and (narrow or not bounded))
        ax.tick_params(labelbottom=lowest and (narrow or not bounded))
        if i == 0 or narrow:
            ax.set_ylabel("α of a norm layer")
        if not bounded:
            continue
        share = rows["saturated"].dropna().astype(float).groupby(rows["epoch"]).mean() * 100
        other = grid[i][1]
        if len(share):
            other.plot(share.index, share, color=look[method][0], marker=marker)
        else:
            other.text(0.5, 0.5, "no bounds", transform=other.transAxes, ha="center", va="center", color=GREY)
        other.set_ylim(-4, 104)
        epoch_axis(other, label=lowest)
        other.tick_params(labelbottom=lowest)
        if i == 0 or narrow:
            other.set_ylabel("layers at a bound (%)" if narrow else "layers at\na bound (%)")
    legend_below(figure, [Line2D([], [], color="black", linewidth=1.8, label="mean (range grey)"), *_shades()])
    return figure


@styled
def flat_activations(layers, narrow=False):
    """Share of the activations that each norm layer reads at which its function is flat, over epochs, a panel a method.

    layers: DataFrame, a row per run, epoch and layer (model, seed, epoch, layer, flat), of the epochs that measured it. Layers
    are means over seeds.
    """
    methods = _by_method(layers)
    figure, axes = panels(len(methods), PAGE, 2.2, narrow, sharex=True, sharey=True)
    for ax, (method, rows) in zip(axes, methods):
        by_layer = 100 * rows.groupby(["epoch", "layer"], sort=False)["flat"].mean().unstack("layer")
        marker = "." if len(by_layer) <= 10 else None
        for layer in by_layer:
            colour = _layer_colour(layer, list(by_layer))
            ax.plot(by_layer.index, by_layer[layer], color=colour, linewidth=0.9, marker=marker)
        ax.plot(by_layer.index, by_layer.mean(axis=1), color="black", linewidth=1.8, marker=marker)
        name = method if narrow or len(methods) < 3 else broken_name(method)
        ax.set_title(f"{name}\n{by_layer.shape[1]} layers, n = {rows['seed'].nunique()}", loc="left")
        ax.set_ylim(-4, 104)
        columns = ax.get_subplotspec().get_gridspec().ncols
        epoch_axis(ax, label=ax in axes[-columns:])
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("flat activations (%)")
    legend_below(figure, [Line2D([], [], color="black", linewidth=1.8, label="mean of the layers"), *_shades()])
    return figure


def _shades():
    """Legend of _layer_colour."""
    names = {"norm": "encoder, deeper darker", "decoder_norm": "decoder layers"}
    return [Line2D([], [], color=_layer_colour(name, list(names)), label=label) for name, label in names.items()]


def _alpha_grid(n, bounded, narrow):
    """(figure, per method [axes of α, axes of the share at a bound]); without bounds there is no second."""
    if narrow:  # a row a method, the share beside α
        figure = new_figure(COLUMN, 0.6 + 1.7 * n)
        return figure, figure.subplots(n, 1 + bounded, sharex=True, squeeze=False)
    per_row = min(n, 4)
    blocks = -(-n // per_row)
    heights = [2, 1] if bounded else [1]
    figure = new_figure(max(COLUMN, PAGE * min(n, 2) / 2) if n < 3 else PAGE, blocks * (3.5 if bounded else 2.2) + 0.4)
    axes = figure.subplots(
        blocks * len(heights), per_row, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights * blocks}
    )
    for ax in axes.T.reshape(per_row, blocks, -1).transpose(1, 0, 2).reshape(-1, len(heights))[n:].ravel():
        ax.set_visible(False)
    return figure, axes.T.reshape(per_row, blocks, -1).transpose(1, 0, 2).reshape(-1, len(heights))[:n]


@styled
def evaluation_comparison(table, chance=None, narrow=False):
    """Top-1 accuracy of every method's encoder, a panel per task: pre-trained, and the same network untrained.

    table: a row per run, with some of measures.EVALUATION_ACCURACIES. Small marks are seeds, large ones their means; a
    line joins the two means. Only encoders whose pre-training is finished are in it. chance: percent that guessing
    gets right, drawn if given.
    """
    table = table[table["status"] == FINISHED]
    tasks = [task for task in EVALUATIONS if table.filter([f"{task}_accuracy", f"untrained_{task}_accuracy"]).size]
    methods = list(_by_method(table))
    look = looks([method for method, _ in methods])
    figure, axes = panels(len(tasks), PAGE, 0.9 + 0.4 * len(methods), narrow, sharey=not narrow, sharex=narrow)
    for ax, task in zip(axes, tasks):
        for y, (method, rows) in enumerate(methods):
            colour, means = look[method][0], []
            for column, face in ((f"untrained_{task}_accuracy", "white"), (f"{task}_accuracy", colour)):
                values = rows[column].dropna() if column in rows else []
                if not len(values):
                    continue
                means.append(values.mean())
                face = {"markeredgecolor": colour, "markerfacecolor": face}
                ax.plot(means[-1], y, "o", markersize=6, zorder=3, **face)
                if len(values) > 1:
                    ax.plot(values, np.full(len(values), y + 0.27), "o", markersize=2.5, zorder=3, **face)
            ax.plot(means, [y] * len(means), color=colour, linewidth=1, zorder=2)
        if chance is not None:
            ax.axvline(chance, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1)
        ax.set_title(EVALUATION_LABELS[task].replace(", ", ",\n" if len(tasks) > 3 else ", "), loc="left")
        if not narrow or ax is axes[-1]:
            ax.set_xlabel(MEASURES["acc1"].axis)
        ax.set_yticks(range(len(methods)), [f"{broken_name(m)} (n = {len(rows)})" for m, rows in methods])
        ax.set_ylim(len(methods) - 0.4, -0.6)
    face = {"linestyle": "none", "marker": "o", "markersize": 6, "markeredgecolor": GREY}
    handles = [
        Line2D([], [], markerfacecolor=GREY, label="pre-trained", **face),
        Line2D([], [], markerfacecolor="white", label="random weights", **face),
    ]
    if len(table) > len(methods):
        handles.append(Line2D([], [], **{**face, "markersize": 2.5}, markerfacecolor=GREY, label="single seeds"))
    if chance is not None:
        handles.append(
            Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=1, label=f"chance: {chance:.3g} %")
        )
    legend_below(figure, handles)
    return figure


def _by_method(frame):
    """(method, rows) in the order of LOOK, methods that are no norms of ours last."""
    if not len(frame):
        return []
    names = in_order(frame["model"].unique())
    return [(name, frame[frame["model"] == name]) for name in names]


def _method_handle(method, rows, look):
    colour, style = look[method]
    diverged = int((rows["status"] == DIVERGED).sum())
    label = f"{method} (n = {len(rows)}" + (f", {diverged} diverged" if diverged else "") + ")"
    return Line2D([], [], color=colour, linestyle=style, label=label)


def _layer_colour(name, names):
    """Blues for encoder layers, oranges for the decoder's, darker with depth."""
    from matplotlib import colormaps

    decoder = name.startswith("decoder")
    peers = [n for n in names if n.startswith("decoder") == decoder]
    depth = 1.0 if len(peers) < 2 else peers.index(name) / (len(peers) - 1)
    return colormaps["Oranges" if decoder else "Blues"](0.4 + 0.55 * depth)


def _seconds(value):
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def composite(arrays):
    """(n, H, W, 3): reconstructions in the hidden patches, the image in the others. arrays: of reconstructions.npz."""
    mask, size = arrays["mask"], arrays["image"].shape[1]
    side = round(mask.shape[1] ** 0.5)
    grid = ~mask.reshape(-1, side, side)
    visible = grid.repeat(size // side, axis=1).repeat(size // side, axis=2)[..., None]
    return np.where(visible, arrays["image"], arrays["reconstruction"])
