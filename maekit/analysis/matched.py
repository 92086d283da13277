"""Accuracy at equal reconstruction: do encoders of one MSE and different alphas know different things?"""

import numpy as np

from .. import stats
from ..settings import methods
from ..settings.spelling import spell
from .findings import number

SHARED = 0.2  # of the reference's own range of MSE; an alpha whose runs leave less is left out of what is for all
N_TARGETS = 21


def describe(points, column):
    """What is known of one accuracy at equal MSE, {group: dict}, a group a norm, and a learning rate where there are several.

    points: DataFrame of trajectories.tabulate_points, `column` not nan, without diverged runs. Each dict has

    reference: alpha 0, or the one nearest it. differences: {alpha: stats.matched to the reference, over the range that both
    reach}, paired by seed. mse_range: that all alphas reach, but for those in left_out, over the seeds that all of them have;
    None if there is none. means: {alpha: {"mean", "low", "high", "n"}} of the accuracy over it. at: the median MSE of all
    points in it; at_median: {alpha: the same of the accuracy there}. half: that any two means may differ by without a
    difference, see stats.simultaneous.
    """
    found = {}
    for group, rows in _groups(points):
        runs = {}
        for (alpha, seed), run in rows.groupby(["alpha", "seed"]):
            run = run.sort_values("epoch", kind="stable")
            run = run[run["run"] == run["run"].iloc[0]]  # a copy of a run is no other one
            runs.setdefault(float(alpha), {})[int(seed)] = run["mse"].to_numpy(), run[column].to_numpy()
        if len(runs) > 1:
            found[group] = _described(runs)
    return found


def _groups(points):
    """(name, points) of every norm, learning rate, model and decoder; the name has what differs within the norm."""
    for norm in methods.in_order(points["norm"].unique()):
        rows = points[points["norm"] == norm].fillna({"model": "", "decoder": ""})
        parts = list(rows.groupby(["lr", "model", "decoder"], sort=True))
        several = {name: rows[name].nunique() > 1 for name in ("lr", "model", "decoder")}
        for key, part in parts:
            named = [
                f"{name} {spell(v) if name == 'lr' else v}" for (name, more), v in zip(several.items(), key) if more
            ]
            yield ", ".join([norm, *named]), part


def _described(runs):
    reference = min(runs, key=lambda alpha: (abs(alpha), alpha))
    known = {
        "reference": reference,
        "differences": {spell(a): stats.matched(runs[a], runs[reference]) for a in sorted(runs) if a != reference},
        "left_out": [],
        **dict.fromkeys(("mse_range", "at", "half")),
        "means": {},
        "at_median": {},
    }
    kept, left_out, reach, seeds = _together(runs, reference)
    known["left_out"] = [spell(alpha) for alpha in left_out]
    if reach is None:
        return known
    targets = np.linspace(*reach, N_TARGETS)
    inside = [m for alpha in kept for seed in seeds for m in runs[alpha][seed][0] if reach[0] <= m <= reach[1]]
    at = float(np.median(inside or targets))
    over, there = (
        np.array([[np.mean([stats.accuracy_at(*runs[a][s], t) for t in of]) for a in kept] for s in seeds])
        for of in (targets, [at])
    )
    return {
        **known,
        "mse_range": list(reach),
        "at": at,
        "half": stats.simultaneous(over)["half"],
        "means": {spell(alpha): stats.t_interval(over[:, i]) for i, alpha in enumerate(kept)},
        "at_median": {spell(alpha): stats.t_interval(there[:, i]) for i, alpha in enumerate(kept)},
    }


def _together(runs, reference):
    """(alphas, those left out, the range of MSE that the runs of the former all pass or None, the seeds that all have).

    The alpha without which the others share most is left out, one after the other, until they share enough.
    """
    kept, left_out = sorted(runs), []
    own = _width([mse for mse, _ in runs[reference].values()])
    while len(kept) > 1:
        seeds = sorted(set.intersection(*(set(runs[alpha]) for alpha in kept)))
        reach = stats.common_range(_losses(runs, kept, seeds)) if seeds else None
        if reach is not None and reach[1] - reach[0] >= SHARED * own:
            return kept, left_out, reach, seeds
        without = {alpha: [other for other in kept if other != alpha] for alpha in kept if alpha != reference}
        shared = {alpha: _shared(runs, others) for alpha, others in without.items()}
        worst = max(shared, key=lambda alpha: (*shared[alpha], abs(alpha)))
        kept = without[worst]
        left_out.append(worst)
    return kept, left_out, None, []


def _shared(runs, alphas):
    """How much alphas share: the number of seeds that all of them have, and the width of the range of MSE that these pass."""
    seeds = set.intersection(*(set(runs[alpha]) for alpha in alphas))
    return len(seeds), _width(_losses(runs, alphas, seeds)) if seeds else 0.0


def _losses(runs, alphas, seeds):
    return [runs[alpha][seed][0] for alpha in alphas for seed in seeds]


def _width(losses):
    """Of the range of MSE that runs pass, negative if there is none."""
    return min(mse[0] for mse in losses) - max(min(mse) for mse in losses)


def sentence(group, known):
    """Whether encoders of equal reconstruction differ, by how much and from how many seeds, or that this cannot be told."""
    if known["mse_range"] is None:
        return f"{group}: no two alphas have seeds and a range of MSE in common, so nothing is compared at equal MSE."
    low, high = known["mse_range"]
    means = {alpha: of["mean"] for alpha, of in known["means"].items()}
    n = next(iter(known["means"].values()))["n"]
    most, least = max(means, key=means.get), min(means, key=means.get)
    largest, half, alphas = means[most] - means[least], known["half"], f"{len(means)} alphas"
    where = f"{group}: at equal MSE ({low:.3f} to {high:.3f})"
    without = f" Alpha {', '.join(known['left_out'])} reached too little of it." if known["left_out"] else ""
    if half is None:
        seeds = f"{n} seed{'s' * (n != 1)}"
        return (
            f"{where} the accuracies of {alphas} are up to {number(largest, 1)} points apart, but {seeds} cannot tell whether "
            f'the encoders differ; --seeds "0 1 2" can.{without}'
        )
    if largest > half:
        said = [
            number(x, min(half, largest - half))
            for x in (means[most], means[least], largest, largest - half, largest + half)
        ]
        return (
            f"{where} encoders differ: alpha {most} reads {said[0]} %, alpha {least} {said[1]} %, {said[2]} points less (95 % "
            f"interval {said[3]} to {said[4]}, over all pairs of {alphas}, {n} seeds).{without}"
        )
    return (
        f"{where} no difference between {alphas} is established ({n} seeds): the largest is {number(largest, half)} points, "
        f"and one of up to {number(largest + half, half)} remains possible.{without}"
    )
