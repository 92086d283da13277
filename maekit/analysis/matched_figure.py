"""The figure of accuracy at equal reconstruction."""

import numpy as np
from matplotlib.lines import Line2D

from .figures import COLUMN, GREY, legend_below, look_of, new_figure, styled
from .gap_figures import UPRIGHT, Hues


@styled
def matched_mse(statistics, column, narrow=False):
    """Accuracy over alpha at one MSE that all runs of a norm pass, a line a norm, with 95 % intervals over seeds.

    statistics: of gap.describe for this column, with "matched" of matched.describe and "untrained".
    """
    groups = {name: known for name, known in statistics["matched"].items() if known["at_median"]}
    hues = Hues([float(alpha) for known in groups.values() for alpha in known["at_median"]])
    figure = new_figure(COLUMN, 3.0)
    ax = figure.subplots()
    handles, untrained = [], (statistics.get("untrained") or {}).get("per_norm") or {}
    for i, (name, known) in enumerate(groups.items()):
        norm = name.partition(",")[0]
        colour, style = look_of(norm)
        look = {"color": colour, "linestyle": style, "marker": "osD^v"[i % 5], "markersize": 4}
        place = hues.norm([float(alpha) for alpha in known["at_median"]]) + 0.012 * (i - (len(groups) - 1) / 2)
        alphas = np.ma.getdata(hues.norm.inverse(place))  # side by side, where norms have the same alphas
        of = list(known["at_median"].values())
        means = [one["mean"] for one in of]
        half = [np.nan if one["low"] is None else one["high"] - one["mean"] for one in of]
        ax.errorbar(alphas, means, half, capsize=2, **look)
        n = sorted({one["n"] for one in of})
        label = f"{name}, at MSE {known['at']:.3f} (n = {' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))})"
        handles.append(Line2D([], [], label=label, **look))
        if norm in untrained:
            handles.append(
                ax.axhline(
                    untrained[norm],
                    color=colour,
                    linestyle=(0, (1, 1.5)),
                    linewidth=1,
                    label=f"{norm}, untrained: {untrained[norm]:.1f} %",
                )
            )
    if not groups:
        ax.text(0.5, 0.5, "no MSE that all alphas pass", ha="center", color=GREY, transform=ax.transAxes)
    hues.axis(ax)
    ax.set_ylabel(f"{UPRIGHT[column]}\nat equal MSE")
    ax.set_ylim(bottom=max(0, ax.get_ylim()[0]))
    legend_below(figure, handles)
    return figure
