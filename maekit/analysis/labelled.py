"""What alpha does to the classes whose labels training had, and to those whose labels it never saw: --label_map."""

from .. import stats
from ..runs import contents
from ..runs.folder import RunFolder
from ..runs.measures import UNTRAINED
from ..runs.status import FINISHED
from ..settings import methods
from ..settings.spelling import spell
from .findings import number

KINDS = ("labelled", "others")


def describe(found, column):
    """Accuracies of the last epoch of either kind of classes, {norm: dict}; {} where no run left classes without a label.

    found: trajectories of trajectories.read_trajectories; column: the accuracy. Each dict has

    classes: {kind: how many}. reference: alpha 0, or the one nearest it. means: {kind: {alpha: stats.t_interval over seeds}}.
    differences: {kind: {alpha: stats.paired to the reference}}. untrained: {kind: mean over seeds}, None if not measured.
    """
    described = {}
    for norm in methods.in_order({run["norm"] for run in found}):
        runs, classes = _read([run for run in found if run["norm"] == norm and run["status"] == FINISHED], column)
        if runs:
            described[norm] = {"classes": classes, **_described(runs)}
    return described


def _read(runs, column):
    """{(alpha, seed): {kind: (accuracy, untrained accuracy or None)}} and {kind: classes}; of runs that differ in nothing else."""
    found, first, classes = {}, None, None
    for run in runs:
        rows = [row for row in by_class(run) if row["images"]]
        kinds = {"labelled": [], "others": []}
        for row in rows:
            kinds["others" if row["label"] is None else "labelled"].append(row)
        if not all(kinds.values()) or any(row.get(column) is None for row in rows):
            continue
        first = first or run
        if any(run[name] != first[name] for name in ("lr", "model", "decoder")):
            continue
        classes = {kind: len(of) for kind, of in kinds.items()}
        columns = (column, UNTRAINED.get(column))
        found[run["alpha"], run["seed"]] = {kind: [_mean(of, name) for name in columns] for kind, of in kinds.items()}
    return found, classes


def by_class(run):
    """Rows of a run's accuracy_by_class.csv, read once, [] of a damaged one, which is said."""
    if "by_class" not in run:
        run["by_class"] = contents.usable(contents.read_by_class, RunFolder(run["run"]).by_class) or []
    return run["by_class"]


def _mean(rows, column):
    """Percent over all images of some classes; None if it was not measured by class."""
    if any(row.get(column) is None for row in rows):
        return None
    return sum(row[column] * row["images"] for row in rows) / sum(row["images"] for row in rows)


def _described(runs):
    alphas = sorted({alpha for alpha, _ in runs})
    reference = min(alphas, key=lambda alpha: (abs(alpha), alpha))
    known = {"reference": reference, "means": {}, "differences": {}, "untrained": {}}
    for kind in KINDS:
        values = {a: {seed: of[kind][0] for (alpha, seed), of in runs.items() if alpha == a} for a in alphas}
        known["means"][kind] = {spell(a): stats.t_interval(list(of.values())) for a, of in values.items()}
        known["differences"][kind] = {
            spell(a): stats.paired(of, values[reference]) for a, of in values.items() if a != reference
        }
        before = [of[kind][1] for of in runs.values()]
        known["untrained"][kind] = None if None in before else sum(before) / len(before)
    return known


def sentence(norm, known):
    """What the outermost alphas do to either kind."""
    alphas = sorted(known["differences"]["labelled"], key=float)
    if not alphas:
        return f"{norm}: one alpha, so nothing is said of labels."
    said = []
    for alpha in dict.fromkeys((alphas[0], alphas[-1])):
        parts = [_spoken(known["differences"][kind][alpha]) for kind in KINDS]
        n = known["differences"]["labelled"][alpha]["n"]
        said.append(f"at alpha {alpha} they are {parts[0]}, the others {parts[1]} (n = {n})")
    return (
        f"{norm}: training had labels of {known['classes']['labelled']} classes and none of {known['classes']['others']}. Against "
        f"alpha {spell(known['reference'])}, in points: {'; '.join(said)}."
    )


def _spoken(difference):
    if difference["mean"] is None:
        return "not comparable, without a seed in common"
    if difference["low"] is None:
        return f"{difference['mean']:+.1f}"
    half = difference["high"] - difference["mean"]
    mean, low, high = (number(difference[name], half) for name in ("mean", "low", "high"))
    return f"{'+' * (difference['mean'] > 0)}{mean} ({low} to {high})"
