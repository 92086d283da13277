"""The page of a sweep: what report.write renders, from its trajectories, table and gap statistics."""

import math
import time
from pathlib import Path

from ..runs import contents, measures
from ..runs.folder import RunFolder
from ..runs.reading import is_evaluation
from ..runs.status import FINISHED
from ..settings.spelling import spell
from . import gap, gap_drawings, provenance, report, weights
from .comparison_report import entry, name_of

CAPTIONS = {
    "tube_scatter_signed_alpha": (
        "Accuracy against validation MSE, a point an epoch of a run. Hue is α (red triangles negative, white 0, "
        "blue positive), brightness the epoch and, where there are several, the learning rate. Grey boxes are the "
        "ranges of accuracy in bins of equal MSE; Γ is the sum of their heights. Points above each other "
        "reconstruct equally well and know unequally much."
    ),
    "negative_vs_positive_comparison": (
        "The same points, negative α beside positive, in the same bins. α = 0 is in both pictures and in neither Γ."
    ),
    "alpha_vs_final_metrics": (
        "MSE and accuracy of the last epoch over α; bars are the standard deviation over seeds. Diverged runs are "
        "crosses at the bottom."
    ),
    "matched_mse": (
        "Accuracy at equal reconstruction over α: what each run read when its validation MSE first fell to the median of "
        "the range that all of them pass. Means over seeds with their 95 % intervals. A flat line "
        "says that α moved what the encoders know no more than it moved how well they reconstruct."
    ),
    "matched_differences": (
        "What α moves at equal reconstruction, by each read-out: accuracy minus that of the α nearest 0, over the range of MSE "
        "that both reach, from the epochs in which all of these were measured. Means over seeds with their 95 % intervals, "
        "paired by seed. Filled: established, the intervals of all α of this line at once do not hold 0. Without the joint "
        "classifier, which α = 0 does not train."
    ),
    "labelled_classes": (
        "Accuracy of the last epoch over α: of the validation images whose classes training had labels of (--label_map), and of "
        "the others, all classes told apart by the same probe. Where both fall α took more than those labels. Means over seeds "
        "with their 95 % intervals; dotted, the untrained encoder."
    ),
    "rank_over_alpha": (
        "Effective rank of the features of validation images (RankMe: exp of the entropy of the singular values' shares) over "
        "α: how many directions the encoder uses. Compare it within one norm alone."
    ),
    "bands_over_alpha": (
        "Validation MSE by band of the principal components of the training images' patches: those with the first 90 % of the "
        "pixels' variance, the next 9 % and the last 1 %; they add up to the MSE. What tells classes apart is often in the "
        "bands of little variance."
    ),
    "decoder_over_alpha": (
        "Validation MSE over α: with the decoder that was trained together with the encoder, and with a new one trained on the "
        "frozen encoder. Where the second is no higher the encoder kept what pixels need; what it is higher by had been agreed "
        "on with the old decoder alone."
    ),
    "evaluations_over_alpha": "Top-1 accuracy of evaluations of the encoders over α; dotted, encoders with random weights.",
    "similarity": (
        "Linear CKA of the features of the same validation images between runs of two α, different seeds. On the diagonal two "
        "seeds of one α: as alike as training the same twice makes them. An entry below its row's diagonal says that α changed "
        "the features by more than chance does."
    ),
    "mse_over_epochs": ("Validation MSE over epochs, means over seeds; the line of α = 0 is plain MAE."),
    "accuracy_over_epochs": (
        "Accuracy over epochs, means over seeds. An accuracy below the untrained encoder's says that the classes "
        "are harder to read than before any training."
    ),
}
PICTURES = 3  # as many alphas have their reconstructions shown


def page(log_dir, output_dir, found, runs, table, described, *, drawn, notes, plot):
    """The page as report.write takes it.

    found: trajectories of trajectories.read_trajectories; runs: of reading.load_runs below log_dir; table:
    gap.tabulate; described: {column: gap.describe with "probe"}; drawn: names of figures; notes: sentences; plot:
    plots.tube, or a sentence on why there is none.
    """
    everything = {str(run["path"]): run for run in runs if not is_evaluation(run)}
    known = [everything[run["run"]] for run in found if run["run"] in everything]
    names = [f"α {spell(run['config']['identity'].get('alpha', 0.0))}" for run in known]
    ended = sorted({run["alpha"] for run in found})
    shown = report.reconstructions(load_pictures(found))
    if shown:
        shown["caption"] = (
            "Drag the slider from what the model saw, over what it made of that (visible patches as they are), to the "
            "original. The most negative α, the one nearest 0 and the largest, of one norm, rate and seed."
        )
    return {
        "title": f"Reconstruction gap: {Path(log_dir).name}",
        "about": f"{len(found)} run{'s' * (len(found) != 1)} over {len(ended)} values of α from {spell(ended[0])} to "
        f"{spell(ended[-1])}; loss = reconstruction + α × classification.",
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "findings": [
            text
            for statistics in described.values()
            for text in (
                finding(statistics),
                *gap.sentences(statistics),
            )
        ],
        "notes": notes,
        "problems": problems(log_dir, output_dir, found, known),
        "tables": [final_table(table)],
        "plot": None if isinstance(plot, str) else {"title": "The tube", "data": plot, "caption": plot_caption(plot)},
        "plot_missing": plot if isinstance(plot, str) else None,
        "figures": report.figures(output_dir, captions(drawn)),
        "pictures": shown,
        "facts": provenance.facts(known),
        "settings": provenance.settings(known, names),
        "commands": provenance.typed(log_dir),
        "runs": [{"title": "runs", "runs": [listed(run, everything, log_dir, output_dir) for run in found]}],
        "weights": weights.section(nearest_zero(known), runs, output_dir),
    }


def nearest_zero(runs):
    """[(norm, run)] of runs, those first whose α is nearest 0, which is plain MAE."""
    ordered = sorted(runs, key=lambda run: abs(run["config"]["identity"].get("alpha", 0.0)))
    return [(run["config"]["identity"]["norm"], run) for run in ordered]


def plot_caption(plot):
    """What stands above the interactive tube. plot: plots.tube."""
    said = [
        "A point is an epoch of a run; hover over it to see which.",
        "Click an α in the legend to hide it, double-click to show it alone, drag to zoom.",
        *(f"A {symbol} is {norm}." for norm, symbol in plot["symbols"].items()),
    ]
    if plot["every"] > 1:
        said.append(f"One in {plot['every']} epochs is drawn, and the last of every run.")
    return " ".join(said)


def finding(s):
    """What the statistics of one accuracy say, a paragraph. s: gap.describe with "probe"."""
    name = measures.MEASURES[measures.ACCURACIES[s["probe"]]].label
    if s["reconstruction_gap"] is None:
        return f"{name}: there is no gap: {s['note']}"
    pooled, middle = s["reconstruction_gap"], s["reconstruction_gap_5_95"]
    size = f"{s['n_runs']} runs and {s['n_points']} points"
    said = [
        f"{name}: Γ = {pooled:.1f} percentage points over {gap.bins_used(s)}, from {size}.",
        f"With the 5th to 95th percentile of each bin in place of its range: {middle:.1f}.",
    ]
    if s["bin_statistics"]:
        b = max(s["bin_statistics"], key=lambda b: b["acc_spread"])
        said.append(
            f"Its widest bin: {b['n_points']} points with a validation MSE of {b['mse_min']:.3f} to {b['mse_max']:.3f} "
            f"have accuracies from {b['acc_min']:.1f} to {b['acc_max']:.1f} %."
        )
    said.append(f"Each seed's sweep alone: {gap.per_seed(s['over_seeds'])}.")
    said.append(f"Seed noise: {gap.seed_noise(s['noise_floor'])}.")
    if s["untrained"]:
        each = ", ".join(f"{value:.1f} % ({norm})" for norm, value in s["untrained"]["per_norm"].items())
        said.append(f"The untrained encoder has {each}.")
    return " ".join(said)


def captions(drawn):
    """{name of a figure: its caption, with the accuracy that it shows}, in the order of CAPTIONS."""
    found = {}
    for name, key in report.in_order(drawn, CAPTIONS).items():
        column = measures.ACCURACIES.get(name.removeprefix(key or "").removeprefix("_") or "joint")
        shown = f" ({measures.MEASURES[column].label})" if column and key in gap_drawings.OF_AN_ACCURACY else ""
        found[name] = CAPTIONS.get(key, "") + shown
    return found


def problems(log_dir, output_dir, found, known):
    """Runs that diverged, failed or have not ended, also those that left no trajectory."""
    listed = {Path(run["run"]).resolve(): (run["status"], len(run["trajectory"])) for run in found}
    told = [
        (folder, status, text)
        for folder, status, text in provenance.problems(log_dir, known)
        if folder.resolve() not in listed or status != FINISHED
    ]
    seen = {folder.resolve() for folder, _, _ in told}
    for run in found:
        folder = Path(run["run"])
        if run["status"] != FINISHED and folder.resolve() not in seen:
            told.append((folder, run["status"], f"{len(run['trajectory'])} finite epochs"))
    return [
        {"run": name_of(folder, log_dir), "link": report.link(folder, output_dir), "status": status, "text": text}
        for folder, status, text in told
    ]


def listed(run, everything, log_dir, output_dir):
    """A trajectory as the page lists it; of those of other scripts only the folder is known."""
    path = Path(run["run"])
    if run["run"] in everything:
        known = entry(everything[run["run"]], output_dir)
    else:
        known = {"link": report.link(path, output_dir), "command": "", "more": []}
    return {**known, "name": name_of(path, log_dir), "status": run["status"]}


def final_table(table):
    """A row per norm, learning rate and α: means at the last epoch and standard deviations over seeds."""
    columns = [name for name in measures.POINT_COLUMNS if f"{name}_mean" in table]
    titles = [measures.MEASURES[measures.POINT_COLUMNS[name]].title for name in columns]
    rows = []
    for _, row in table.iterrows():
        cells = [spell(row["alpha"]), row["norm"], spell(row["lr"]), ended(row)]
        for name in columns:
            mean, std = row[f"{name}_mean"], row.get(f"{name}_std")
            digits = 4 if name == "mse" else 1
            spread = "" if std is None or math.isnan(std) else f" ± {std:.{digits}f}"
            cells.append("–" if math.isnan(mean) else f"{mean:.{digits}f}{spread}")
        rows.append(cells)
    several = (table["n_seeds"] > 1).any()
    spread = ", mean ± standard deviation over seeds" if several else "; one seed each, so no spread and no interval"
    text = f"Last epoch of finished runs{spread}."
    return {
        "title": "Last epochs",
        "columns": ["α", "norm", "lr", "n", *titles],
        "rows": rows,
        "caption": text,
    }


def ended(row):
    """How many runs of a row of the table finished, and how many did not."""
    others = [
        f"{row[name]} {what}" for name, what in (("n_diverged", "diverged"), ("n_unended", "not ended")) if row[name]
    ]
    return ", ".join([str(row["n_seeds"]), *others])


def load_pictures(found):
    """{name: arrays of reconstructions.npz} of up to PICTURES alphas of one norm, learning rate and seed."""
    import numpy as np

    with_file = [run for run in found if RunFolder(run["run"]).reconstructions.exists()]
    kinds = {}
    for run in with_file:
        kinds.setdefault((run["norm"], run["lr"], run["seed"]), {})[run["alpha"]] = run
    if not kinds:
        return {}
    by_alpha = max(kinds.values(), key=len)
    chosen = dict.fromkeys((min(by_alpha), min(by_alpha, key=abs), max(by_alpha)))
    pictures = {}
    for alpha in sorted(chosen)[:PICTURES]:
        run = by_alpha[alpha]
        arrays = contents.usable(contents.read_pictures, RunFolder(run["run"]).reconstructions)
        if arrays is None:
            continue
        first = next(iter(pictures.values()), arrays)
        if all(np.array_equal(first[name], arrays[name]) for name in ("image", "mask")):
            pictures[f"α {spell(alpha)}, {run['norm']}"] = arrays
    return pictures
