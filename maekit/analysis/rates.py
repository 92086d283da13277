"""Every method at its best learning rate, chosen on some seeds and reported on others, and all at one common rate."""

import math
import re

from .. import stats
from ..runs.status import DIVERGED, FINISHED
from ..settings.spelling import spell
from . import findings

_RATE, _SIZE = re.compile(r"lr(\d+\.?\d*)"), re.compile(r"n(\d+|all)")


def place_in_grid(run, root):
    """Give a run below `root` the "rate" and "size" that folders in between are named after by run_comparison.sh; None where
    none is.

    size: number of training images, inf for all of them.
    """
    run["rate"] = run["size"] = None
    for folder in run["path"].relative_to(root).parts[:-1]:
        if found := _RATE.fullmatch(folder):
            run["rate"] = float(found[1])
        elif found := _SIZE.fullmatch(folder):
            run["size"] = math.inf if found[1] == "all" else int(found[1])


def final_loss(run):
    """Validation loss that a run ended with, inf if it diverged, None if it has not ended."""
    if not run["summary"]:
        return None
    if run["summary"]["status"] == DIVERGED:
        return math.inf
    return run["log"][-1]["val_mse"] if run["log"] and run["summary"]["status"] == FINISHED else None


class Rates:
    """The choice of a rate for every method and number of images.

    found: runs in a grid of rates; those of select_seeds choose and are left out of what is reported, all choose where there
    are none. Best is the least final validation loss, mean over the seeds that have ended at every rate at which none of
    them diverged; those rates are out. `chosen` is {(method, size): rate}; `lost` the (method, size) whose rates are all
    out, with the lowest; what has no seed that ended at every rate is in neither. `common` is {size: the reference's rate}.
    """

    def __init__(self, found, select_seeds, reference):
        self.select, self.reference = frozenset(select_seeds), reference
        self.chosen, self.lost, losses = {}, {}, {}
        for run in found:
            by_rate = losses.setdefault((run["method"], run["size"]), {}).setdefault(run["rate"], {})
            if not self.select or _seed(run) in self.select:
                by_rate[_seed(run)] = final_loss(run)
        for of, by_rate in losses.items():
            left = {rate: seeds for rate, seeds in by_rate.items() if math.inf not in seeds.values()}
            if not left:
                self.lost[of] = min(by_rate)
                continue
            means = _means(left)
            if means:
                self.chosen[of] = min(means, key=lambda rate: (means[rate], rate))
        self.common = {size: rate for (method, size), rate in self.chosen.items() if method == reference}

    def reported(self, found):
        """Those runs that are not of seeds that chose."""
        return [run for run in found if _seed(run) not in self.select]

    def at_best(self, found):
        """The runs of each method at its own rate, of one that diverged at all at the lowest."""
        own = self.lost | self.chosen
        return [r for r in self.reported(found) if r["rate"] == own.get((r["method"], r["size"]), math.nan)]

    def least_of_reported(self, found, method):
        """The rate at which a method has the least mean loss on the seeds that did not choose, None if none ended at all."""
        by_rate = {run["rate"]: {} for run in found if run["method"] == method}
        for run in self.reported(found):
            if run["method"] == method:
                by_rate[run["rate"]][_seed(run)] = final_loss(run)
        means = _means(by_rate)
        best = min(means, key=means.get, default=None)
        return best if best is not None and math.isfinite(means[best]) else None

    def at_common(self, found):
        """The runs of all methods at the reference's rate; none without one."""
        return [run for run in self.reported(found) if run["rate"] == self.common.get(run["size"], math.nan)]


def _means(by_rate):
    """{rate: mean loss of the seeds that have ended at all of them}, empty without one. by_rate: {rate: {seed: loss}}."""
    ended = [{seed for seed, loss in seeds.items() if loss is not None} for seeds in by_rate.values()]
    alike = set.intersection(*ended) if ended else ()
    return {rate: math.fsum(seeds[s] for s in alike) / len(alike) for rate, seeds in by_rate.items()} if alike else {}


def difference(runs, method, reference):
    """stats.paired of the final losses of a method to the reference's, and "diverged": {name: how many of its runs did, and are
    not in it}. runs: those of one rate for each method, and of one size."""
    diverged = {m: sum(final_loss(r) == math.inf for r in runs if r["method"] == m) for m in (method, reference)}
    known = stats.paired(_by_seed(runs, method), _by_seed(runs, reference))
    return {**known, "diverged": {m: n for m, n in diverged.items() if n}}


def lost(known):
    """What is not in a `difference`, as cells of tables have it."""
    return [f"{n} of {method} diverged" for method, n in known["diverged"].items()]


def on_difference(method, reference, known):
    """A `difference` as a sentence, with what is not in it."""
    diverged = [f"{n} run{'s' * (n > 1)} of {m}" for m, n in known["diverged"].items()]
    if diverged and not known["n"]:
        return f"{method} cannot be compared with {reference}: {' and '.join(diverged)} diverged, no seed is left."
    text = findings.on_difference(method, reference, known)
    return f"{text[:-1]}; not in it: {' and '.join(diverged)} that diverged." if diverged else text


def untried(found):
    """Sentences on methods that have no run at a rate at which others have one: their budgets are not equal."""
    said = []
    for size in dict.fromkeys(run["size"] for run in found):
        of = {}
        for run in found:
            if run["size"] == size:
                of.setdefault(run["rate"], set()).add(run["method"])
        for rate in sorted(of):
            missing = sorted(set.union(*of.values()) - of[rate])
            said += [f"{m} has no run at a rate of {spell(rate)}, others have: not the same budget." for m in missing]
    return said


def describe(found, rates):
    """What comparison_statistics.json says of the rates of runs of one size.

    Returns {"selected_on": seeds that chose alone, [] if all did; "reference"; "common": its rate, None without one;
    "methods": {method: {"chosen": rate or None, "lost": whether a run diverged at every rate, "flat": at its best rate the
    share of activations where norm layers are flat, None where they are not point-wise, "curve": {rate: stats.t_interval
    of the final validation losses of all seeds, "diverged": how many are not in it}, "reported": the rate with the least mean
    loss on the seeds that did not choose, None if there are none that ended at all}};
    "at_best", "at_common": {method: `difference` to the reference}}, of methods that have a best rate.
    """
    size = found[0]["size"]
    names = list(dict.fromkeys(run["method"] for run in found))
    known = {
        "selected_on": sorted(rates.select),
        "reference": rates.reference if rates.reference in names else None,
        "common": rates.common.get(size),
        "methods": {},
    }
    best = [run for run in rates.at_best(found) if (run["method"], size) in rates.chosen]
    for m in names:
        choice = {"chosen": rates.chosen.get((m, size)), "lost": (m, size) in rates.lost, "flat": _flat(best, m)}
        reported = rates.least_of_reported(found, m) if rates.select else None
        known["methods"][m] = {**choice, "curve": _curve(found, m), "reported": reported}
    for name, runs in (("at_best", best), ("at_common", rates.at_common(found))):
        known[name] = {m: difference(runs, m, rates.reference) for m in names if m != rates.reference}
    return {**known, "sentences": sentences(known)}


def _curve(found, method):
    by_rate = {}
    for run in found:
        if run["method"] == method and (loss := final_loss(run)) is not None:
            by_rate.setdefault(run["rate"], []).append(loss)
    curve = {}
    for rate in sorted(by_rate):
        finite = [loss for loss in by_rate[rate] if math.isfinite(loss)]
        nothing = {"mean": None, "low": None, "high": None, "n": 0, "note": "all diverged"}
        known = stats.t_interval(finite) if finite else nothing
        curve[spell(rate)] = {**known, "diverged": len(by_rate[rate]) - len(finite)}
    return curve


def _flat(runs, method):
    """Mean over a method's finished runs of what their last epoch says."""
    ended = [run for run in runs if run["method"] == method and _seed(run) in _by_seed(runs, method)]
    shares = [share for run in ended if (share := run["log"][-1].get("norm_flat")) is not None]
    return math.fsum(shares) / len(shares) if shares else None


def sentences(known):
    """What the numbers say, a sentence or two on each method, then on the choice itself."""
    said = []
    for method, of in known["methods"].items():
        if of["chosen"] is None:
            which = " that chooses" if known["selected_on"] else ""
            why = f"no seed{which} has ended at all of them"
            if of["lost"]:
                why = f"at every one of {', '.join(of['curve'])} a run{which} diverged"
            said.append(f"{method} has no best rate: {why}.")
            continue
        said += [_on_rate(method, of), *_at_common(method, known)]
    said.append(_on_choice(known))
    return said


def _on_rate(method, of):
    """Which rate was chosen for a method, and what speaks against it."""
    chosen, curve = spell(of["chosen"]), of["curve"]
    text, rates = f"For {method} the rate {chosen} was chosen", list(curve)
    if len(rates) > 1 and chosen in (rates[0], rates[-1]):
        end = "lowest" if chosen == rates[0] else "highest"
        text += f", the {end} that was tried, so one beyond it may be better"
    if of["reported"] not in (None, of["chosen"]):
        text += f"; the seeds that did not choose ended lower at {spell(of['reported'])}"
    for rate, at in curve.items():
        if at["diverged"]:
            text += f"; at {rate} {at['diverged']} of {at['n'] + at['diverged']} runs diverged"
    return f"{text}."


def _at_common(method, known):
    """The difference at the reference's rate, where the method's own is another one."""
    reference, common = known["reference"], known["common"]
    if common is None or method not in known["at_common"] or known["methods"][method]["chosen"] == common:
        return []
    return [f"Both at {spell(common)}: {on_difference(method, reference, known['at_common'][method])}"]


def _on_choice(known):
    if known["selected_on"]:
        seeds = ", ".join(map(str, known["selected_on"]))
        of = f"seed{'s' * (len(known['selected_on']) > 1)} {seeds}"
        return f"Rates were chosen on {of}; differences are of the other seeds, losses over rates of all."
    return (
        "Rates were chosen on the seeds that they are reported on, which makes all methods look better than they are, those "
        "whose losses vary more most of all; --select_seeds chooses on others."
    )


def _by_seed(runs, method):
    found = {_seed(run): final_loss(run) for run in runs if run["method"] == method}
    return {seed: loss for seed, loss in found.items() if loss is not None and math.isfinite(loss)}


def _seed(run):
    return run["config"]["identity"]["seed"]
