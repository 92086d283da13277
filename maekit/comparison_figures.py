"""The figures of a norm comparison: losses, times, reconstructions and the alphas of the norm layers."""

import numpy as np
from matplotlib.lines import Line2D

from .figures import (
    COLUMN,
    GREY,
    PAGE,
    broken_name,
    draw_baselines,
    epoch_axis,
    legend_below,
    look_of,
    new_figure,
    reconstruction_loss,
    relabel,
    styled,
)  # fmt: skip
from .recipes import EVALUATIONS
from .runs import DIVERGED, FINISHED
from .settings import in_order


@styled
def loss_comparison(logs, table):
    """Training and validation loss of all methods over epochs, side by side on one scale.

    logs: DataFrame, a row per run and epoch (model, seed, epoch, train_loss, val_mse); table: a row per run, as
    summary.json. Lines are means over seeds, bands their range.
    """
    figure = new_figure(PAGE, 3.1)
    axes = figure.subplots(1, 2, sharey=True)
    logs = logs.assign(train_loss=logs.apply(reconstruction_loss, axis=1))
    for ax, column, title in zip(axes, ("train_loss", "val_mse"), ("training", "validation")):
        for method, rows in _by_method(logs):
            colour, style = look_of(method)
            grouped = rows.groupby("epoch")[column]
            mean, low, high = grouped.mean(), grouped.min(), grouped.max()
            marker = "o" if len(mean) == 1 else None
            ax.plot(mean.index, mean, color=colour, linestyle=style, marker=marker)
            if rows["seed"].nunique() > 1:
                ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(title, loc="left")
        epoch_axis(ax)
    axes[0].set_ylabel("loss (MSE, hidden patches)")
    baselines = draw_baselines(axes[1], table.iloc[0]) if len(table) else []
    handles = [_method_handle(method, rows) for method, rows in _by_method(table)]
    legend_below(figure, handles + baselines)
    return figure


@styled
def timing_comparison(table):
    """Mean time of a training epoch per method as bars, single runs as dots, the ratio to LayerNorm written on top."""
    figure = new_figure(COLUMN, 2.6)
    ax = figure.subplots()
    groups = [(m, rows["avg_epoch_time"].dropna()) for m, rows in _by_method(table)]
    groups = [(m, times) for m, times in groups if len(times)]
    reference = dict(groups).get("LayerNorm")
    for x, (method, times) in enumerate(groups):
        ax.bar(x, times.mean(), width=0.6, color=look_of(method)[0], alpha=0.75)
        if len(times) > 1:
            ax.plot(np.full(len(times), x), times, "o", markersize=3, color="white", markeredgecolor="black")
        ratio = "" if reference is None else f"\n{times.mean() / reference.mean():.2f}×"
        ax.annotate(f"{_seconds(times.mean())}{ratio}", (x, times.max()), (0, 3), textcoords="offset points",
                    ha="center", va="bottom")  # fmt: skip
    ax.set_xticks(range(len(groups)), [f"{broken_name(m)}\nn = {len(t)}" for m, t in groups])
    ax.set_ylim(0, max((t.max() for _, t in groups), default=1) * 1.25)
    ax.set_ylabel("training time per epoch (s)")
    ax.grid(axis="x", visible=False)
    return figure


@styled
def reconstruction_comparison(pictures):
    """Validation images, what the model saw, and what each method made of it.

    pictures: {method: arrays of reconstructions.npz}. Columns: original, masked, then per method its reconstruction
    and the composite with the visible patches as they are.
    """
    first = next(iter(pictures.values()))
    rows = min(6, len(first["image"]))
    columns = [("original", first["image"]), ("masked", first["masked"])]
    for method, arrays in pictures.items():
        visible = _visible(arrays)
        columns.append((f"{broken_name(method)}\nreconstruction", arrays["reconstruction"]))
        columns.append(("\ncomposite", np.where(visible, arrays["image"], arrays["reconstruction"])))
    cell = PAGE / len(columns)
    figure = new_figure(PAGE, cell * rows + 0.5)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=8 if len(columns) <= 8 else 6)
        for row in range(rows):
            axes[row, column].imshow(images[row], interpolation="nearest")
            axes[row, column].axis("off")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


@styled
def alpha_dynamics(alphas):
    """The scalar in front of x over epochs: every layer, their mean and range, and the share of layers at a bound.

    alphas: DataFrame, a row per run, epoch and layer (model, seed, epoch, layer, alpha, saturated). Layers are means
    over seeds.
    """
    methods = list(_by_method(alphas))
    bounded = any(rows["saturated"].notna().any() for _, rows in methods)
    figure = new_figure(max(COLUMN, PAGE * len(methods) / 2) if len(methods) < 3 else PAGE, 3.9 if bounded else 2.6)
    axes = figure.subplots(
        2 if bounded else 1, len(methods), sharex=True, sharey="row", squeeze=False,
        gridspec_kw={"height_ratios": [2, 1] if bounded else [1]},
    )  # fmt: skip
    for column, (method, rows) in enumerate(methods):
        ax = axes[0, column]
        layers = rows.groupby(["epoch", "layer"], sort=False)["alpha"].mean().unstack("layer")
        marker = "." if len(layers) == 1 else None
        for layer in layers:
            ax.plot(layers.index, layers[layer], color=_layer_colour(layer, list(layers)), linewidth=0.7, marker=marker)
        ax.fill_between(layers.index, layers.min(axis=1), layers.max(axis=1), color="black", alpha=0.06, linewidth=0)
        ax.plot(layers.index, layers.mean(axis=1), color="black", linewidth=1.8, marker=marker)
        n = rows["seed"].nunique()
        ax.set_title(f"{method}, {layers.shape[1]} layers, n = {n}", loc="left")
        if bounded:
            share = rows["saturated"].dropna().astype(float).groupby(rows["epoch"]).mean() * 100
            below = axes[1, column]
            if len(share):
                below.plot(share.index, share, color=look_of(method)[0], marker=marker)
            else:
                below.text(0.5, 0.5, "no bounds", transform=below.transAxes, ha="center", va="center", color=GREY)
            below.set_ylim(-4, 104)
        epoch_axis(axes[-1, column])
    axes[0, 0].set_ylabel("α of a norm layer")
    if bounded:
        axes[1, 0].set_ylabel("layers at\na bound (%)")
    shades = [Line2D([], [], color=_layer_colour(name, ["norm", "decoder_norm"])) for name in ("norm", "decoder_norm")]
    legend_below(figure, [
        Line2D([], [], color="black", linewidth=1.8, label="mean (range grey)"),
        relabel(shades[0], "encoder layers, deeper darker"), relabel(shades[1], "decoder layers"),
    ])  # fmt: skip
    return figure


@styled
def evaluation_comparison(table, chance=None):
    """Top-1 accuracy of every method's encoder, a panel per task: pre-trained, and the same network untrained.

    table: a row per run, with some of runs.EVALUATION_ACCURACIES. Small marks are seeds, large ones their means; a line
    joins the two means. Only encoders whose pre-training is finished are in it. chance: percent that guessing gets
    right, drawn if given.
    """
    table = table[table["status"] == FINISHED]
    tasks = [task for task in EVALUATIONS if table.filter([f"{task}_accuracy", f"untrained_{task}_accuracy"]).size]
    methods = list(_by_method(table))
    figure = new_figure(PAGE, 0.9 + 0.38 * len(methods))
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks):
        for y, (method, rows) in enumerate(methods):
            colour, means = look_of(method)[0], []
            for column, face in ((f"untrained_{task}_accuracy", "white"), (f"{task}_accuracy", colour)):
                values = rows[column].dropna() if column in rows else []
                if not len(values):
                    continue
                means.append(values.mean())
                look = {"markeredgecolor": colour, "markerfacecolor": face}
                ax.plot(means[-1], y, "o", markersize=6, zorder=3, **look)
                if len(values) > 1:
                    ax.plot(values, np.full(len(values), y + 0.27), "o", markersize=2.5, zorder=3, **look)
            ax.plot(means, [y] * len(means), color=colour, linewidth=1, zorder=2)
        if chance is not None:
            ax.axvline(chance, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1)
        ax.set_title(TASK_TITLES[task], loc="left")
        ax.set_xlabel("top-1 accuracy (%)")
        ax.set_yticks(range(len(methods)), [f"{broken_name(m)} (n = {len(rows)})" for m, rows in methods])
        ax.set_ylim(len(methods) - 0.4, -0.6)
    look = {"linestyle": "none", "marker": "o", "markersize": 6, "markeredgecolor": GREY}
    handles = [
        Line2D([], [], markerfacecolor=GREY, label="pre-trained", **look),
        Line2D([], [], markerfacecolor="white", label="random weights", **look),
    ]
    if len(table) > len(methods):
        handles.append(Line2D([], [], **{**look, "markersize": 2.5}, markerfacecolor=GREY, label="single seeds"))
    if chance is not None:
        handles.append(
            Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=1, label=f"chance: {chance:.3g} %")
        )
    legend_below(figure, handles)
    return figure


TASK_TITLES = {"finetune": "fine-tuning", "linprobe": "linear probing", "knn": "k-NN"}


def _by_method(frame):
    """(method, rows) in the order of LOOK, methods that are no norms of ours last."""
    if not len(frame):
        return []
    names = in_order(frame["model"].unique())
    return [(name, frame[frame["model"] == name]) for name in names]


def _method_handle(method, rows):
    colour, style = look_of(method)
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


def _visible(arrays):
    """(n, H, W, 1) bool: pixels of visible patches."""
    mask, size = arrays["mask"], arrays["image"].shape[1]
    side = round(mask.shape[1] ** 0.5)
    grid = ~mask.reshape(-1, side, side)
    return grid.repeat(size // side, axis=1).repeat(size // side, axis=2)[..., None]
