"""The plots of the report that answer to clicks, as plotly takes them. plotly is imported here and nowhere else."""

import numpy as np

from ..runs.measures import BASELINES, MEASURES
from ..settings import methods
from ..settings.spelling import spell
from . import figures

EDGE = {"color": "#606060", "width": 0.5}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
MOST_POINTS = 8000  # in one plot; runs of more are thinned out


def losses(logs, table):
    """Loss over epochs, a line a run; views: validation, training.

    logs: DataFrame, a row per run and epoch (model, seed, epoch, train_loss, val_mse); table: a row a run. Returns
    {"data", "layout", "views": [{"label", "restyle", "relayout"}]}.
    """
    import plotly.graph_objects as go

    look = figures.looks(table["model"].unique())
    logs = logs.assign(train_loss=logs.apply(figures.reconstruction_loss, axis=1))
    plot, values = go.Figure(), {"val_mse": [], "train_loss": []}
    for method in methods.in_order(logs["model"].unique()):
        line = {"color": look[method][0], "dash": _dash(look[method][1]), "width": 2}
        for i, (seed, rows) in enumerate(logs[logs["model"] == method].groupby("seed")):
            plot.add_scatter(
                x=rows["epoch"].tolist(),
                y=_floats(rows["val_mse"]),
                mode="lines+markers",
                name=method,
                legendgroup=method,
                showlegend=i == 0,
                marker={"size": 4},
                line=line,
                hovertemplate=f"{_plain(method)}, seed {seed}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
            )
            for name, of in values.items():
                of.append(_floats(rows[name]))
    for i, column in enumerate(BASELINES):
        value = table[column].mean() if column in table else np.nan
        if np.isfinite(value):
            line, place = {"color": figures.GREY, "dash": "dot", "width": 1}, ("top right", "bottom right")[i % 2]
            plot.add_hline(y=value, line=line, annotation_text=MEASURES[column].label, annotation_position=place)
    _lay_out(plot, "epoch", figures.LOSS_AXIS)
    labels = {"val_mse": "validation", "train_loss": "training"}
    views = [{"label": label, "restyle": {"y": values[name]}, "relayout": {}} for name, label in labels.items()]
    return {**plot.to_plotly_json(), "views": views}


def tube(points, columns):
    """Accuracy over validation MSE, a point an epoch of a run, a trace per alpha and norm; a view per accuracy.

    points: DataFrame of trajectories.tabulate_points; columns: {column: label of its accuracy}. Returns as `losses`,
    and "every": of how many epochs one is drawn; "symbols": {norm: its symbol} where there are several.
    """
    import plotly.graph_objects as go

    from .gap_figures import Hues

    hues, every = Hues(points["alpha"]), -(-len(points) // MOST_POINTS)
    last, final = points.groupby("run")["epoch"].transform("max"), int(points["epoch"].max())
    points = points[(points["epoch"] % every == 0) | (points["epoch"] == last)]
    norms = methods.in_order(points["norm"].unique())
    plot, values = go.Figure(), {column: [] for column in columns}
    for alpha in sorted(points["alpha"].unique()):
        rgb, name = hues.rgb([alpha])[0], f"α {spell(alpha)}"
        key = {"color": _rgb(rgb), "size": 9, "line": EDGE}
        plot.add_scatter(x=[None], y=[None], mode="markers", name=name, legendgroup=name, marker=key)
        for of in values.values():
            of.append([None])
        for norm in norms:
            rows = points[(points["norm"] == norm) & (points["alpha"] == alpha)]
            plot.add_scatter(
                x=_floats(rows["mse"]),
                y=_floats(rows[next(iter(columns))]),
                mode="markers",
                text=[_point(row) for row in rows.itertuples()],
                legendgroup=name,
                showlegend=False,
                marker=_markers(rows, rgb, final, SYMBOLS[norms.index(norm) % len(SYMBOLS)]),
                hovertemplate="%{text}<br>MSE %{x:.4f}, accuracy %{y:.1f} %<extra></extra>",
            )
            for column, of in values.items():
                of.append(_floats(rows[column]))
    _lay_out(plot, MEASURES["val_mse"].axis, next(iter(columns.values())))
    if points["mse"].max() > 20 * points["mse"].min() > 0:
        plot.update_xaxes(type="log")
    views = [
        {"label": MEASURES[column].label, "restyle": {"y": values[column]}, "relayout": {"yaxis.title.text": label}}
        for column, label in columns.items()
    ]
    shapes = dict(zip(norms, SYMBOLS)) if len(norms) > 1 else {}
    return {**plot.to_plotly_json(), "views": views, "every": every, "symbols": shapes}


def _point(row):
    """What a point of the tube says of itself."""
    return f"{_plain(row.norm)}, α {spell(row.alpha)}, lr {spell(row.lr)}, seed {row.seed}, epoch {row.epoch}"


def _markers(rows, rgb, final, symbol):
    """Markers of one alpha's points, brighter with the epoch up to the final one."""
    from .gap_figures import DARKEST

    return {
        "color": rows["epoch"].tolist(),
        "cmin": 0,
        "cmax": max(1, final),
        "colorscale": [[0, _rgb(rgb * DARKEST)], [1, _rgb(rgb)]],
        "size": 7,
        "symbol": symbol,
        "line": EDGE,
    }


def _lay_out(plot, x, y):
    axis = {"automargin": True, "zeroline": False}
    plot.update_layout(
        template=None,
        height=460,
        margin={"l": 10, "r": 10, "t": 20, "b": 10},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={**axis, "title": {"text": x}},
        yaxis={**axis, "title": {"text": y}},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )


def _floats(values):
    """A column as a list in which None is what is not known."""
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _dash(style):
    """A line style of matplotlib's as plotly has it, for lines of 2 pixels."""
    return "solid" if style == "-" else ",".join(f"{2 * length:g}px" for length in style[1])


def _plain(text):
    """Text for plotly, which takes some HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("%", "&#37;")


def _rgb(colour):
    return f"rgb({', '.join(str(round(255 * float(c))) for c in colour)})"
