"""What the runs of a comparison show, as numbers and as sentences that say no more than the numbers do."""

import math

from .. import stats
from ..runs import measures
from ..runs.status import FINISHED
from ..settings import methods
from ..settings.spelling import spell

REFERENCE, ADAPTIVE, PLAIN = "LayerNorm", "AdaptiveDynamicTanh", "DynamicTanh"
MEASURES = measures.for_reading(measures.COMPARED)  # columns of the table that get intervals and differences
MOST = 0.5  # share of layers from which on it is said to be most of them


def describe(found, table, reference=REFERENCE):
    """Everything that comparison_statistics.json holds.

    found: runs of comparison.load, with their "method"; table: DataFrame, a row for each of them; reference: the method
    that the others are held against. Only finished runs count. Returns a dict:

    n: {method: finished seeds}; means: {method: {column: stats.t_interval}}; differences: {column: {method:
    stats.paired to the reference}}; convergence: {method: see `speed`}; adaptive: {method: see `lens`}; sentences: what
    follows from these; notes: on what does not.
    """
    ended = [run for run in found if run["summary"] and run["summary"]["status"] == FINISHED]
    table = table[table["status"] == FINISHED]
    names = list(dict.fromkeys(run["method"] for run in ended))
    values = {name: {m: _by_seed(table, name, m) for m in names} for name in MEASURES if name in table}
    values = {name: of for name, of in values.items() if any(of.values())}
    means = {m: {name: stats.t_interval(list(of[m].values())) for name, of in values.items() if of[m]} for m in names}
    known = {
        "reference": reference if reference in names else None,
        "n": {m: int((table["model"] == m).sum()) for m in names},
        "means": means,
        "differences": {},
        "convergence": {},
        "adaptive": {m: lens(m, ended, values["val_mse"]) for m in names if m.partition("-")[0] == ADAPTIVE},
    }
    if reference in names:
        known["differences"] = {
            name: {m: stats.paired(of[m], of[reference]) for m in names if m != reference}
            for name, of in values.items()
        }
        known["convergence"] = {m: speed(m, reference, ended) for m in names}
    return {**known, "sentences": sentences(known), "notes": notes(known, reference)}


def speed(method, reference, ended):
    """When the runs of a method first had the validation loss that the reference of the same seed ends with.

    Returns {"n": seeds in common, "reached": how many got there, "per_seed": {seed: {"epochs", "seconds"} or None},
    "epochs" and "seconds": stats.t_interval, None unless all got there}. Seconds are of training, without validation.
    """
    targets = {_seed(run): run["log"][-1]["val_mse"] for run in ended if run["method"] == reference and run["log"]}
    per_seed = {}
    for run in ended:
        if run["method"] == method and run["log"] and _seed(run) in targets:
            losses, seconds = ([row[name] for row in run["log"]] for name in ("val_mse", "epoch_time_s"))
            when = stats.reached(losses, seconds, targets[_seed(run)])
            per_seed[_seed(run)] = when and {"epochs": when[0], "seconds": when[1]}
    known = {"n": len(per_seed), "reached": sum(when is not None for when in per_seed.values()), "per_seed": per_seed}
    whole = known["n"] and known["reached"] == known["n"]
    for unit in ("epochs", "seconds"):
        known[unit] = stats.t_interval([when[unit] for when in per_seed.values()]) if whole else None
    return known


def lens(method, ended, losses):
    """Does a method of AdaptiveDynamicTanh adapt, or is it DynamicTanh with a larger alpha?

    losses: {method: {seed: validation loss}}. Returns, for its finished runs: "n"; "layers"; "share_over_time": the
    share of layers at a bound after each epoch, mean over seeds; "share": after the last; "upper": how many layers sit
    at the upper bound then; "bound": that bound; "most_since": the epoch from which on half of the layers or more sit
    at a bound, None if they do not at the end; "control": the method of DynamicTanh that started at that bound, None
    if there is none; "control_alpha": its mean alpha at the end; "difference": stats.paired of the loss to the
    control's. None without layers that have an alpha.
    """
    mine = [run for run in ended if run["method"] == method and run["norm_alpha"]]
    if not mine:
        return None
    bound = mine[0]["config"]["identity"]["adyt_alpha_max"]
    shares, upper = [], []
    for run in mine:
        by_epoch = {}
        for row in run["norm_alpha"]:
            by_epoch.setdefault(row["epoch"], []).append(row)
        shares.append([sum(bool(row["saturated"]) for row in rows) / len(rows) for rows in by_epoch.values()])
        last = by_epoch[max(by_epoch)]
        upper.append(sum(bool(row["saturated"]) and row["alpha"] > bound / 2 for row in last))
    over_time = [math.fsum(at) / len(at) for at in zip(*shares)]
    since = next((e for e in range(len(over_time)) if all(share >= MOST for share in over_time[e:])), None)
    control = next((run for run in ended if _starts_at(run["config"]["identity"], bound)), None)
    known = {
        "n": len(mine),
        "layers": len(last),
        "share_over_time": over_time,
        "share": over_time[-1],
        "upper": sum(upper) / len(upper),
        "bound": bound,
        "most_since": since,
    }
    if control is None:
        return {**known, "control": None, "control_alpha": None, "difference": None}
    name = control["method"]
    alphas = [run["log"][-1]["norm_alpha_mean"] for run in ended if run["method"] == name and run["log"]]
    return {
        **known,
        "control": name,
        "control_alpha": math.fsum(alphas) / len(alphas) if alphas else None,
        "difference": stats.paired(losses[method], losses[name]),
    }


def _starts_at(identity, alpha):
    """Whether a run is of plain DynamicTanh that starts from an alpha everywhere."""
    plain = all(identity.get(name, methods.NONE) == methods.NONE for name in ("dyt_alpha_attn", "dyt_shift_init"))
    return plain and identity["norm"] == PLAIN and identity.get(methods.START) == alpha


def sentences(known):
    """What the numbers of `describe` say, a sentence or two on each method: differences, then speed, then the lens."""
    said, reference = [], known["reference"]
    for method, difference in known["differences"].get("val_mse", {}).items():
        said.append(on_difference(method, reference, difference))
    for method, reached in known["convergence"].items():
        if reached["n"] and method != reference:
            said.append(on_speed(method, reference, reached))
    for method, seen in known["adaptive"].items():
        for text in on_lens(method, seen) if seen else ():
            # where the control is the reference, the difference to it has been said
            repeated = next((other for other in said if text.startswith(other)), "")
            said.append(text.removeprefix(repeated).strip())
    return said


def on_difference(method, reference, difference, what="validation loss"):
    """A paired difference as a sentence."""
    d = difference
    if not d["n"]:
        return f"{method} and {reference} have no finished seed in common, so they cannot be compared."
    sign = -1 if d["mean"] < 0 else 1
    where = f"{'below' if sign < 0 else 'above'} {reference} in {what}"
    if d["low"] is None:
        size = number(abs(d["mean"]), abs(d["mean"]) / 4)
        return f"{method} ended {size} {where} ({no_interval(d['n'])})."
    half = (d["high"] - d["low"]) / 2
    size = number(abs(d["mean"]), half)
    ends = [number(abs(d[end]), half) for end in ("low", "high")]
    if d["low"] <= 0 <= d["high"]:
        return (
            f"{method} ended {size} {where}, but the 95 % interval goes from {ends[0]} below to {ends[1]} above "
            f"({d['n']} seeds), so these runs do not show which of the two ends lower."
        )
    return f"{method} ended {size} {where} (95 % interval {' to '.join(ends[::sign])}, {d['n']} seeds)."


def no_interval(n):
    """Why a mean over n seeds has no interval, and the way out."""
    return f"{'1 seed' if n == 1 else f'mean of {n} seeds'}, so no interval, which takes {stats.MIN_SEEDS}: --seeds"


def on_speed(method, reference, reached):
    """Convergence as a sentence."""
    goal, n = f"the validation loss that {reference} ended with", reached["n"]
    seeds = f"{n} seed{'s' * (n != 1)}"
    if not reached["reached"]:
        return f"{method} never reached {goal} ({seeds})."
    if reached["reached"] < n:
        return f"{method} reached {goal} in {reached['reached']} of {seeds}, so there is no mean time."
    epochs, seconds = (with_interval(reached[unit]) for unit in ("epochs", "seconds"))
    return f"{method} reached {goal} after {epochs} epochs and {seconds} s of training ({seeds})."


def on_lens(method, seen):
    """Whether an AdaptiveDynamicTanh adapts, as sentences; the last one answers."""
    over = f"mean of {seen['n']} seeds" if seen["n"] > 1 else "1 seed"
    at_bound, upper = (f"{count:.1f}".removesuffix(".0") for count in (seen["share"] * seen["layers"], seen["upper"]))
    where = (
        f"{method}: {at_bound} of {seen['layers']} norm layers "
        f"({100 * seen['share']:.0f} %) ended with α at a bound of its range, {upper} of them at the "
        f"upper one, {spell(seen['bound'])} ({over})."
    )
    most = seen["share"] >= MOST
    if most:
        where += (
            f" From epoch {seen['most_since']} on half of the layers or more were. While its α is at a bound, a layer "
            "does not adapt: it is DynamicTanh with that α, held constant."
        )
    question = f"Does {method} adapt, or is it DynamicTanh with a larger α?"
    if seen["control"] is None:
        bound = spell(seen["bound"])
        missing = f"none is of DynamicTanh that starts from α = {bound} (--control adds it)"
        return [where, f"{question} These runs cannot tell: {missing}."]
    compared = on_difference(method, seen["control"], seen["difference"])
    if seen["control_alpha"] is not None:
        compared += f" {seen['control']} learns its α, which ended at {seen['control_alpha']:.2f} on average."
    return [where, compared, f"{question} {_answer(seen, most)}"]


def _answer(seen, most):
    """What share of layers at a bound and difference to the control say together."""
    d, control = seen["difference"], seen["control"]
    layers = f"Most of its layers ended {'at a bound' if most else 'inside their range'}"
    if not d["n"]:
        return f"{layers}, but it has no finished seed in common with {control}: not known."
    if d["low"] is None:
        return f"{layers}, but the loss cannot answer it ({no_interval(d['n'])})."
    if d["low"] <= 0 <= d["high"]:
        largest = number(max(-d["low"], d["high"]), (d["high"] - d["low"]) / 2)
        meaning = (
            "there is no evidence that it is more than DynamicTanh with a larger α"
            if most
            else "if adapting made a difference, these runs do not show it"
        )
        return (
            f"{layers}, and no difference in loss to {control} was found: {meaning}. A difference of up to {largest} "
            "remains possible."
        )
    where = "below" if d["mean"] < 0 else "above"
    return f"{layers}, and it ended {where} {control}: starting from a larger α does not by itself explain its loss."


def notes(known, reference):
    """Sentences on what the numbers cannot say."""
    said = []
    few = {method: n for method, n in known["n"].items() if n < stats.MIN_SEEDS}
    if few:
        each = ", ".join(f"{method} ({n})" for method, n in few.items())
        said.append(
            f"Too few finished seeds for an interval, which takes {stats.MIN_SEEDS}: {each}. Their differences may be "
            "chance; add seeds with --seeds."
        )
    if known["n"] and known["reference"] is None:
        said.append(f"No {reference} run has finished, so there are no differences to it; --reference takes another.")
    intervals = sum(d["low"] is not None for of in known["differences"].values() for d in of.values())
    if intervals > 1:
        said.append(
            f"The {intervals} intervals of differences are not corrected for their number: each misses the true "
            "difference one time in twenty. They are about other seeds of the same settings, not other data or models."
        )
    return said


def with_interval(known):
    """A stats.t_interval as text: 12.3 (11.1 to 13.5), or 12.3 where there is no interval."""
    if known["low"] is None:
        return number(known["mean"], abs(known["mean"]) / 20)
    half = (known["high"] - known["low"]) / 2
    mean, low, high = (number(known[name], half) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def number(value, uncertainty):
    """A number with as many decimals as its uncertainty leaves it; 3 without any, or none if it is whole."""
    decimals = (
        (0 if float(value).is_integer() else 3)
        if not uncertainty
        else min(6, max(0, -math.floor(math.log10(uncertainty / 5))))
    )
    return f"{value:.{decimals}f}"


def _by_seed(table, column, method):
    rows = table[table["model"] == method][["seed", column]].dropna()
    return {int(seed): float(value) for seed, value in zip(rows["seed"], rows[column])}


def _seed(run):
    return run["config"]["identity"]["seed"]
