"""Accuracy at equal reconstruction: do encoders of one MSE and different alphas know different things?"""

import numpy as np

from .. import stats
from ..runs.status import DIVERGED
from ..settings import methods
from ..settings.spelling import spell
from .findings import number

TABLE = (  # columns of matched_table.csv
    *("accuracy", "group", "alpha", "reference", "mean", "low", "high", "low_at_once", "high_at_once", "n"),
    *("mse_low", "mse_high", "established", "left_out"),
)
SHARED = 0.2  # of the reference's own range of MSE; an alpha that shares less with it is not compared


def describe(points, column):
    """What is known of one accuracy at equal MSE, {group: dict}, a group a norm, and a learning rate where there are several.

    points: DataFrame of trajectories.tabulate_points, `column` not nan, without diverged runs. Each dict has

    norm, lr, model, decoder: of all its runs.
    reference: alpha 0, or the one nearest it. differences: {alpha: stats.matched to the reference, over the range that both
    reach}, paired by seed, with "at_once" the interval of stats.at_once. left_out: alphas that share less than SHARED of the
    reference's range. at: the median MSE in the range that all runs of the alphas in at_median pass, None if there is none;
    at_median: {alpha: stats.t_interval of the accuracy there}.
    """
    collected = _collect(points, column)
    return {group: {**setting, **_described(runs)} for group, (setting, runs) in collected.items() if len(runs) > 1}


def of_all(points, columns):
    """{column: describe} of several accuracies in epochs in which all of them were measured, and so over the same MSE."""
    together = points[points[list(columns)].notna().all(axis=1) & (points["status"] != DIVERGED)]
    return {column: known for column in columns if (known := describe(together, column))}


def established(difference):
    """Whether it is none that this much data shows by chance: the interval of all comparisons at once does not hold 0."""
    low, high = difference.get("at_once") or (0, 0)
    return low > 0 or high < 0


def _collect(points, column):
    """{group: (setting, {alpha: {seed: (mse, accuracy)}})}."""
    found = {}
    for group, rows, setting in _groups(points):
        runs = {}
        for (alpha, seed), run in rows.groupby(["alpha", "seed"]):
            run = run.sort_values("epoch", kind="stable")
            run = run[run["run"] == run["run"].iloc[0]]  # a copy of a run is no other one
            runs.setdefault(float(alpha), {})[int(seed)] = run["mse"].to_numpy(), run[column].to_numpy()
        found[group] = setting, runs
    return found


def _groups(points):
    """(name, points, setting) of every norm, learning rate, model and decoder; the name has what differs within the norm."""
    for norm in methods.in_order(points["norm"].unique()):
        rows = points[points["norm"] == norm].fillna({"model": "", "decoder": ""})
        parts = list(rows.groupby(["lr", "model", "decoder"], sort=True))
        several = {name: rows[name].nunique() > 1 for name in ("lr", "model", "decoder")}
        for key, part in parts:
            named = [
                f"{name} {spell(v) if name == 'lr' else v or 'unknown'}"
                for (name, more), v in zip(several.items(), key)
                if more
            ]
            yield ", ".join([norm, *named]), part, dict(zip(("norm", "lr", "model", "decoder"), (norm, *key)))


def _reference(runs):
    return min(runs, key=lambda alpha: (abs(alpha), alpha))


def _described(runs):
    reference = _reference(runs)
    enough = SHARED * _width(runs, [reference])
    differences = {spell(a): stats.matched(runs[a], runs[reference]) for a in sorted(runs) if a != reference}
    left_out = [alpha for alpha, d in differences.items() if d["mse_range"] is None or np.ptp(d["mse_range"]) < enough]
    _add_at_once({alpha: d for alpha, d in differences.items() if alpha not in left_out})
    known = {"reference": reference, "differences": differences, "left_out": left_out, "at": None, "at_median": {}}
    kept = _together(runs, reference, enough)
    if len(kept) < 2:
        return known
    low, high = stats.common_range(_losses(runs, kept))
    at = float(np.median([m for mse in _losses(runs, kept) for m in mse if low <= m <= high]))
    there = {alpha: [stats.accuracy_at(*run, at) for run in runs[alpha].values()] for alpha in kept}
    return {**known, "at": at, "at_median": {spell(alpha): stats.t_interval(of) for alpha, of in there.items()}}


def _add_at_once(differences):
    """Give each of {alpha: stats.paired} its interval that holds together with those of all others, None without one."""
    for alpha, known in stats.at_once(
        {alpha: list(d["differences"].values()) for alpha, d in differences.items()}
    ).items():
        differences[alpha]["at_once"] = None if known["low"] is None else [known["low"], known["high"]]


def _compared(known):
    return {alpha: d for alpha, d in known["differences"].items() if alpha not in known["left_out"]}


def _together(runs, reference, enough):
    """The alphas whose runs, with the reference's, all pass a range of MSE of this width.

    The alpha without which the others share most is left out, one after the other, until they do.
    """
    kept = sorted(runs)
    while len(kept) > 1 and not _width(runs, kept) >= max(enough, np.finfo(float).tiny):
        without = {alpha: [other for other in kept if other != alpha] for alpha in kept if alpha != reference}
        kept = without[max(without, key=lambda alpha: (_width(runs, without[alpha]), abs(alpha)))]
    return kept


def _losses(runs, alphas):
    return [mse for alpha in alphas for mse, _ in runs[alpha].values()]


def _width(runs, alphas):
    """Of the range of MSE that all runs of some alphas pass, negative if there is none."""
    losses = _losses(runs, alphas)
    return float(min(mse[0] for mse in losses) - max(min(mse) for mse in losses))


def tabulate(described):
    """Rows of matched_table.csv, a row an accuracy, group and alpha. described: {column: what describe says of it}."""
    return [
        {
            **dict(zip(TABLE, (column, group, alpha, spell(known["reference"])))),
            **{name: d[name] for name in ("mean", "low", "high", "n")},
            **dict(zip(("low_at_once", "high_at_once"), d.get("at_once") or (None, None))),
            **dict(zip(("mse_low", "mse_high"), d["mse_range"] or (None, None))),
            "established": int(established(d)),
            "left_out": int(alpha in known["left_out"]),
        }
        for column, groups in described.items()
        for group, known in groups.items()
        for alpha, d in known["differences"].items()
    ]


def sentence(group, known):
    """Whether encoders of equal reconstruction differ, by how much and from how many seeds, or that this cannot be told."""
    reference = f"alpha {spell(known['reference'])}"
    compared = _compared(known)
    without = f" Alpha {', '.join(known['left_out'])} shares too little of its MSE." if known["left_out"] else ""
    if not compared:
        return f"{group}: no alpha has seeds and enough of its range of MSE in common with {reference}, so nothing is compared."
    d = max(compared.values(), key=lambda d: abs(d["mean"]))
    said = _verdict(
        compared,
        untold=f"at equal MSE accuracies are up to {number(abs(d['mean']), 1)} points from that of {reference}, but "
        f"{_seeds(d['n'])} cannot tell whether the encoders differ",
        none=f"at equal MSE no difference to {reference} is established",
        some=f"at equal MSE encoders differ, in points from {reference}",
    )
    return f"{group}: {said}{without}"


def between(points, column):
    """How far what alpha changes depends on the norm, {"DynamicTanh minus LayerNorm": dict}, of norms whose learning rate, model
    and decoder are the same; the first norm is what others are compared with.

    Each dict has reference, alpha 0 or the one nearest it, and differences: {alpha: stats.paired}, of the differences to the
    reference, one norm's minus the other's, over the range of MSE that all these runs of both norms reach, with "mse_range" and
    "at_once" as in `describe`; without alphas that share less than SHARED of either reference's range.
    """
    found, first_of = {}, {}
    for group, (setting, runs) in _collect(points, column).items():
        first, others = first_of.setdefault(tuple(setting[name] for name in ("lr", "model", "decoder")), (group, runs))
        reference = _reference(runs)
        if group == first or reference != _reference(others):
            continue
        changes = {}
        for alpha in sorted((runs.keys() & others.keys()) - {reference}):
            change = _change_between(runs, others, alpha, reference)
            if change:
                changes[spell(alpha)] = change
        _add_at_once(changes)
        if changes:
            found[f"{setting['norm']} minus {first}"] = {"reference": reference, "differences": changes}
    return found


def _change_between(runs, others, alpha, reference):
    """stats.paired of what alpha changes, with one norm minus with the other, and "mse_range"; None where too little is shared."""
    four = [norm[a] for norm in (runs, others) for a in (alpha, reference)]
    seeds = sorted(set.intersection(*(set(of) for of in four)))
    reach = stats.common_range([of[seed][0] for of in four for seed in seeds]) if seeds else None
    if reach is None or np.ptp(reach) < SHARED * max(_width(norm, [reference]) for norm in (runs, others)):
        return None
    four = [{seed: of[seed] for seed in seeds} for of in four]
    changes = [stats.matched(*pair, within=reach)["differences"] for pair in (four[:2], four[2:])]
    return {"mse_range": list(reach), **stats.paired(*changes)}


def sentence_between(norms, known):
    """Whether alpha changes more with one norm than with another, or that this cannot be told."""
    compared, reference = known["differences"], f"alpha {spell(known['reference'])}"
    said = _verdict(
        compared,
        untold=f"{_seeds(max(d['n'] for d in compared.values()))} cannot tell whether what alpha changes depends on the norm",
        none="that what alpha changes depends on the norm is not established",
        some="what alpha changes depends on the norm, in points",
    )
    return f"{norms}, of the difference to {reference} at equal MSE: {said}"


def _verdict(compared, *, untold, none, some):
    """What {alpha: stats.paired with "at_once"} allow to say: too few seeds, no difference, or the outermost of them."""
    told = {alpha: d for alpha, d in compared.items() if d["at_once"]}
    if not told:
        return f"{untold}; three or more can."
    found = [alpha for alpha, d in told.items() if established(d)]
    how = "95 % intervals" + f" of {len(told)} comparisons at once" * (len(told) > 1)
    few = [alpha for alpha in compared if alpha not in told]
    few = f" Alpha {', '.join(few)} has fewer than 3 seeds in common." * bool(few)
    if not found:
        alpha = max(told, key=lambda alpha: abs(told[alpha]["mean"]))
        return f"{none}; the largest is alpha {alpha}'s, {_spoken(told[alpha])}; {how}.{few}"
    outermost = dict.fromkeys(pick(found, key=lambda a: told[a]["mean"]) for pick in (max, min))
    said = "; ".join(f"alpha {alpha} {_spoken(told[alpha])}" for alpha in outermost)
    rest = [alpha for alpha in told if alpha not in found]
    return f"{some}: {said}; {how}." + f" None is established of alpha {', '.join(rest)}." * bool(rest) + few


def _seeds(n):
    return f"{n} seed{'s' * (n != 1)}"


def _spoken(difference):
    """+2.1 (1.0 to 3.2, MSE 0.412 to 0.602, n = 3), in points."""
    low, high = difference["at_once"]
    half = (high - low) / 2
    mean, low, high = (number(value, max(half, 0.5)) for value in (difference["mean"], low, high))
    over = " to ".join(f"{mse:.3f}" for mse in difference["mse_range"])
    return f"{'+' * (difference['mean'] > 0)}{mean} ({low} to {high}, MSE {over}, n = {difference['n']})"
