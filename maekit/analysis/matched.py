"""Accuracy at equal reconstruction: do encoders of one MSE and different alphas know different things?"""

import numpy as np

from .. import stats
from ..settings import methods
from ..settings.spelling import spell
from .findings import number

TABLE = (  # columns of matched_table.csv
    *("accuracy", "group", "alpha", "reference", "mean", "low", "high", "low_at_once", "high_at_once", "n"),
    *("mse_low", "mse_high", "left_out"),
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
    found = {}
    for group, rows, setting in _groups(points):
        runs = {}
        for (alpha, seed), run in rows.groupby(["alpha", "seed"]):
            run = run.sort_values("epoch", kind="stable")
            run = run[run["run"] == run["run"].iloc[0]]  # a copy of a run is no other one
            runs.setdefault(float(alpha), {})[int(seed)] = run["mse"].to_numpy(), run[column].to_numpy()
        if len(runs) > 1:
            found[group] = {**setting, **_described(runs)}
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


def _described(runs):
    reference = min(runs, key=lambda alpha: (abs(alpha), alpha))
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
    told = {alpha: d for alpha, d in compared.items() if d["at_once"]}
    if not told:
        alpha, d = max(compared.items(), key=lambda item: abs(item[1]["mean"]))
        seeds = f"{d['n']} seed{'s' * (d['n'] != 1)}"
        return (
            f"{group}: at equal MSE accuracies are up to {number(abs(d['mean']), 1)} points from that of {reference}, but {seeds} "
            f"cannot tell whether the encoders differ; three or more can.{without}"
        )
    found, rest, how = _established(told)
    if not found:
        alpha = max(told, key=lambda alpha: abs(told[alpha]["mean"]))
        return (
            f"{group}: at equal MSE no difference to {reference} is established; the largest is alpha {alpha}'s, "
            f"{_spoken(told[alpha])}; {how}.{without}"
        )
    said = "; ".join(f"alpha {alpha} {_spoken(told[alpha])}" for alpha in found)
    return f"{group}: at equal MSE encoders differ, in points from {reference}: {said}; {how}.{rest}{without}"


def between(described):
    """How far what alpha moves differs between norms, {"DynamicTanh minus LayerNorm": {alpha: stats.paired}}.

    described: of `describe`. Paired by seed are the differences to alpha 0, of groups that differ in the norm alone, to that
    of the first norm; with "at_once" as there.
    """
    found = {}
    for group, known in described.items():
        of = [(name, other) for name, other in described.items() if _setting(other) == _setting(known)]
        (first, reference), *_ = of
        pairs = {
            alpha: stats.paired(*(one["differences"][alpha]["differences"] for one in (known, reference)))
            for alpha in _compared(known)
            if group != first and alpha in _compared(reference)
        }
        pairs = {alpha: d for alpha, d in pairs.items() if d["n"]}
        if pairs:
            _add_at_once(pairs)
            found[f"{known['norm']} minus {first}"] = pairs
    return found


def _setting(known):
    """What two groups that are compared have in common."""
    return tuple(known[name] for name in ("lr", "model", "decoder", "reference"))


def sentence_between(norms, pairs):
    """Whether alpha moves more with one norm than with another, or that this cannot be told."""
    told = {alpha: d for alpha, d in pairs.items() if d["at_once"]}
    if not told:
        n = max(d["n"] for d in pairs.values())
        return f"{norms}: {n} seed{'s' * (n != 1)} cannot tell whether what alpha moves depends on the norm; three or more can."
    found, rest, how = _established(told)
    if not found:
        alpha = max(told, key=lambda alpha: abs(told[alpha]["mean"]))
        return (
            f"{norms}: that what alpha moves at equal MSE depends on the norm is not established; the largest difference is at "
            f"alpha {alpha}, {_spoken(told[alpha])}; {how}."
        )
    said = "; ".join(f"at alpha {alpha} {_spoken(told[alpha])}" for alpha in found)
    return f"{norms}: what alpha moves at equal MSE depends on the norm, in points: {said}; {how}.{rest}"


def _established(told):
    """The outermost alphas whose interval does not hold 0, a sentence on those of which it does, and what the intervals are."""
    how = "95 % intervals" + f" of {len(told)} comparisons at once" * (len(told) > 1)
    found = [alpha for alpha, d in told.items() if d["at_once"][0] > 0 or d["at_once"][1] < 0]
    outermost = dict.fromkeys(pick(found, key=lambda a: told[a]["mean"]) for pick in (max, min)) if found else {}
    rest = [alpha for alpha in told if alpha not in found]
    return list(outermost), f" None is established of alpha {', '.join(rest)}." * bool(rest), how


def _spoken(difference):
    """+2.1 (1.0 to 3.2, MSE 0.412 to 0.602, n = 3), in points; without the MSE where there is no one range."""
    low, high = difference["at_once"]
    half = (high - low) / 2
    mean, low, high = (number(value, max(half, 0.5)) for value in (difference["mean"], low, high))
    over = f"MSE {' to '.join(f'{mse:.3f}' for mse in difference['mse_range'])}, " if "mse_range" in difference else ""
    return f"{'+' * (difference['mean'] > 0)}{mean} ({low} to {high}, {over}n = {difference['n']})"
