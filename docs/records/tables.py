"""The tables of the records, in Markdown, from their committed files."""

import re
import statistics
from dataclasses import dataclass

from maekit.analysis import rates as of_rates
from maekit.data.pixels import IMAGENET_STD
from maekit.runs import measures
from maekit.settings import methods

from .numbers import Difference, Rows, fixed

PIXELS = 3 / sum(1 / deviation**2 for deviation in IMAGENET_STD)  # of a loss on standardised pixels, in [0, 1]


@dataclass(frozen=True)
class Column:
    """A column of a table of methods: mean ± standard deviation over seeds of `measure`, a column of runs.csv, times `scale`.

    With `against`, a method, it is the difference to that, and with `minus`, another measure, the difference to that of
    the same method; both paired by seed, with the 95 % interval. With `published`, {method: number}, it is these.
    """

    title: str
    measure: str
    decimals: int = 3
    scale: float = 1.0
    against: str = ""
    minus: str = ""
    published: dict | None = None

    def cell(self, rows, method):
        """Its text for a method. rows: numbers.Rows of all methods."""
        if self.published is not None:
            return fixed(self.published[method], self.decimals) if method in self.published else ""
        mine = rows.having(method=method, status="finished")
        if not len(mine):
            return "diverged"
        if not mine.values(self.measure) or method == self.against:
            return ""
        if self.against or self.minus:
            of = rows.having(method=self.against, status="finished") if self.against else mine
            return signed(mine.minus(of, self.measure, self.minus or None, self.scale), self.decimals)
        return spread([value * self.scale for value in mine.values(self.measure)], self.decimals)


def spread(values, decimals):
    """Mean ± standard deviation."""
    mean = fixed(statistics.mean(values), decimals)
    return mean if len(values) < 2 else f"{mean} ± {fixed(statistics.stdev(values), decimals)}"


def signed(known, decimals=3):
    """A Difference with signs, +0.043 (+0.018 to +0.068), without an interval where there is none, a dash where nothing is paired."""
    if known.mean is None:
        return "–"
    mean = fixed(known.mean, decimals, sign=True)
    if known.low is None:
        return mean
    return f"{mean} ({fixed(known.low, decimals, sign=True)} to {fixed(known.high, decimals, sign=True)})"


VALIDATION = Column("`val_mse`", "val_mse")
TO_LAYER_NORM = Column("difference to LayerNorm", "val_mse", against="LayerNorm")
QUALITY = (Column("PSNR (dB)", "psnr", 2), Column("SSIM", "ssim"))
ADYT = {"LayerNorm": 0.0435, "DynamicTanh": 0.0606, "AdaptiveDynamicTanh-lambda1.96": 0.0450}  # github.com/alim98/adyt
LOSSES = {  # name in a template: columns of its table of methods
    "losses": (Column("training loss", "final_loss"), VALIDATION, TO_LAYER_NORM, *QUALITY),
    "quality": (VALIDATION, TO_LAYER_NORM, QUALITY[0]),
    "test error": (
        Column("test error", "val_mse", 4, PIXELS),
        Column("minus DynamicTanh's", "val_mse", 4, PIXELS, against="DynamicTanh"),
        Column("minus DynamicTanh's from α = 2.0", "val_mse", 4, PIXELS, against="DynamicTanh-alpha2.0"),
        Column("published, 60 epochs", "", 4, published=ADYT),
    ),
}


def of_methods(record, columns, *, baselines=True):
    """A row a method, then the baselines of the validation loss. columns: a name of LOSSES, or Columns."""
    columns = LOSSES[columns] if isinstance(columns, str) else columns
    rows = Rows(record.rows)
    lines = [["method", *(column.title for column in columns)]]
    for method in methods.in_order(rows.distinct("method")):
        lines.append([spoken(method), *(column.cell(rows, method) for column in columns)])
    for baseline in measures.BASELINES if baselines else ():
        (value,) = {round(v, 3) for v in rows.values(baseline)}  # that of the data, not of a run
        cells = [fixed(value) if column is VALIDATION else "" for column in columns]
        lines.append([f"*{measures.MEASURES[baseline].label}*", *cells])
    return markdown(lines)


def accuracies(record, *evaluations):
    """A row a method, for each evaluation (of measures' names, such as knn_mean) its accuracy and what it is from that of random
    weights, in percent and points."""
    columns = []
    for name in evaluations:
        column, label = f"{name}_accuracy", measures.MEASURES[f"{name}_accuracy"].label
        columns += [
            Column(f"{label} (%)", column, 1),
            Column("minus random weights", column, 1, minus=f"untrained_{column}"),
        ]
    return of_methods(record, tuple(columns), baselines=False)


def matched(record):
    """A row a norm and alpha, a column an accuracy: its difference to alpha 0 at equal MSE, bold where it is established."""
    cells, columns, reach = {}, {}, {}
    for row in record.file("matched_table.csv"):
        columns[row["accuracy"]] = f"{measures.MEASURES[row['accuracy']].label} (points)"
        bold = "**" * row["established"]
        ends = "" if row["low"] is None else f" ({row['low']:+z.1f} to {row['high']:+z.1f})"
        text = "–" if row["left_out"] or row["mean"] is None else f"{bold}{row['mean']:+z.1f}{bold}{ends}"
        cells.setdefault((row["group"], row["alpha"]), {})[row["accuracy"]] = text
        reach[row["group"], row["alpha"]] = _range(row)
    lines = [["norm", "α", "MSE", *columns.values()]]
    for (norm, alpha), of in cells.items():
        lines.append([norm, f"{alpha:g}", reach[norm, alpha], *(of.get(column, "–") for column in columns)])
    return markdown(lines)


def _range(row):
    """The MSE that runs of an alpha and of 0 both pass."""
    return "–" if row.get("mse_low") is None else f"{row['mse_low']:.2f} to {row['mse_high']:.2f}"


OF_FEATURES = ("frozen_accuracy", "knn_accuracy", "frozen_mean_accuracy", "knn_mean_accuracy", "rank_cls", "rank_mean")
LAST_EPOCHS = {  # columns of gap_table.csv: title, decimals
    "mse": ("`val_mse`", 3),
    **{name: (measures.MEASURES[name].title, 1) for name in OF_FEATURES},
}


def last_epochs(record):
    """A row a norm and alpha of a sweep at one rate, and one of each norm's untrained encoders: mean ± standard deviation over
    seeds of the last epoch's measures."""
    rows = record.file("gap_table.csv")
    shown = {column: of for column, of in LAST_EPOCHS.items() if f"{column}_mean" in rows[0]}
    lines = [["norm", "α", "n", *(title for title, _ in shown.values())]]
    for norm in methods.in_order({row["norm"] for row in rows}):
        mine = [row for row in rows if row["norm"] == norm]
        lines += [[norm, f"{row['alpha']:g}", str(row["n_seeds"]), *_last(row, shown)] for row in mine]
        untrained = [(row["n_seeds"], cells) for row in mine if any(cells := _last(row, shown, "untrained_"))]
        lines += [[norm, "*untrained*", str(n), *cells] for n, cells in untrained[:1]]  # the same at every alpha
    return markdown(lines)


def _last(row, shown, of=""):
    """Cells of a row of gap_table.csv; empty where the untrained encoder has no such measure."""
    known = {
        name: (row.get(f"{of}{name}_mean"), row.get(f"{of}{name}_std"), digits) for name, (_, digits) in shown.items()
    }
    return ["" if of and values[0] is None else _mean(*values) for values in known.values()]


def _mean(mean, deviation, decimals):
    if mean is None:
        return "diverged"
    return fixed(mean, decimals) + ("" if deviation is None else f" ± {fixed(deviation, decimals)}")


def by_rate(record):
    """A row a method: its best rate, the validation loss at each, what it is from the reference, where it is flat."""
    known = record.file("comparison_statistics.json")["rates"]
    by_method = known["methods"]
    tried = sorted({rate for of in by_method.values() for rate in of["curve"]}, key=float)
    common = "the reference's" if known["common"] is None else f"{known['common']:g}"
    titles = [f"to {known['reference'] or 'the reference'}, each at its best", f"all at {common}", "flat (%)"]
    lines = [["method", *(f"`val_mse` at {float(rate):g}" for rate in tried), *titles]]
    for method in methods.in_order(by_method):
        of, best = by_method[method], by_method[method]["chosen"]
        cells = [_at_rate(of["curve"].get(rate), bold=float(rate) == best) for rate in tried]
        cells += [_to_reference(known[at].get(method)) for at in ("at_best", "at_common")]
        lines.append([spoken(method), *cells, "" if of["flat"] is None else f"{100 * of['flat']:.0f}"])
    return markdown(lines)


def _at_rate(known, bold):
    if known is None or known["mean"] is None:
        return "–" if known is None else "diverged"
    text = fixed(known["mean"])
    return (f"**{text}**" if bold else text) + (f", {known['diverged']} diverged" if known["diverged"] else "")


def by_size(record):
    """A row a method, a column a number of training images: what its validation loss is from the reference's."""
    known = record.file("comparison_statistics.json")["sizes"]
    lines = [["method", *(f"{images:,} images" for images in known["images"].values())]]
    for method, of in known["differences"].items():
        lines.append([spoken(method), *(_to_reference(of[size]) for size in known["images"])])
    return markdown(lines)


def _to_reference(known):
    """A rates.difference; empty for the reference, a dash where there are no runs."""
    if known is None:
        return ""
    cells = [] if known["mean"] is None else [signed(Difference.known(known))]
    return ", ".join([*cells, *of_rates.lost(known)]) or "–"


def markdown(lines):
    """Rows of cells as a table, the first its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(re.sub(" +", " ", f"| {' | '.join(cells)} |\n") for cells in lines)


def spoken(method):
    """A method as a reader has it: DynamicTanh-alpha2.0 is DynamicTanh from α = 2.0."""
    norm, _, options = method.partition("-")
    return norm + options.replace("alpha", " from α = ").replace("lambda", ", λ = ")
