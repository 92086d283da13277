"""The figures of the reconstruction gap.

Hue is alpha: red negative, white (in line plots black) 0, blue positive, on a symmetric logarithmic scale, because
alphas span 1e-5 to 10; for print in grey negative ones are triangles. Brightness of a point is its epoch and, where
there are several, its learning rate. Points have one size. Where a figure has panels, every norm has its own, on the
same axes and with the same bins. Runs that diverged are drawn as far as they were finite, and are in no bin.
"""

import textwrap

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch

from ..runs.measures import BASELINES, MEASURES, POINT_COLUMNS, UNTRAINED
from ..runs.status import DIVERGED, FINISHED
from ..settings.methods import in_order
from ..settings.spelling import spell
from .figures import COLUMN, GREY, PAGE, draw_baselines, epoch_axis, legend_below, look_of, new_figure, panels, styled

LABELS = {name: MEASURES[column].axis for name, column in POINT_COLUMNS.items()}
UPRIGHT = {
    name: label.replace("), ", ")\n") for name, label in LABELS.items()
}  # of a vertical axis, a read-out in a line of its own
# One sentence for those who see only the figure: what this accuracy says and what not.
CAVEATS = {
    name: "joint probe: untrained at α = 0, adversarial below, where the frozen probe tells more"
    for name in ("accuracy", "joint_mean_accuracy")
}
ORIGINAL = {
    "original-figure": "Γ by the rule of the original scripts' figure: bins of more than 3 points, without the largest MSE",
    "original-json": "Γ by the rule of the original scripts' JSON: bins of equal counts, without the largest MSE",
}
RED, WHITE, BLUE = np.array([0.80, 0.06, 0.10]), np.ones(3), np.array([0.05, 0.22, 0.80])
GREEN = "#009E73"  # the untrained encoder, whatever the norm
DARKEST = 0.35  # brightness of the first epoch; the last has 1
RASTERIZED = 2000  # points from which a scatter in a PDF is a picture


class Hues:
    """The colour of every alpha of a sweep."""

    def __init__(self, alphas):
        largest = max((abs(a) for a in alphas), default=0) or 1.0
        smallest = min((abs(a) for a in alphas if a), default=largest)
        self.alphas = sorted(set(alphas))
        self.norm = SymLogNorm(linthresh=smallest, linscale=0.4, vmin=-largest, vmax=largest)

    def rgb(self, alphas):
        """(n,) -> (n, 3) at full brightness."""
        alphas = np.asarray(alphas, dtype=float)
        t = 2 * np.asarray(self.norm(alphas), dtype=float)[:, None] - 1  # -1 .. 1
        strength = np.where(alphas[:, None] == 0, 0, 0.25 + 0.75 * np.abs(t))
        return WHITE + strength * (np.where(t < 0, RED, BLUE) - WHITE)

    def line(self, alpha):
        """Colour of a line, black at 0."""
        return "black" if alpha == 0 else tuple(self.rgb([alpha])[0] * 0.92)

    def bar(self, figure, axes):
        """A colour bar with a tick at up to nine of the alphas."""
        low, high = self.norm.vmin, self.norm.vmax
        samples = self.norm.inverse(np.linspace(0, 1, 512))
        colours = ListedColormap(self.rgb(np.ma.getdata(samples)))
        bar = figure.colorbar(ScalarMappable(self.norm, colours), ax=axes, fraction=0.04, pad=0.02, aspect=30)
        shown = self.ticks()
        bar.set_ticks(shown, labels=[f"{a:g}" for a in shown])
        bar.ax.minorticks_off()
        bar.ax.set_ylim(low, high)
        bar.ax.set_title("α", pad=4)

    def axis(self, ax, label="α"):
        """Make alpha the horizontal axis, symmetrically logarithmic."""
        ax.set_xscale("symlog", linthresh=self.norm.linthresh, linscale=0.4)
        ax.set_xticks(self.ticks(), labels=[f"{a:g}" for a in self.ticks()])
        ax.tick_params(axis="x", labelrotation=45 if len(self.alphas) > 5 else 0)
        ax.minorticks_off()
        ax.set_xlabel(label)

    def ticks(self):
        """Alphas far enough apart to be read: 0 first, then from the largest inwards."""
        kept = []
        for alpha in sorted(self.alphas, key=lambda a: (a != 0, -abs(a))):
            place = float(self.norm(alpha))
            if all(abs(place - float(self.norm(other))) > 0.055 for other in kept):
                kept.append(alpha)
        return sorted(kept)


@styled
def tube_scatter(points, statistics, column, narrow=False):
    """Accuracy against validation MSE of every epoch of every run: the reconstruction gap.

    points: DataFrame of trajectories.tabulate_points; statistics: of gap.describe for this column. Grey boxes are the
    bins' ranges of accuracy, whose heights add up to Γ; the number written is the one in the statistics.
    """
    hues, norms = Hues(points["alpha"]), _norms(points)
    figure, axes = _panels(norms, 3.6, narrow)
    for ax, norm in zip(axes, norms):
        part = (statistics.get("per_norm") or {}).get(norm)
        if part:
            _draw_bins(ax, part)
        rows = points[points["norm"] == norm]
        _scatter(ax, rows, column, hues, points)
        _draw_untrained(ax, statistics, norm)
        gamma = f"Γ = {part['reconstruction_gap']:.1f} ({part['n_bins']} bins)" if part else "no Γ: one MSE value"
        ax.set_title(f"{norm}, {gamma}\nn = {_count(rows)}", loc="left")
        ax.set_xlabel(LABELS["mse"] if ax is axes[-1] or not narrow else "")
        _mse_axis(ax, points)
        ax.set_ylabel(UPRIGHT[column] if ax is axes[0] or narrow else "")
    hues.bar(figure, list(axes))
    pooled = statistics["reconstruction_gap"]
    lines = [f"all norms pooled: Γ = {pooled:.1f} ({statistics['n_bins']} bins)"] if len(norms) > 1 and pooled else []
    lines += _rule(statistics)
    handles = [*_brightness_handles(points), Patch(color="#e8e8e8", label="range in a bin; Γ: sum of heights")]
    _finish(figure, handles, points, column, lines)
    return figure


@styled
def negative_vs_positive(points, statistics, column, narrow=False):
    """The tube of the negative alphas beside that of the positive ones; alpha 0 is in both, and in neither's Γ."""
    hues, norms = Hues(points["alpha"]), _norms(points)
    rows = len(norms) * (2 if narrow else 1)
    figure = new_figure(COLUMN if narrow else PAGE, 0.9 + (2.1 if narrow else 2.5) * rows)
    grid = figure.subplots(rows, 1 if narrow else 2, sharex=True, sharey=True, squeeze=False).reshape(-1, 2)
    for row, norm in zip(grid, norms):
        mine = points[points["norm"] == norm]
        signs = ((statistics.get("per_norm") or {}).get(norm) or {}).get("signs", {})
        for ax, sign, symbol in zip(row, ("negative", "positive"), "<>"):
            rows = mine[mine["alpha"] < 0] if sign == "negative" else mine[mine["alpha"] > 0]
            part = signs.get(sign)
            if part:
                _draw_bins(ax, part)
            _scatter(ax, mine[mine["alpha"] == 0], column, hues, points)
            _scatter(ax, rows, column, hues, points)
            _draw_untrained(ax, statistics, norm)
            gamma = f", Γ = {part['reconstruction_gap']:.1f}" if part else ""
            name = f"{norm}, " if len(norms) > 1 else ""
            ax.set_title(f"{name}α {symbol} 0{gamma}\nn = {_count(rows)}", loc="left")
            _mse_axis(ax, points)
            ax.set_ylabel(UPRIGHT[column] if narrow or ax is row[0] else "")
    for ax in grid[-1][narrow:]:
        ax.set_xlabel(LABELS["mse"])
    hues.bar(figure, grid.ravel().tolist())
    _finish(figure, _brightness_handles(points), points, column, _rule(statistics))
    return figure


@styled
def alpha_vs_final(points, statistics, found, column, narrow=False):
    """MSE and accuracy of finished runs' last epoch against alpha: means over seeds, bars their standard deviation.

    found: the trajectories, of which the diverged ones are drawn as crosses below.
    """
    figure, axes = panels(2, PAGE, 3.0, narrow)
    ended = points[points["status"] == FINISHED]
    last = ended.sort_values("epoch", kind="stable").groupby("run").tail(1)
    rates, norms = sorted(points["lr"].unique()), _norms(points)
    hues = Hues([run["alpha"] for run in found])
    handles = []
    for norm in norms:
        for i, lr in enumerate(rates):
            rows = last[(last["norm"] == norm) & (last["lr"] == lr)]
            if not len(rows):
                continue
            colour, style = look_of(norm)
            shade = {
                "color": colour,
                "linestyle": style,
                "alpha": 1 - 0.5 * i / len(rates),
                "marker": "osD^v"[i % 5],
                "markersize": 4,
            }
            for ax, name in zip(axes, ("mse", column)):
                grouped = rows.groupby("alpha")[name]
                ax.errorbar(grouped.mean().index, grouped.mean(), grouped.std(), capsize=2, **shade)
            n = rows.groupby("alpha").size()
            seeds = f"n = {n.min()}" if n.min() == n.max() else f"n = {n.min()} to {n.max()}"
            label = f"{norm}" + (f", lr {lr:g}" if len(rates) > 1 else "") + f" ({seeds} a point)"
            handles.append(Line2D([], [], label=label, **shade))
    handles += draw_baselines(axes[0], _loss_baselines(found))
    for norm in norms:
        handles += _draw_untrained(axes[1], statistics, norm, look_of(norm)[0])
    gone = [run["alpha"] for run in found if run["status"] == DIVERGED]
    for ax, name in zip(axes, ("mse", column)):
        hues.axis(ax)
        ax.set_ylabel("final " + UPRIGHT[name].replace(", hidden patches", ""))
        if gone:
            ax.plot(gone, [0.02] * len(gone), "x", color="black", transform=ax.get_xaxis_transform(), clip_on=False)
    if gone:
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label=f"{len(gone)} diverged"))
    _finish(figure, handles, points, column)
    return figure


@styled
def over_epochs(points, found, column, narrow=False):
    """MSE or an accuracy over epochs, a line per alpha and learning rate: the mean over seeds."""
    hues, norms, rates = Hues(points["alpha"]), _norms(points), sorted(points["lr"].unique())
    styles = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1))]
    points = points[points[column].notna()]
    figure, axes = _panels(norms, 3.2, narrow)
    for ax, norm in zip(axes, norms):
        rows = points[points["norm"] == norm]
        for (alpha, lr), line in rows.groupby(["alpha", "lr"]):
            mean = line.groupby("epoch")[column].mean()
            style = styles[rates.index(lr) % len(styles)]
            marker = "v" if alpha < 0 else "o" if len(mean) == 1 else None
            ax.plot(
                mean.index,
                mean,
                color=hues.line(alpha),
                linestyle=style,
                marker=marker,
                markersize=3,
                markevery=max(1, len(mean) // 6),
                linewidth=1.8 if alpha == 0 else 1.1,
                zorder=3 if alpha == 0 else 2,
            )
        if column != "mse":
            untrained = (
                rows.groupby("epoch")[UNTRAINED[column]].mean().dropna() if column in UNTRAINED else rows["epoch"][:0]
            )
            ax.plot(untrained.index, untrained, color=GREEN, linestyle=(0, (4, 2)), linewidth=1.4, zorder=4)
        else:
            baselines = draw_baselines(ax, _loss_baselines(found))
            if rows["mse"].max() > 20 * rows["mse"].min():
                ax.set_yscale("log")
        ax.set_title(f"{norm}, n = {_count(rows)}", loc="left")
        epoch_axis(ax, label=ax is axes[-1] or not narrow)
        ax.set_ylabel(UPRIGHT[column] if ax is axes[0] or narrow else "")
    hues.bar(figure, list(axes))
    handles = [Line2D([], [], color="black", linewidth=1.8, label="α = 0")]
    if (points["alpha"] < 0).any():
        handles.append(
            Line2D([], [], color=hues.line(hues.norm.vmin), marker="v", markersize=3, linewidth=1.1, label="α < 0")
        )
    if len(rates) > 1:
        handles += [
            Line2D([], [], color=GREY, linestyle=styles[i % len(styles)], label=f"lr {lr:g}")
            for i, lr in enumerate(rates)
        ]
    if column == "mse":
        handles += baselines
    elif column in UNTRAINED and points[UNTRAINED[column]].notna().any():
        handles.append(Line2D([], [], color=GREEN, linestyle=(0, (4, 2)), label="untrained encoder"))
    _finish(figure, handles, points, column)
    return figure


def _rule(statistics):
    """What is said of a Γ that is not the kit's."""
    return [ORIGINAL[statistics["binning"]]] if statistics.get("binning") in ORIGINAL else []


def _panels(norms, height, narrow):
    """A figure with a panel per norm, on shared axes."""
    width = PAGE if len(norms) > 1 else 1.5 * COLUMN
    return panels(
        len(norms), width, height if len(norms) > 1 else height - 0.4 * narrow, narrow, sharex=True, sharey=True
    )


def _norms(points):
    return in_order(points["norm"].unique())


def _scatter(ax, rows, column, hues, points):
    """Points of one size; colours by alpha, brightness by epoch and learning rate over all `points`."""
    rows = rows.sample(frac=1, random_state=0)  # so that no alpha lies on top of all others
    brightness = DARKEST + (1 - DARKEST) * _progress(rows, points)
    colours = hues.rgb(rows["alpha"]) * brightness.to_numpy()[:, None]
    drawn = ax.scatter(
        rows["mse"],
        rows[column],
        s=14 if len(points) < RASTERIZED else 7,
        c=colours,
        edgecolors="#606060",
        linewidths=0.3,
        zorder=3,
        rasterized=len(points) >= RASTERIZED,
    )
    if len(rows):
        shapes = {name: (mark := MarkerStyle(name)).get_path().transformed(mark.get_transform()) for name in "ov"}
        drawn.set_paths([shapes["v" if alpha < 0 else "o"] for alpha in rows["alpha"]])


def _progress(rows, points):
    """0..1 over the epochs of a run; with several learning rates the mean of that and the rate's rank."""
    epoch = rows["epoch"] / max(points["epoch"].max(), 1)
    rates = sorted(points["lr"].unique())
    if len(rates) == 1:
        return epoch
    return (epoch + rows["lr"].map(rates.index) / (len(rates) - 1)) / 2


def _brightness_handles(points):
    last = int(points["epoch"].max())
    low, high = spell(points["lr"].min()), spell(points["lr"].max())
    ends = ((DARKEST, 0, low), (1.0, last, high)) if last or low != high else ()
    shapes = [("v", 1.0, "α < 0")] if (points["alpha"] < 0).any() else []
    shapes += [("o", v, f"epoch {epoch}" + (f", lr {lr}" if low != high else "")) for v, epoch, lr in ends]
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker=shape,
            markersize=4,
            markerfacecolor=[v] * 3,
            markeredgecolor="#606060",
            markeredgewidth=0.3,
            label=label,
        )
        for shape, v, label in shapes
    ]


def _draw_bins(ax, part):
    for b in part["bin_statistics"]:
        ax.fill_between(
            [b["mse_min"], b["mse_max"]], b["acc_min"], b["acc_max"], color="#e8e8e8", linewidth=0, zorder=1
        )


def _draw_untrained(ax, statistics, norm, colour=None):
    """A line at the untrained encoder's accuracy, with a colour for one panel of many norms; its legend handles."""
    value = ((statistics["untrained"] or {}).get("per_norm") or {}).get(norm)
    if value is None:
        return []
    label = f"{norm + ', untrained' if colour else 'untrained encoder'}: {value:.1f} %"
    line = ax.axhline(value, color=colour or GREEN, linestyle=(0, (4, 2)), linewidth=1.2, zorder=4, label=label)
    if not colour:
        ax.legend(handles=[line], loc="best", handlelength=2.5)
    return [line]


def _loss_baselines(found):
    """Flat and smoothed colour, where runs of this kit say them; means over runs."""
    known = {}
    for name in BASELINES:
        values = [run[name] for run in found if run.get(name) is not None]
        if values:
            known[name] = float(np.mean(values))
    return known


def _mse_axis(ax, points):
    if points["mse"].max() > 20 * points["mse"].min() > 0:
        ax.set_xscale("log")


def _count(rows):
    """Runs and points in words, for titles."""
    runs, gone = rows["run"].nunique(), rows[rows["status"] == DIVERGED]["run"].nunique()
    return f"{runs} run{'s' * (runs != 1)}, {len(rows)} points" + (f", {gone} diverged" if gone else "")


def _finish(figure, handles, points, column, lines=()):
    """The legend below, and above what a reader of this accuracy must know."""
    lines = [*lines, CAVEATS[column]] if column in CAVEATS and (points["alpha"] <= 0).any() else lines
    if lines:
        lines = [part for line in lines for part in textwrap.wrap(line, int(17 * figure.get_figwidth()))]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)
    legend_below(figure, handles)
