"""The figures of accuracy at equal reconstruction."""

import itertools

import numpy as np
from matplotlib.lines import Line2D

from ..settings.probes import ACCURACIES, MEAN, PROBES, READOUTS
from ..settings.spelling import spell
from .figures import COLUMN, GREY, PAGE, legend_below, look_of, new_figure, panels, styled
from .gap_figures import UPRIGHT, Hues
from .matched import established

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # a probe each; the read-out is the line's style


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
        label = f"{name}, at MSE {known['at']:.3f} ({_n(of)})"
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


@styled
def matched_differences(matched, narrow=False):
    """Accuracy minus that of the reference at equal MSE over alpha, a panel a group, a line a probe and read-out: means over seeds
    with their 95 % intervals, filled where those of all alphas at once exclude 0.

    matched: of matched.of_all.
    """
    groups = list(dict.fromkeys(group for of in matched.values() for group in of))
    hues = Hues([float(alpha) for of in matched.values() for known in of.values() for alpha in _drawn(known)])
    figure, axes = panels(len(groups), PAGE if len(groups) > 1 else COLUMN, 2.8, narrow, sharey=True)
    references = dict.fromkeys(f"{known['reference']:g}" for of in matched.values() for known in of.values())
    lines = {a.column: a for a in ACCURACIES.values() if a.column in matched}
    colours = dict(zip(dict.fromkeys(of.probe for of in lines.values()), itertools.cycle(COLOURS)))
    handles = []
    for i, (column, of) in enumerate(lines.items()):
        look = {"color": colours[of.probe], "linestyle": "--" if of.readout == MEAN else "-", "markersize": 4}
        look["marker"] = "o^sDvP"[i % 6]  # in grey the hues of probes are alike
        for ax, group in zip(axes, groups):
            known = matched[column].get(group)
            if known:
                _line(ax, hues, _drawn(known), 0.012 * (i - (len(lines) - 1) / 2), look)
        handles.append(Line2D([], [], label=f"{PROBES[of.probe].label}, {READOUTS[of.readout]}", **look))
    for ax, group in zip(axes, groups):
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        told = [d for of in matched.values() if group in of for d in _drawn(of[group]).values() if d]
        ax.set_title(f"{group}\n{_n(told)}", loc="left")
        hues.axis(ax, "α" if ax is axes[-1] or not narrow else "")
        label = f"accuracy at equal MSE\nminus that of α = {' or '.join(references)} (points)"
        ax.set_ylabel(label if ax is axes[0] or narrow else "")
    legend_below(figure, handles)
    return figure


def _n(known):
    """How many seeds stand behind some numbers: n = 3, n = 2 to 3."""
    if not known:
        return "nothing in common"
    n = sorted({one["n"] for one in known})
    return f"n = {' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))}"


def _drawn(known):
    """{alpha: difference} of those that are not left out, and of the reference, which has none to itself."""
    kept = {alpha: d for alpha, d in known["differences"].items() if alpha not in known["left_out"] and d["n"]}
    return dict(sorted({**kept, spell(known["reference"]): None}.items(), key=lambda item: float(item[0])))


def _line(ax, hues, drawn, shift, look):
    alphas = [float(alpha) for alpha in drawn]
    places = np.ma.getdata(hues.norm.inverse(hues.norm(alphas) + shift))
    means = np.array([0.0 if d is None else d["mean"] for d in drawn.values()])
    half = [0.0 if d is None else np.nan if d["low"] is None else d["high"] - d["mean"] for d in drawn.values()]
    ax.errorbar(places, means, half, capsize=2, **{**look, "markerfacecolor": "white"})
    sure = [d is not None and established(d) for d in drawn.values()]
    ax.plot(places[sure], means[sure], **{**look, "linestyle": "none"}, zorder=5)
