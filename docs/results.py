"""The tables of results.md and of the README, from the tables that the analysis wrote: docs/results/<name>.csv.

python docs/results.py          writes them anew, each in the place of the table that follows <!-- <name> -->
python docs/results.py --check  writes nothing; exits with 1 if a page says something else

docs/results/<name>.csv is the comparison_table.csv of the command that stands on the page; of a sweep <name>_gap.csv is its
gap_table.csv and <name>_matched.csv its matched_table.csv; of a comparison at several rates or sizes <name>_rates.json and
<name>_sizes.json are those parts of its comparison_statistics.json.
"""

import csv
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

from maekit import files, stats
from maekit.analysis import rates as of_rates
from maekit.data.pixels import IMAGENET_STD
from maekit.runs import measures
from maekit.settings import methods

PAGES = ("README.md", "docs/results.md")


@dataclass(frozen=True)
class Column:
    """A column of a table: mean ± standard deviation over seeds of `measure`, a column of the CSV file, times `scale`.

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

    def cell(self, runs, method):
        """Its text for a method. runs: {method: {measure: {seed: value}}}."""
        if self.published is not None:
            return f"{self.published[method]:.{self.decimals}f}" if method in self.published else ""
        values = self._values(runs, method, self.measure)
        if not values or method == self.against:
            return ""
        if not self.against and not self.minus:
            return self._spread(list(values.values()))
        of = self._values(runs, self.against or method, self.minus or self.measure)
        return self.difference(stats.paired(values, of))

    def _values(self, runs, method, measure):
        return {seed: value * self.scale for seed, value in runs[method].get(measure, {}).items()}

    def _spread(self, values):
        mean = f"{statistics.mean(values):.{self.decimals}f}"
        return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{self.decimals}f}"

    def difference(self, known):
        """Text of what stats.paired knows."""
        mean = f"{known['mean']:+.{self.decimals}f}"
        ends = (
            ""
            if known["low"] is None
            else f" ({known['low']:+.{self.decimals}f} to {known['high']:+.{self.decimals}f})"
        )
        return mean + ends


VALIDATION = Column("`val_mse`", "val_mse")
TO_LAYER_NORM = Column("difference to LayerNorm", "val_mse", against="LayerNorm")
PIXELS = 3 / sum(1 / deviation**2 for deviation in IMAGENET_STD)  # of a loss on standardised pixels, in [0, 1]
ADYT = {"LayerNorm": 0.0435, "DynamicTanh": 0.0606, "AdaptiveDynamicTanh-lambda1.96": 0.0450}  # github.com/alim98/adyt
KNN, LINEAR = "knn_accuracy", "linprobe_accuracy"
ACCURACIES = (
    Column("k-NN (%)", KNN, 1),
    Column("minus random weights", KNN, 1, minus=f"untrained_{KNN}"),
    Column("linear probe (%)", LINEAR, 1),
    Column("minus random weights", LINEAR, 1, minus=f"untrained_{LINEAR}"),
)
QUALITY = (Column("PSNR (dB)", "psnr", 2), Column("SSIM", "ssim"))
TABLES = {  # columns, and baselines that stand below them
    "cifar10": ((VALIDATION, TO_LAYER_NORM, QUALITY[0]), measures.BASELINES),
    "cifar10 accuracies": (ACCURACIES, ()),
    "demo": ((Column("training loss", "final_loss"), VALIDATION, TO_LAYER_NORM, *QUALITY), measures.BASELINES),
    "demo in short": ((VALIDATION, TO_LAYER_NORM), ()),
    "fashion_mnist": (
        (
            Column("test error", "val_mse", 4, PIXELS),
            Column("minus DynamicTanh's", "val_mse", 4, PIXELS, against="DynamicTanh"),
            Column("minus DynamicTanh's from α = 2.0", "val_mse", 4, PIXELS, against="DynamicTanh-alpha2.0"),
            Column("published, 60 epochs", "", 4, published=ADYT),
        ),
        (),
    ),
}


OF_FEATURES = ("frozen_accuracy", "knn_accuracy", "frozen_mean_accuracy", "knn_mean_accuracy", "rank_cls", "rank_mean")
LAST_EPOCHS = {  # columns of gap_table.csv: title, decimals
    "mse": ("`val_mse`", 3),
    **{name: (measures.MEASURES[name].title, 1) for name in OF_FEATURES},
}


def read(name):
    """The finished runs of a file, {method: {measure: {seed: value}}}, methods in the order of the table of methods."""
    runs = {}
    with open(KIT / "docs/results" / f"{name.split()[0]}.csv", newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row["status"] == "finished":
                for measure, value in row.items():
                    if re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", value):
                        runs.setdefault(row["model"], {}).setdefault(measure, {})[int(row["seed"])] = float(value)
    return {method: runs[method] for method in methods.in_order(runs)}


def table(name):
    """A table in Markdown: a row a method, then the baselines of the validation loss."""
    (columns, baselines), runs = TABLES[name], read(name)
    lines = [["method", *(column.title for column in columns)], ["---"] * (len(columns) + 1)]
    lines += [[spoken(method), *(column.cell(runs, method) for column in columns)] for method in runs]
    for baseline in baselines:
        (value,) = {
            round(v, 3) for of in runs.values() for v in of[baseline].values()
        }  # that of the data, not of a run
        cells = [f"{value:.3f}" if column is VALIDATION else "" for column in columns]
        lines.append([f"*{measures.MEASURES[baseline].label}*", *cells])
    return _markdown(lines)


def matched_table(name):
    """A row a norm and alpha, a column an accuracy: its difference to alpha 0 at equal MSE, bold where it is established."""
    cells, columns = {}, {}
    for row in files.read_csv(KIT / "docs/results" / f"{name}.csv"):
        columns[row["accuracy"]] = f"{measures.MEASURES[row['accuracy']].label} (points)"
        bold = "**" * row["established"]
        ends = "" if row["low"] is None else f" ({row['low']:+z.1f} to {row['high']:+z.1f})"
        text = "–" if row["left_out"] or row["mean"] is None else f"{bold}{row['mean']:+z.1f}{bold}{ends}"
        cells.setdefault((row["group"], row["alpha"]), {})[row["accuracy"]] = text
    lines = [["norm", "α", *columns.values()], ["---"] * (len(columns) + 2)]
    lines += [[norm, f"{alpha:g}", *(of.get(column, "–") for column in columns)] for (norm, alpha), of in cells.items()]
    return _markdown(lines)


def gap_table(name):
    """A row a norm and alpha of a sweep at one rate, and one of each norm's untrained encoders: mean ± standard deviation over
    seeds of the last epoch's measures."""
    rows = files.read_csv(KIT / "docs/results" / f"{name}.csv")
    shown = {column: of for column, of in LAST_EPOCHS.items() if f"{column}_mean" in rows[0]}
    lines = [["norm", "α", "n", *(title for title, _ in shown.values())], ["---"] * (len(shown) + 3)]
    for norm in methods.in_order({row["norm"] for row in rows}):
        mine = [row for row in rows if row["norm"] == norm]
        lines += [[norm, f"{row['alpha']:g}", str(row["n_seeds"]), *_last(row, shown)] for row in mine]
        untrained = [(row["n_seeds"], cells) for row in mine if any(cells := _last(row, shown, "untrained_"))]
        lines += [[norm, "*untrained*", str(n), *cells] for n, cells in untrained[:1]]  # the same at every alpha
    return _markdown(lines)


def _last(row, shown, of=""):
    """Cells of a row of gap_table.csv; empty where the untrained encoder has no such measure."""
    known = {
        name: (row.get(f"{of}{name}_mean"), row.get(f"{of}{name}_std"), digits) for name, (_, digits) in shown.items()
    }
    return ["" if of and values[0] is None else _mean(*values) for values in known.values()]


def _mean(mean, deviation, decimals):
    if mean is None:
        return "diverged"
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def rates_table(name):
    """A row a method: its best rate, the validation loss at each, what it is from the reference, where it is flat."""
    known = files.read_json(KIT / "docs/results" / f"{name}.json")
    by_method = known["methods"]
    rates = sorted({rate for of in by_method.values() for rate in of["curve"]}, key=float)
    common = "the reference's" if known["common"] is None else f"{known['common']:g}"
    titles = [f"to {known['reference'] or 'the reference'}, each at its best", f"all at {common}", "flat (%)"]
    lines = [["method", *(f"`val_mse` at {float(rate):g}" for rate in rates), *titles]]
    lines.append(["---"] * len(lines[0]))
    for method in methods.in_order(by_method):
        of, best = by_method[method], by_method[method]["chosen"]
        cells = [_at_rate(of["curve"].get(rate), bold=float(rate) == best) for rate in rates]
        cells += [_to_reference(known[at].get(method)) for at in ("at_best", "at_common")]
        lines.append([spoken(method), *cells, "" if of["flat"] is None else f"{100 * of['flat']:.0f}"])
    return _markdown(lines)


def _at_rate(known, bold):
    if known is None or known["mean"] is None:
        return "–" if known is None else "diverged"
    text = f"{known['mean']:.3f}"
    return (f"**{text}**" if bold else text) + (f", {known['diverged']} diverged" if known["diverged"] else "")


def sizes_table(name):
    """A row a method, a column a number of training images: what its validation loss is from the reference's."""
    known = files.read_json(KIT / "docs/results" / f"{name}.json")
    lines = [["method", *(f"{images:,} images" for images in known["images"].values())]]
    lines.append(["---"] * len(lines[0]))
    for method, by_size in known["differences"].items():
        lines.append([spoken(method), *(_to_reference(by_size[size]) for size in known["images"])])
    return _markdown(lines)


def _to_reference(known):
    """A rates.difference; empty for the reference, a dash where there are no runs."""
    if known is None:
        return ""
    return ", ".join([*([] if known["mean"] is None else [VALIDATION.difference(known)]), *of_rates.lost(known)]) or "–"


def _markdown(lines):
    return "".join(re.sub(" +", " ", f"| {' | '.join(cells)} |\n") for cells in lines)


OF_A_SWEEP = {"_matched": matched_table, "_gap": gap_table, "_rates": rates_table, "_sizes": sizes_table}


def spoken(method):
    """A method as a reader has it: DynamicTanh-alpha2.0 is DynamicTanh from α = 2.0."""
    norm, _, options = method.partition("-")
    return norm + options.replace("alpha", " from α = ").replace("lambda", ", λ = ")


def page(text):
    """The text of a page with its tables written anew."""
    for name in re.findall(r"^<!-- (.+) -->$", text, flags=re.MULTILINE):
        before, mark, after = text.partition(f"<!-- {name} -->\n\n")
        rest = re.sub(r"\A(\|.*\n)*", "", after).lstrip("\n")
        of = next((of for ending, of in OF_A_SWEEP.items() if name.endswith(ending)), table)
        text = f"{before}{mark}{of(name)}\n{rest}"  # without the empty line what follows would be a row
    return text


def main(argv):
    stale = False
    for name in PAGES:
        text = (KIT / name).read_text(encoding="utf-8")
        new = page(text)
        stale |= new != text
        if argv != ["--check"]:
            (KIT / name).write_text(new, encoding="utf-8")
        elif new != text:
            print(f"{name}: a table is not what docs/results/ says. Run python docs/results.py.", file=sys.stderr)
    return int(stale and argv == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
