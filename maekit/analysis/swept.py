"""A comparison at several learning rates, or on several numbers of images: which of its runs the comparison itself is of."""

from ..errors import InputError
from . import rates, sizes

OF_RATES = ("lr", "min_lr")  # settings that may differ between methods at their best rates


class Swept:
    """Runs of a comparison, of which `main` are compared: each method at its best rate, on the most images.

    found: runs of comparison.load; select_seeds: text, the seeds that choose rates. rates, sizes: of rates.describe and
    sizes.describe, None where there is one alone. Raises InputError where no rate can be chosen.
    """

    def __init__(self, found, reference, select_seeds):
        select, self.notices = _seeds(select_seeds), []
        found = self._of_one_grid(self._of_one_grid(found, "size", "--max_images"), "rate", "--lrs")
        self.rates = self.sizes = None
        choice = rates.Rates(found, select, reference) if any(run["rate"] is not None for run in found) else None
        unknown = select - {run["config"]["identity"]["seed"] for run in found}
        if choice and unknown:
            raise InputError(f"--select_seeds {min(unknown)}: no run is of this seed. Start it, or name another.")
        if select and not choice:
            raise InputError(
                f"--select_seeds {select_seeds}: there are no runs at several rates, of --lrs, to choose among. Leave it out."
            )
        at_best = choice.at_best(found) if choice else found
        if not at_best:
            _raise_nothing_chosen(choice, select_seeds)
        self.main = at_best
        if any(run["size"] is not None for run in at_best):
            self.main, self.sizes = sizes.largest(at_best), sizes.describe(at_best, reference, choice)
        if choice:
            self.rates = rates.describe([run for run in found if run["size"] == self.main[0]["size"]], choice)
            self.notices += rates.untried(found)
        self.found = found
        missing = [f"--max_images {sizes.spelled(size)}" for size in _missing(found, at_best)]
        self.notices += [f"{which}: no rate can be chosen yet, so it is left out." for which in missing]

    def compared(self):
        """The runs of `main` that differences are of: not of methods that have no best rate."""
        return [
            run for run in self.main if not self.rates or self.rates["methods"][run["method"]]["chosen"] is not None
        ]

    def alike(self):
        """Groups of runs that are held against each other: of one number of images, and at one rate, or each at its best."""
        groups = {}
        for run in self.found:
            groups.setdefault((run["size"], run["rate"]), []).append(run)
        return [self.main, *groups.values()]

    def _of_one_grid(self, found, name, flag):
        """Those runs that are in a grid of rates, or of sizes, if any is; that others are left out is noted."""
        kept = [run for run in found if run[name] is not None] or found
        if len(kept) < len(found):
            self.notices.append(
                f"{len(found) - len(kept)} runs that are of no grid of {flag} are left out. Give them an --output_dir of their own."
            )
        return kept

    def evaluations(self, evaluations):
        """Those of the encoders that are compared; "of" is the folder of the run that they stand beside."""
        main = {run["path"]: run for run in self.main}
        of = {_but_for_rate(run): run["path"] for run in self.main}
        kept = []
        for run in evaluations:
            home = run["path"].parent
            if home not in main and not run["config"]["identity"]["init"]:
                home = of.get(_but_for_rate(run))  # of random weights, which know no rate: beside the first
            kept += [run | {"of": home}] if home in main else []
        return kept

    def known(self):
        """What comparison_statistics.json has of rates and numbers of images."""
        return {name: of for name, of in (("rates", self.rates), ("sizes", self.sizes)) if of}

    def sentences(self):
        """What rates and numbers of images show."""
        said, of = [], []
        if self.rates:
            of.append("of a method is of its own best rate")
            said += self.rates["sentences"]
        if self.sizes and len(self.sizes["images"]) > 1:
            of.append(f"{'with' if of else 'is with'} {list(self.sizes['images'].values())[-1]:,} images")
            said += self.sizes["sentences"]
        return [f"All that is said above {', '.join(of)}.", *said] if of else said

    def notes(self):
        """What its numbers cannot say: how many intervals it adds."""
        found = [self.rates["at_common"].values()] if self.rates else []
        found += [of.values() for of in self.sizes["differences"].values()] if self.sizes else []
        intervals = sum(known["low"] is not None for of in found for known in of)
        if not intervals:
            return []
        return [
            f"Neither are the {intervals} intervals at one common rate and over numbers of images corrected for their number."
        ]

    def drawings(self, reference):
        """{name of a figure: function that draws it}."""
        from functools import partial

        from . import grid_figures

        draw = {}
        if self.rates:
            draw["rate_curve"] = partial(grid_figures.rate_curve, self.rates)
        if self.sizes and any(d["n"] for of in self.sizes["differences"].values() for d in of.values()):
            draw["difference_over_images"] = partial(grid_figures.difference_over_images, self.sizes, reference)
        return draw


def _missing(found, at_best):
    """Sizes of which no run is compared."""
    return sorted({run["size"] for run in found if run["size"] is not None} - {run["size"] for run in at_best})


def _raise_nothing_chosen(choice, select_seeds):
    if choice.chosen or choice.lost:
        raise InputError(
            "--output_dir: rates are chosen, but no run of another seed is there at them. Start those of --seeds."
        )
    of = f"of --select_seeds {select_seeds}" if choice.select else "of any method"
    raise InputError(f"--output_dir: no seed {of} has ended at all rates yet, so none can be chosen. Wait for them.")


def _but_for_rate(run):
    return run["method"], run["size"], run["config"]["identity"]["seed"]


def _seeds(text):
    wrong = [word for word in text.split() if not word.isdecimal()]
    if wrong:
        raise InputError(f"--select_seeds {wrong[0]}: must be whole numbers, 0 or more.")
    return {int(word) for word in text.split()}
