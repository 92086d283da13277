"""The figures of a comparison over learning rates and over numbers of training images."""

import math

import numpy as np
from matplotlib.lines import Line2D

from ..runs.measures import MEASURES
from ..settings.methods import in_order
from .figures import COLUMN, GREY, PAGE, broken_name, legend_below, looks, new_figure, styled

HEIGHT = 3.0  # inches


@styled
def rate_curve(known, narrow=False):
    """Final validation loss over learning rates, a line a method; the rate chosen is ringed, one at which a run diverged
    crossed, above all others where none of its runs ended. A loss far above the others is an arrow at the upper edge, with its
    number, so that the others can be told apart. known: of rates.describe."""
    figure = new_figure(COLUMN if narrow else PAGE, HEIGHT)
    ax = figure.subplots()
    methods = in_order(known["methods"])
    look = looks(methods)
    means = [at["mean"] for of in known["methods"].values() for at in of["curve"].values() if at["mean"] is not None]
    edge = _upper_edge(known["methods"])
    means = [mean for mean in means if mean <= edge]
    top = max(means, default=1.0) + 0.08 * (max(means, default=1.0) - min(means, default=0.0) or 1.0)
    ticks = sorted({float(rate) for of in known["methods"].values() for rate in of["curve"]})
    for method, shift in zip(methods, _side_by_side(methods, ticks)):
        curve, (colour, style) = known["methods"][method]["curve"], look[method]
        ended = {float(rate): at for rate, at in curve.items() if at["n"]}
        places, line = [rate * shift for rate in ended], {"color": colour, "linestyle": style}
        ax.plot(places, [at["mean"] for at in ended.values()], marker="o", markersize=3, **line)
        for place, at in zip(places, ended.values()):
            if at["mean"] > edge:
                ax.plot(place, top, "^", color=colour, markersize=6, clip_on=False)
                ax.annotate(
                    f"{at['mean']:.3g}", (place, top), (-8, -3), textcoords="offset points", ha="right", color=colour
                )
            elif at["low"] is not None:
                ax.errorbar(place, at["mean"], at["high"] - at["mean"], color=colour, capsize=2, linewidth=1)
        for rate, at in curve.items():
            if at["diverged"]:
                height = (
                    top if at["mean"] is None else at["mean"] if at["mean"] <= edge else top - 0.1 * (top - min(means))
                )
                ax.plot(float(rate) * shift, height, "x", color=colour, markersize=8, markeredgewidth=2, zorder=4)
        chosen = known["methods"][method]["chosen"]
        if chosen is not None:
            ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.5}
            ax.plot(chosen * shift, min(ended[chosen]["mean"], top), "o", clip_on=False, **ring)
    if math.isfinite(edge):
        ax.set_ylim(min(means) - 0.25 * (top - min(means)), top)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(MEASURES["lr"].label)
    ax.set_ylabel(f"final validation loss\n({MEASURES['val_mse'].unit})")
    handles = [
        Line2D([], [], color=look[m][0], linestyle=look[m][1], marker="o", markersize=3, label=m) for m in methods
    ]
    mark = {"linestyle": "none", "color": GREY}
    handles.append(Line2D([], [], marker="o", markerfacecolor="none", markersize=9, label="rate chosen", **mark))
    if any(at["diverged"] for of in known["methods"].values() for at in of["curve"].values()):
        handles.append(Line2D([], [], marker="x", markersize=8, markeredgewidth=2, label="a run diverged", **mark))
    legend_below(figure, handles)
    return figure


def _upper_edge(methods):
    """Mean loss above which one is far above the others, Tukey's fence; inf if none is."""
    means = [at["mean"] for of in methods.values() for at in of["curve"].values() if at["mean"] is not None]
    if not means:
        return math.inf
    low, high = np.percentile(means, (25, 75))
    edge = high + 1.5 * (high - low)
    return edge if max(means) > edge else math.inf


def _side_by_side(methods, ticks):
    """Factors on places of a logarithmic axis from the first to the last tick, so that intervals of methods do not cover each
    other: a hundredth of the axis apart."""
    apart = (max(ticks) / min(ticks)) ** 0.01 if len(ticks) > 1 else 1.01
    return [apart ** (i - (len(methods) - 1) / 2) for i in range(len(methods))]


@styled
def difference_over_images(known, reference, narrow=False):
    """Final validation loss minus the reference's over the number of training images, with 95 % intervals, methods side by
    side; crossed on the line of 0 where a method has no difference because its runs diverged. known: of sizes.describe."""
    figure = new_figure(COLUMN if narrow else PAGE, HEIGHT)
    ax = figure.subplots()
    ax.axhline(0, color=GREY, linewidth=1)
    methods = in_order(known["differences"])
    look, images = looks([reference, *methods]), known["images"]
    for method, shift in zip(methods, _side_by_side(methods, images.values())):
        colour, style = look[method]
        by_size = {images[size] * shift: of for size, of in known["differences"][method].items() if of["n"]}
        ax.plot(by_size.keys(), [of["mean"] for of in by_size.values()], color=colour, linestyle=style)
        for place, of in by_size.items():
            half = 0 if of["low"] is None else of["high"] - of["mean"]
            ax.errorbar(
                place, of["mean"], half or None, color=colour, capsize=3, marker="o", markersize=4, linestyle="none"
            )
            seeds = list(of["differences"].values())
            ax.plot(np.full(len(seeds), place), seeds, ".", color=colour, markersize=3, alpha=0.6)
        for size, of in known["differences"][method].items():
            if of["diverged"] and not of["n"]:
                ax.plot(images[size] * shift, 0, "x", color=colour, markersize=8, markeredgewidth=2)
    ax.set_xscale("log")
    ax.set_xticks(list(images.values()), [f"{n:,}" for n in images.values()])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("training images")
    ax.set_ylabel(f"{MEASURES['val_mse'].label},\ndifference to {broken_name(reference)}")
    legend_below(figure, [Line2D([], [], color=look[m][0], linestyle=look[m][1], marker="o", label=m) for m in methods])
    return figure
