"""The figures of what encoders are like beside their accuracies: effective rank, error by band, similarity."""

import numpy as np
from matplotlib.lines import Line2D

from .. import stats
from ..runs.measures import EVALUATION_LABELS, MEASURES, POINT_COLUMNS
from ..runs.status import FINISHED
from ..settings.methods import in_order
from ..settings.probes import LABELS, OUTPUT
from ..settings.spelling import spell
from .figures import COLUMN, GREY, PAGE, broken_name, legend_below, look_of, looks, new_figure, panels, styled
from .gap_figures import Hues

RANKS, BANDS = ("rank_cls", "rank_mean"), ("mse_90", "mse_9", "mse_1")
DECODERS = ("mse", "decoder_mse")


@styled
def over_alpha(points, columns, narrow=False):
    """Measures of finished runs' last epoch over alpha, a panel each, a line a norm and learning rate: means over seeds, bars
    their standard deviation.

    points: DataFrame of trajectories.tabulate_points with `columns`; of a rank the untrained encoder's is drawn as well.
    """
    ended = points[(points["status"] == FINISHED) & points[list(columns)].notna().any(axis=1)]
    last = ended.sort_values("epoch", kind="stable").groupby("run").tail(1)
    hues = Hues(last["alpha"])
    figure, axes = panels(len(columns), PAGE, 2.6, narrow)
    handles = []
    groups = [(norm, lr) for norm in in_order(last["norm"].unique()) for lr in sorted(last["lr"].unique())]
    for norm, lr in groups:
        rows = last[(last["norm"] == norm) & (last["lr"] == lr)]
        if not len(rows):
            continue
        colour, style = look_of(norm)
        marker = "osD^v"[sorted(last["lr"].unique()).index(lr) % 5]
        look = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4}
        for ax, column in zip(axes, columns):
            grouped = rows[rows[column].notna()].groupby("alpha")[column]
            ax.errorbar(grouped.mean().index, grouped.mean(), grouped.std(), capsize=2, **look)
            untrained = f"untrained_{column}"
            if untrained in rows and rows[untrained].notna().any():
                ax.axhline(rows[untrained].mean(), color=colour, linestyle=(0, (1, 1.5)), linewidth=1)
        n = rows.groupby("alpha").size()
        seeds = f"n = {n.min()}" if n.min() == n.max() else f"n = {n.min()} to {n.max()}"
        rate = f", lr {spell(lr)}" if last["lr"].nunique() > 1 else ""
        handles.append(Line2D([], [], label=f"{norm}{rate} ({seeds} a point)", **look))
    if any(f"untrained_{column}" in last and last[f"untrained_{column}"].notna().any() for column in columns):
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=1, label="untrained encoder"))
    for ax, column in zip(axes, columns):
        hues.axis(ax, "α" if ax is axes[-1] or not narrow else "")
        measure = MEASURES[POINT_COLUMNS.get(column, column)]
        ax.set_title(measure.label, loc="left")
        ax.set_ylabel((measure.unit or "effective rank") if ax is axes[0] or narrow else "")
    legend_below(figure, handles)
    return figure


@styled
def similarity(known, readout, narrow=False):
    """Linear CKA between the runs of two alphas, a panel a norm. known: of similarity.describe."""
    figure, axes = panels(len(known), PAGE if len(known) > 1 else 0.6 * PAGE, 3.0, narrow)
    least = min(v for of in known.values() for row in of[readout]["cka"] for v in row if v is not None)
    lowest = np.floor(10 * min(least, 0.9)) / 10
    for ax, (norm, by_readout) in zip(axes, known.items()):
        found = by_readout[readout]
        values = np.array([[np.nan if v is None else v for v in row] for row in found["cka"]])
        image = ax.imshow(values, vmin=lowest, vmax=1, cmap="Greys")
        ticks = range(len(found["alphas"]))
        ax.set_xticks(ticks, labels=[f"{float(a):g}" for a in found["alphas"]], rotation=45)
        ax.set_yticks(ticks, labels=[f"{float(a):g}" for a in found["alphas"]])
        ax.grid(visible=False)
        ax.set_title(f"{norm}, {LABELS[readout]}", loc="left")
        ax.set_xlabel("α")
        ax.set_ylabel("α" if ax is axes[0] or narrow else "")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "" if np.isnan(value) else f"{value:.2f}"
                ax.text(
                    j,
                    i,
                    text,
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if value > (1 + lowest) / 2 else "black",
                )
    figure.colorbar(image, ax=list(axes), fraction=0.04, pad=0.02, aspect=30, label="linear CKA")
    return figure


@styled
def accuracy_over_depth(table, chance=None, narrow=False):
    """k-NN accuracy of every block's output, a panel a read-out: means over seeds with their 95 % intervals, a line a method;
    dotted, the same networks untrained.

    table: of comparison.tabulate_layers. chance: percent that guessing gets right, drawn if given.
    """
    evaluations = [name for name in EVALUATION_LABELS if (table["evaluation"] == name).any()]
    look = looks(in_order(table["method"].unique()))
    figure, axes = panels(len(evaluations), PAGE, 2.8, narrow, sharey=not narrow)
    layers = [*sorted({layer for layer in table["layer"] if layer != OUTPUT}), OUTPUT]
    for ax, name in zip(axes, evaluations):
        rows = table[table["evaluation"] == name]
        for (method, untrained), part in rows.groupby(["method", "untrained"], sort=False):
            colour, style = look[method]
            known = [
                stats.t_interval(values) if len(values := part[part["layer"] == of]["accuracy"]) else None
                for of in layers
            ]
            x = [i for i, of in enumerate(known, start=1) if of]
            known = [of for of in known if of]
            how = (
                {"linestyle": (0, (1, 1.5)), "linewidth": 1}
                if untrained
                else {"linestyle": style, "marker": "o", "markersize": 3}
            )
            ax.plot(x, [of["mean"] for of in known], color=colour, **how)
            if not untrained and all(of["low"] is not None for of in known):
                ax.fill_between(
                    x, [of["low"] for of in known], [of["high"] for of in known], color=colour, alpha=0.15, linewidth=0
                )
        if chance is not None:
            ax.axhline(chance, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1)
        shown = [
            i for i, of in enumerate(layers, start=1) if of == OUTPUT or (len(layers) - i) % -(-len(layers) // 8) == 0
        ]
        ax.set_xticks(shown, labels=[str(layers[i - 1]) for i in shown])
        ax.minorticks_off()
        ax.set_title(EVALUATION_LABELS[name], loc="left")
        ax.set_xlabel("block" if ax is axes[-1] or not narrow else "")
        ax.set_ylabel(MEASURES["acc1"].axis if ax is axes[0] or narrow else "")
    handles = [Line2D([], [], color=colour, linestyle=style, label=method) for method, (colour, style) in look.items()]
    dotted = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1}
    if table["untrained"].any():
        handles.append(Line2D([], [], **{**dotted, "color": "black"}, label="untrained"))
    if chance is not None:
        handles.append(Line2D([], [], **dotted, label=f"chance: {chance:.3g} %"))
    legend_below(figure, handles)
    return figure


@styled
def feature_maps(pictures, narrow=False):
    """CLS attention in the last block and the first three principal components of patch tokens, two rows a method.

    pictures: {method: arrays of reconstructions.npz with "attention" and "tokens"}, of the same images.
    """
    images = next(iter(pictures.values()))["image"]
    n = min(4 if narrow else 8, len(images))
    rows = [("image", images)]
    for method, arrays in pictures.items():
        side = round(arrays["attention"].shape[1] ** 0.5)
        attention = arrays["attention"].astype(np.float32).reshape(-1, side, side)
        attention = attention / attention.max(axis=(1, 2), keepdims=True)
        rows.append((f"{broken_name(method)}\nattention", attention))
        rows.append(("components", components(arrays["tokens"]).reshape(-1, side, side, 3)))
    width, label = (COLUMN, 0.85) if narrow else (PAGE, 1.0)
    cell = (width - label) / n
    figure = new_figure(width, cell * len(rows) + 0.1)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for row, (title, shown) in zip(axes, rows):
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
        for ax, picture in zip(row, shown):
            ax.imshow(picture, interpolation="nearest", cmap="magma", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


def components(tokens):
    """The first three principal components of tokens (n, L, D) of all images, each from 0 to 1: (n, L, 3)."""
    flat = tokens.astype(np.float64).reshape(-1, tokens.shape[2])
    _, _, directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    scores = (flat - flat.mean(axis=0)) @ directions[:3].T
    low, high = np.percentile(scores, (2, 98), axis=0)
    scaled = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return scaled.reshape(*tokens.shape[:2], -1)
