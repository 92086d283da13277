"""The norm comparison's table and figures, from the folders of its runs."""

from functools import partial
from pathlib import Path

from .. import files, surroundings
from ..errors import InputError
from ..runs import contents, measures
from ..runs.folder import RunFolder
from ..runs.reading import evaluation_column, evaluation_result, is_evaluation, load_runs
from ..runs.record import summarize_log
from ..runs.status import FINISHED
from ..settings import identities, methods
from ..settings.probes import EVALUATIONS
from . import findings
from .rates import place_in_grid
from .swept import OF_RATES, Swept

MEASURES = measures.columns(measures.TABLE)
IF_ASKED_FOR = tuple(
    name
    for name in MEASURES
    if measures.MEASURES[name].kind in (measures.ACCURACY, measures.FEATURES) or name in measures.EVALUATION_RESULTS
)
UNFINISHED = "unfinished"


def write(root, reference=findings.REFERENCE, select_seeds=""):
    """Write table and figures of all runs below a folder into it, and print the table.

    reference: the method that the others are held against, as typed; select_seeds: see swept.Swept. Raises InputError if there
    is no run with a finished epoch, or none of the reference that was asked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"--output_dir {root}: no such folder. Run the comparison first.")
    everything, damaged = load(root)
    found, repeated = without_repeats(run for run in everything if not is_evaluation(run))
    evaluations = [run for run in everything if is_evaluation(run)]
    if not any(run["log"] or run["summary"] for run in found):
        for problem in damaged:
            print(f"note: {problem}")
        raise InputError(f"--output_dir {root}: no run with a finished epoch in it. Run the comparison first.")

    reference = known_reference(found, reference)
    grid, tried = Swept(found, reference, select_seeds), [*found, *evaluations]
    found, evaluations = grid.main, grid.evaluations(evaluations)
    from . import comparison_report, figures, report

    surroundings.let_tables_hold_any_name()
    table = tabulate(found, evaluations)
    with_seeds = add_means(table)
    with files.atomic_write(root / "comparison_table.csv") as f:
        f.write(with_seeds.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace"))

    for run, (_, summary) in zip(found, table.iterrows()):
        folder = RunFolder(run["path"])
        if run["log"] and not (run["summary"] and folder.loss_curve.exists()):  # one that has ended has drawn it itself
            figures.save(figures.loss_curve(run["log"], summary), folder.loss_curve)
    logs, pictures = stack(found, "log"), load_pictures(found)
    known = findings.describe(grid.compared(), table, reference)
    known |= grid.known()
    known |= {"sentences": [*known["sentences"], *grid.sentences()], "notes": [*known["notes"], *grid.notes()]}
    files.write_json(root / "comparison_statistics.json", known)
    draw = drawings(found, evaluations, table, known, pictures) | grid.drawings(reference)
    figures.save_all({root / f"{name}.png": figure for name, figure in draw.items()})

    print(render(table))
    if scored(evaluations, table):
        print(render_evaluations(table))
    print("\n".join(["", *known["sentences"]]))
    unfair = list(dict.fromkeys(text for group in grid.alike() for text in unequal_settings(group)))
    notices = [*known["notes"], *damaged, *repeated, *grid.notices, *unfair, *notices_on(found, evaluations, table)]
    for notice in notices:
        print(f"note: {notice}")
    plot, unequal = report.plot("losses", logs, table), bool(unfair)
    shown = {"notices": notices, "unequal": unequal, "drawn": draw, "pictures": pictures, "plot": plot, "tried": tried}
    report.write(root / "report.html", comparison_report.page(root, found, evaluations, table, known, **shown))
    print(f"written to {root}: report.html, comparison_table.csv, comparison_statistics.json, {', '.join(draw)}")


def known_reference(found, typed):
    """The method that is typed, spelled. Raises InputError if it is none, or, but for the default, if no run is of it."""
    reference = methods.spelled(typed, "--reference")
    names = list(dict.fromkeys(run["method"] for run in found))
    if reference not in (*names, findings.REFERENCE):
        raise InputError(f"--reference {typed}: no run is of {reference}. There are {', '.join(names)}.")
    return reference


def drawings(found, evaluations, table, known, pictures):
    """The figures of a comparison, {name: function that draws it}. known: of findings.describe."""
    from . import comparison_figures, representation_figures

    logs, alphas, draw = stack(found, "log"), stack(found, "norm_alpha"), {}
    if len(logs):
        draw["loss_comparison"] = partial(comparison_figures.loss_comparison, logs, table)
        draw["timing_comparison"] = partial(comparison_figures.timing_comparison, table, known["reference"])
    paired = {name: known["differences"].get(name, {}) for name in ("val_mse", "final_loss")}
    if any(difference["n"] for of in paired.values() for difference in of.values()):
        draw["paired_differences"] = partial(comparison_figures.paired_differences, paired, known["reference"])
    if len(alphas):
        draw["alpha_dynamics"] = partial(comparison_figures.alpha_dynamics, alphas)
    layers = stack(found, "norm_layers")
    if "flat" in layers and layers["flat"].notna().any():
        draw["flat_activations"] = partial(comparison_figures.flat_activations, layers.dropna(subset="flat"))
    if scored(evaluations, table):
        draw["evaluation_comparison"] = partial(comparison_figures.evaluation_comparison, table, chance(evaluations))
    if pictures:
        draw["reconstruction_comparison"] = partial(comparison_figures.reconstruction_comparison, pictures)
    by_depth = tabulate_layers(evaluations)
    if len(by_depth):
        draw["accuracy_over_depth"] = partial(representation_figures.accuracy_over_depth, by_depth, chance(evaluations))
    looked_at = {method: arrays for method, arrays in pictures.items() if "attention" in arrays}
    if looked_at:
        draw["feature_maps"] = partial(representation_figures.feature_maps, looked_at)
    return draw


def scored(evaluations, table):
    """Whether an evaluation of a finished pre-training has an accuracy."""
    known = table[table["status"] == FINISHED].filter(measures.EVALUATION_ACCURACIES)
    return bool(evaluations) and known.notna().any(axis=None)


def load(root):
    """(runs, problems) of reading.load_runs; runs have their "method" and are in order of methods and seeds."""
    everything, problems = load_runs(root)
    methods.name_runs(everything)
    for run in list(everything):
        place_in_grid(run, root)
        try:
            if run["size"] is not None:
                contents.check_sizes(RunFolder(run["path"]).config, run["config"])
        except files.Damaged as error:
            problems.append(f"{error} Left out.")
            everything.remove(run)
    order = methods.in_order({run["method"] for run in everything})
    place = lambda run: (order.index(run["method"]), run["config"]["identity"]["seed"])
    return sorted(everything, key=place), problems


def without_repeats(found):
    """(one run for each method and seed, rate and number of images, a sentence for each other one).

    The one in a folder of its seed's name, as run_comparison.sh has them, before others, then one that has ended.
    """
    found, kept, repeated = list(found), {}, []
    for run in sorted(found, key=lambda run: (run["path"].name != f"seed{_seed(run)}", not run["summary"])):
        mine = kept.setdefault((run["method"], _seed(run), run["rate"], run["size"]), run)
        if mine is not run:
            other = identities.difference(mine["config"]["identity"], run["config"]["identity"])
            unlike = f", with {other[0]} {other[2]} in place of {other[1]}" if other else ""
            repeated.append(
                f"{run['path']}: {run['method']} with seed {_seed(run)} again, beside {mine['path']}{unlike}; left out."
            )
    return [run for run in found if any(run is mine for mine in kept.values())], repeated


def _seed(run):
    return run["config"]["identity"]["seed"]


def notices_on(found, evaluations, table):
    """Sentences on runs that are no fair comparison or have not ended."""
    same = {}
    for run in evaluations:
        same.setdefault(evaluation_column(run).removeprefix("untrained_"), []).append(run)
    yield from (notice for group in same.values() for notice in unequal_settings(group))
    yield from unended(table)
    yield from unended(tabulate(evaluations))
    together = max((run["config"].get("runs_at_a_time", 1) for run in found), default=1)
    if together > 1:
        yield f"Up to {together} runs at a time shared the machine, which makes them slower; --jobs 1 times each alone."


def tabulate(found, evaluations=()):
    """DataFrame with a row a run: the columns of summary.json, from the log alone for a run that has not ended.

    Accuracies of the finished evaluations below a run's folder are columns of its row, see
    measures.EVALUATION_RESULTS.
    """
    import pandas as pd

    scores = {}
    for run in evaluations:
        if (result := evaluation_result(run)) is not None:
            scores.setdefault(run.get("of", run["path"].parent), {})[evaluation_column(run)] = result
    rows = []
    for run in found:
        identity = run["config"]["identity"]
        unended = {"seed": identity["seed"], "status": UNFINISHED}
        summary = run["summary"] or {**unended, **summarize_log(run["log"])}
        rows.append(
            {
                "model": run["method"],
                **{k: v for k, v in summary.items() if k != "model"},
                **scores.get(run["path"], {}),
                "path": str(run["path"]),
            }
        )
    columns = dict.fromkeys(["model", "seed", "status", *MEASURES, *(name for row in rows for name in row)])
    table = pd.DataFrame(rows, columns=list(columns))
    table[list(MEASURES)] = table[list(MEASURES)].apply(pd.to_numeric)
    table = table.astype({"total_epochs": "Int64", "min_loss_epoch": "Int64"})  # integers, though some are missing
    return table.drop(columns=[name for name in IF_ASKED_FOR if table[name].isna().all()])


def add_means(table):
    """The table with two more rows, seed "mean" and "std" (n - 1), for every method that has several finished seeds."""
    import pandas as pd

    columns = [name for name in MEASURES if name in table]
    extra = []
    for method, rows in table[table["status"] == FINISHED].groupby("model", sort=False):
        if len(rows) > 1:
            for statistic in ("mean", "std"):
                values = getattr(rows[columns], statistic)()
                extra.append({"model": method, "seed": statistic, "status": f"n = {len(rows)}", **values})
    return pd.concat([table.astype(object), pd.DataFrame(extra, dtype=object)]) if extra else table


def stack(found, part):
    """One DataFrame of a part ("log", "norm_alpha") of all runs, with columns model and seed."""
    import pandas as pd

    rows = [
        {"model": run["method"], "seed": run["config"]["identity"]["seed"], **row} for run in found for row in run[part]
    ]
    return pd.DataFrame(rows)


def tabulate_layers(evaluations):
    """DataFrame with a row per layer of every k-NN of all blocks: method, seed, evaluation, untrained, layer, accuracy."""
    import pandas as pd

    rows = []
    for run in evaluations:
        column = evaluation_column(run)
        known = {"method": run["method"], "seed": _seed(run), "untrained": column.startswith("untrained_")}
        known["evaluation"] = column.removeprefix("untrained_").removesuffix("_accuracy")
        found = contents.usable(contents.read_by_layer, RunFolder(run["path"]).by_layer)
        rows += [{**known, **row} for row in found or ()]
    return pd.DataFrame(rows)


def load_pictures(found):
    """{method: arrays of reconstructions.npz} of each method's first seed; methods of other images are left out."""
    import numpy as np

    pictures = {}
    for run in found:
        method, file = run["method"], RunFolder(run["path"]).reconstructions
        if method in pictures or not file.exists():
            continue
        arrays = contents.usable(contents.read_pictures, file)
        if arrays is None:
            continue
        first = next(iter(pictures.values()), arrays)
        if all(np.array_equal(first[name], arrays[name]) for name in ("image", "mask")):
            pictures[method] = arrays
        else:
            print(f"note: {file}: other images or masks than the rest, left out of the reconstructions.")
    return pictures


def render(table):
    """The table as text: a line a method, mean ± std over seeds where there are several, then the baselines."""
    import pandas as pd

    lines = []
    for method, rows in table.groupby("model", sort=False):
        rows = rows[rows["status"] == FINISHED] if (rows["status"] == FINISHED).any() else rows
        cells = {"method": method, "n": len(rows), "status": ", ".join(rows["status"].unique())}
        for name in (name for name in measures.for_reading(measures.PRINTED) if name in table):
            mean, std = rows[name].mean(), rows[name].std()
            cells[name] = "" if pd.isna(mean) else f"{mean:.4g}" + (f" ± {std:.2g}" if len(rows) > 1 else "")
        lines.append(cells)
    text = pd.DataFrame(lines).to_string(index=False)
    for name in measures.BASELINES:
        value = table[name].mean()
        if not pd.isna(value):
            text += f"\nbaseline: {measures.MEASURES[name].label} of the visible patches, val_mse {value:.4g}"
    return text


def render_evaluations(table):
    """Top-1 accuracies as text: a line a method and task, pre-trained, untrained, and their difference, paired by seed.

    Of encoders whose pre-training is finished.
    """
    import pandas as pd

    from .. import stats

    lines = []
    for method, rows in table[table["status"] == FINISHED].groupby("model", sort=False):
        for task in EVALUATIONS:
            pair = rows.filter([f"{task}_accuracy", f"untrained_{task}_accuracy"])
            cells = {"method": method, "task": task}
            for name in pair:
                values = pair[name].dropna()
                std = f" ± {values.std():.1f}" if len(values) > 1 else ""
                cells["untrained" if name.startswith("untrained") else "pre-trained"] = (
                    f"{values.mean():.1f} %{std}" if len(values) else ""
                )
            if pair.shape[1] == 2 and len(difference := (pair.iloc[:, 0] - pair.iloc[:, 1]).dropna()):
                known = stats.t_interval(difference)
                interval = "" if known["low"] is None else f" (95 %: {known['low']:+.1f} to {known['high']:+.1f})"
                cells["difference"] = f"{known['mean']:+.1f}{interval}, n = {known['n']}"
            if len(cells) > 2:
                lines.append(cells)
    heading = "\ntop-1 accuracy of evaluations; untrained: the same network and recipe from random weights\n"
    return heading + pd.DataFrame(lines).fillna("").to_string(index=False)


def chance(evaluations):
    """Percent that guessing gets right, None where the evaluations are of different numbers of classes."""
    classes = {run["config"]["data"]["classes"] for run in evaluations}
    return 100 / classes.pop() if len(classes) == 1 else None


def unequal_settings(found):
    """Sentences on settings, other than norm and seed, that are not the same in all runs."""
    own = {"norm", "seed", *methods.OPTIONS}
    own |= {"init"} if all(map(is_evaluation, found)) else set()
    own |= set(OF_RATES) if any(run["rate"] is not None and not is_evaluation(run) for run in found) else set()
    for name in dict.fromkeys(name for run in found for name in run["config"]["identity"]):
        settings = [run["config"]["identity"] for run in found]
        values = {str(known.get(name, identities.before(name, known))) for known in settings}
        if name not in own and len(values) > 1:
            yield f"The runs differ in {name} ({', '.join(sorted(values))}), so this is not a fair comparison."


def unended(table):
    """Sentences on runs that diverged or have not ended."""
    for _, row in table[table["status"] != FINISHED].iterrows():
        yield f"{row['path']}: {row['status']} after {row['total_epochs']:.0f} epochs."
