"""The page of a norm comparison: what report.write renders, from its runs, table and findings."""

import time

from ..runs import measures
from ..runs.folder import RunFolder
from ..runs.status import FINISHED
from . import findings, provenance, rates, report, weights

CAPTIONS = {  # {reference}: the method that the others are held against
    "loss_comparison": (
        "Loss on hidden patches after each epoch: means over seeds, bands their range; lower is better. "
        "Validation masks are the same for all methods. Flat colour paints every hidden patch in the mean colour "
        "of the visible ones: a method near it has learned little."
    ),
    "paired_differences": (
        "Final loss minus that of {reference} with the same seed, which has the same initial weights, crops and "
        "masks: right of the line is higher, left is lower. An interval that does not touch the line excludes 0."
    ),
    "rate_curve": (
        "Validation loss that methods ended with over their learning rates: means over all seeds, bars their 95 % intervals. "
        "Ringed: the rate chosen, with which all else on this page was made. A method that diverges at a rate has lost there. An "
        "arrow at the upper edge, with its number: far above the others."
    ),
    "difference_over_images": (
        "Final loss minus that of {reference} with the same seed over the number of training images: means, seeds, 95 % "
        "intervals; crossed, where all its runs diverged. Below the line is better than {reference}. Whether a method helps on few "
        "images and hurts on many is not seen from where its line crosses 0, but from the interval of what changes, above."
    ),
    "timing_comparison": (
        "Mean training time per epoch, without validation, and its ratio to {reference}. Dots are single runs. "
        "Other work on the same machine is included."
    ),
    "alpha_dynamics": (
        "The factor α in front of x over epochs: every norm layer (encoder blue, decoder orange, deeper layers "
        "darker), their mean (black) and range (grey); below or beside it the share of layers whose α is at a "
        "bound of its range, where it does not adapt."
    ),
    "flat_activations": (
        "Share of what a norm layer reads, of masked validation images, at which its function is flat: the derivative is below a "
        "tenth of the one at 0, so that hardly a gradient comes through. Other than α at a bound, which is of "
        "AdaptiveDynamicTanh alone."
    ),
    "evaluation_comparison": (
        "Top-1 accuracy of the encoders. Filled: pre-trained; open: the same network from random weights, by the "
        "same recipe. The distance between the two is what pre-training added."
    ),
    "accuracy_over_depth": (
        "k-NN accuracy of every block's output; output is the last one's behind the encoder's norm, which evaluations read. Bands "
        "are 95 % intervals over seeds; dotted, the same networks from random weights. Pixels want the last blocks for "
        "themselves where the best block is an earlier one."
    ),
    "feature_maps": (
        "What encoders make of whole validation images, first seed of each method. Attention: what the CLS token attends to in "
        "the last block, mean over heads, brightest at each image's largest value. Components: the first three principal "
        "components of the patch tokens of these images as red, green and blue. Which colour is chance; patches of one colour "
        "have alike tokens, so look where the borders are."
    ),
    "reconstruction_comparison": (
        "Validation images, what the model saw of them, and its reconstruction, for the first seed of each "
        "method. A composite has the visible patches as they are."
    ),
}


PLOT_CAPTION = "A line is a run. Click a method to hide it, double-click it to show it alone, drag to zoom."


def page(root, found, evaluations, table, known, *, notices, unequal, drawn, pictures, plot, tried):
    """The page as report.write takes it.

    found, evaluations: runs of comparison.load; table: a row for each of found; known: findings.describe; notices:
    sentences; unequal: whether the runs differ in more than their method; drawn: names of figures; pictures: {method:
    arrays}; plot: plots.losses, or a sentence on why there is none; tried: all runs, at other rates and numbers of images too.
    """
    others = len(tried) - len(found) - len(evaluations)
    own_rate = " and its learning rate" if known.get("rates") else ""
    shown = report.reconstructions(pictures)
    if shown:
        shown["caption"] = (
            "Drag the slider from what the model saw, over what it made of that (visible patches as they are), to the "
            "original. First seed of each method, same images and masks."
        )
    return {
        "title": f"Norm comparison: {', '.join(dict.fromkeys(run['method'] for run in found))}",
        "about": f"{len(found)} pre-training run{'s' * (len(found) != 1)} of a masked autoencoder"
        + (f" and {len(evaluations)} evaluations" if evaluations else "")
        + (f", and {others} more, at other rates, of seeds that choose or with fewer images" if others else "")
        + ("." if unequal else f". Pre-training runs of one seed differ in the normalisation layer{own_rate} alone."),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "findings": known["sentences"],
        "notes": notices,
        "problems": [
            {"run": name_of(folder, root), "link": report.link(folder, root), "status": status, "text": text}
            for folder, status, text in provenance.problems(root, tried)
        ],
        "tables": [
            methods_table(table, known),
            *differences_table(known),
            *rates_table(known),
            *speed_table(known),
            *lens_table(known),
        ],
        "plot": None
        if isinstance(plot, str)
        else {
            "title": "Losses",
            "data": plot,
            "caption": PLOT_CAPTION,
        },
        "plot_missing": plot if isinstance(plot, str) else None,
        "figures": report.figures(root, captions(drawn, known["reference"] or findings.REFERENCE)),
        "pictures": shown,
        "facts": provenance.facts(found),
        "settings": provenance.settings(found, [run["method"] for run in found]),
        "commands": provenance.typed(root),
        "runs": [
            {"title": title, "runs": [entry(run, root) for run in those]}
            for title, those in (("pre-training", found), ("evaluations", evaluations))
            if those
        ],
        "weights": weights.section([(run["method"], run) for run in found], tried, root),
    }


def captions(drawn, reference):
    """{name of a drawn figure: its caption}, in the order of CAPTIONS."""
    of = report.in_order(drawn, CAPTIONS)
    return {name: CAPTIONS.get(key, "").format(reference=reference) for name, key in of.items()}


def name_of(folder, root):
    """A run's folder as seen from the comparison's."""
    try:
        return folder.relative_to(root).as_posix()
    except ValueError:
        return str(folder)


def entry(run, root):
    """A run as the page lists it: links into its folder, and the command that repeats it."""
    folder = RunFolder(run["path"])
    files = (folder.loss_curve, folder.log, folder.summary, folder.config, folder.output)
    return {
        "name": name_of(run["path"], root),
        "link": report.link(run["path"], root),
        "status": provenance.status(run),
        "command": provenance.command(run),
        "more": [{"name": file.name, "link": report.link(file, root)} for file in files if file.exists()],
    }


def methods_table(table, known):
    """A row a method: means of finished runs with their intervals, then the baselines."""
    shown = measures.for_reading(measures.COMPARED | measures.SHOWN)
    columns = [name for name in shown if name in table and table[name].notna().any()]
    rows = []
    for method in dict.fromkeys(table["model"]):
        means = known["means"].get(method, {})
        cells = [spelled(means[name]) if name in means else least(table, method, name) for name in columns]
        of = int((table["model"] == method).sum())
        n = int(((table["model"] == method) & (table["status"] == FINISHED)).sum())
        rows.append([method, str(n) if n == of else f"{n} of {of}", *cells])
    for name in measures.BASELINES:
        if name in table and table[name].notna().any():
            cells = [findings.number(table[name].mean(), 0.005) if c == "val_mse" else "" for c in columns]
            rows.append([f"baseline: {measures.MEASURES[name].label}", "", *cells])
    some = any(d["low"] is not None for of in known["means"].values() for d in of.values())
    means = "Means over the n finished seeds at the last epoch, below them their 95 % intervals (Student's t)."
    alone = "Values at the last epoch of finished runs. No intervals: they need 3 seeds or more."
    caption = f"{means if some else alone} {directions(columns)}"
    return {
        "title": "Methods",
        "columns": ["method", "n", *(measures.MEASURES[name].title for name in columns)],
        "rows": rows,
        "caption": caption,
    }


def directions(columns):
    """Which of the columns are better when they are lower, and which when they are higher, as a sentence."""
    titles = {
        way: [measures.MEASURES[name].label for name in columns if measures.MEASURES[name].better == way]
        for way in ("lower", "higher")
    }
    return " ".join(f"{way.title()} is better: {', '.join(names)}." for way, names in titles.items() if names)


def least(table, method, name):
    """What the table says where there are no means over finished runs."""
    from .. import stats

    rows = table[(table["model"] == method) & (table["status"] == FINISHED)][name].dropna()
    return spelled(stats.t_interval(rows)) if len(rows) else "–"


def spelled(known):
    """A mean, and its interval on a line below."""
    if known["low"] is None:
        return findings.number(known["mean"], abs(known["mean"]) / 200)
    return findings.with_interval(known).replace(" (", "\n").replace(")", "")


def differences_table(known):
    """Paired differences to the reference, a row a method; no table without one."""
    columns = {name: of for name, of in known["differences"].items() if any(d["n"] for d in of.values())}
    if not columns:
        return []
    names = list(dict.fromkeys(method for of in columns.values() for method in of))
    rows = [
        [m, str(max(of[m]["n"] for of in columns.values())), *(signed(of[m]) for of in columns.values())] for m in names
    ]
    caption = (
        f"Method minus {known['reference']} of the same seed, mean over the n seeds that both have finished; below it "
        "the 95 % interval (Student's t) where n is 3 or more."
    )
    labels = [measures.MEASURES[name].title for name in columns]
    return [
        {
            "title": f"Differences to {known['reference']}, paired by seed",
            "columns": ["method", "n", *labels],
            "rows": rows,
            "caption": caption,
        }
    ]


def rates_table(known):
    """The rate of every method, its differences there and at the common rate, and the losses at all; no table without rates."""
    of = known.get("rates")
    if not of:
        return []
    all_rates = sorted({rate for m in of["methods"].values() for rate in m["curve"]}, key=float)
    rows = []
    for method, m in of["methods"].items():
        chosen = f"{m['chosen']:g}" if m["chosen"] is not None else "all diverged" if m["lost"] else "not yet"
        differences = [of_rates(of[name], method) for name in ("at_best", "at_common")]
        rows.append([method, chosen, *differences, *(at_rate(m["curve"].get(rate)) for rate in all_rates)])
    common = "the reference's" if of["common"] is None else f"{of['common']:g}"
    columns = ["method", "best rate", "difference, each at its best", f"difference, all at {common}"]
    caption = (
        f"Differences of the final validation loss to {of['reference'] or 'the reference'}, paired by seed; then the losses at "
        f"every rate, means over all seeds with 95 % intervals. {of['sentences'][-1]}"
    )
    return [{"title": "Learning rates", "columns": columns + all_rates, "rows": rows, "caption": caption}]


def of_rates(known, method):
    """A method's rates.difference; empty for the reference."""
    if method not in known:
        return ""
    lost = rates.lost(known[method])
    return "\n".join([*([signed(known[method])] if known[method]["n"] or not lost else []), *lost])


def at_rate(known):
    """The losses of a method at a rate, and how many of its runs diverged there."""
    if known is None:
        return "–"
    lost = f"{known['diverged']} diverged" if known["diverged"] else ""
    return "\n".join(part for part in (spelled(known) if known["n"] else "", lost) if part)


def signed(difference):
    """A paired difference with its sign, its interval on a line below; "–" without seeds in common."""
    d = difference
    if not d["n"]:
        return "–"
    if d["low"] is None:
        return f"{d['mean']:+.{decimals(abs(d['mean']) / 50)}f}"
    places = decimals((d["high"] - d["low"]) / 2)
    return f"{d['mean']:+.{places}f}\n{d['low']:+.{places}f} to {d['high']:+.{places}f}"


def decimals(uncertainty):
    """Decimals that findings.number keeps; 3 where every seed gave the same."""
    if not uncertainty:
        return 3
    return len(findings.number(0.0, uncertainty).partition(".")[2])


def speed_table(known):
    """Epochs and seconds to the reference's final validation loss; no table without a reference."""
    rows = [
        [
            method,
            f"{s['reached']} of {s['n']}",
            *(spelled(s[unit]) if s[unit] else "–" for unit in ("epochs", "seconds")),
        ]
        for method, s in known["convergence"].items()
        if s["n"]
    ]
    if not rows:
        return []
    caption = (
        f"First epoch with a validation loss no higher than the one that {known['reference']} with the same seed ended "
        "with, and the training time until then: means over seeds, below them their 95 % intervals; none where a seed "
        "never got there."
    )
    columns = ["method", "seeds that got there", "epochs", "seconds"]
    return [
        {
            "title": f"Time to the final loss of {known['reference']}",
            "columns": columns,
            "rows": rows,
            "caption": caption,
        }
    ]


def lens_table(known):
    """The share of layers at a bound of α over time, for every AdaptiveDynamicTanh; no table without one."""
    seen = {method: lens for method, lens in known["adaptive"].items() if lens}
    if not seen:
        return []
    longest = max((lens["share_over_time"] for lens in seen.values()), key=len)
    epochs = sorted({round(i * (len(longest) - 1) / 5) for i in range(6)})
    rows = [
        [m, *(f"{100 * lens['share_over_time'][e]:.0f} %" if e < len(lens["share_over_time"]) else "" for e in epochs)]
        for m, lens in seen.items()
    ]
    caption = "Share of norm layers whose α is at a bound of its range, means over seeds."
    return [
        {
            "title": "Saturation over time",
            "columns": ["method", *(f"epoch {e}" for e in epochs)],
            "rows": rows,
            "caption": caption,
        }
    ]
