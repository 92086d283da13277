"""The figure of classes with and without labels in training."""

import numpy as np
from matplotlib.lines import Line2D

from .figures import GREY, PAGE, legend_below, look_of, panels, styled
from .gap_figures import UPRIGHT, Hues
from .labelled import KINDS


@styled
def labelled_classes(known, column, narrow=False):
    """Accuracy over alpha of classes whose labels training had and of the others, a panel a norm, 95 % intervals over seeds.

    known: of labelled.describe for this column.
    """
    hues = Hues([float(alpha) for of in known.values() for alpha in of["means"]["labelled"]])
    figure, axes = panels(len(known), PAGE if len(known) > 1 else 0.6 * PAGE, 2.8, narrow)
    for ax, (norm, of) in zip(axes, known.items()):
        own, _ = look_of(norm)
        for kind, colour, style, marker in zip(KINDS, (own, GREY), ("-", "--"), "os"):
            means = of["means"][kind]
            half = [np.nan if m["low"] is None else m["high"] - m["mean"] for m in means.values()]
            look = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4, "capsize": 2}
            ax.errorbar([float(a) for a in means], [m["mean"] for m in means.values()], half, **look)
            if of["untrained"][kind] is not None:
                ax.axhline(of["untrained"][kind], color=colour, linestyle=(0, (1, 1.5)), linewidth=1)
        n = {m["n"] for m in of["means"]["labelled"].values()}
        seeds = f"{min(n)}" if len(n) == 1 else f"{min(n)} to {max(n)}"
        ax.set_title(f"{norm} (n = {seeds} a point)", loc="left")
        hues.axis(ax, "α" if ax is axes[-1] or not narrow else "")
        ax.set_ylabel(UPRIGHT[column] if ax is axes[0] or narrow else "")
    counts = next(iter(known.values()))["classes"]
    handles = [
        Line2D(
            [],
            [],
            color="black",
            linestyle="-",
            marker="o",
            label=f"{counts['labelled']} classes with labels in training",
        ),
        Line2D([], [], color=GREY, linestyle="--", marker="s", label=f"{counts['others']} classes without"),
    ]
    if any(value is not None for of in known.values() for value in of["untrained"].values()):
        handles.append(Line2D([], [], color="black", linestyle=(0, (1, 1.5)), linewidth=1, label="untrained encoder"))
    legend_below(figure, handles)
    return figure
