"""What a method's difference to the reference is over the number of training images."""

import math

from .. import stats
from ..settings.spelling import spell
from . import findings, rates


def largest(found):
    """The runs on the most images of those that are compared."""
    most = max((run["size"] for run in found if run["size"] is not None), default=None)
    return [run for run in found if run["size"] == most]


def describe(found, reference, choice=None):
    """What comparison_statistics.json says of runs in a grid of sizes, each method at its best rate where there are several.

    choice: rates.Rates, None for one rate. A size is as it was typed. Returns {"images": {size: training images}; "steps":
    {size: optimizer steps, "several" where its runs differ in them}; "rates": {size: {method: rate chosen}}, None for one
    rate; "differences": {method: {size: rates.difference to the reference}}; "change": {method: stats.t_interval of its
    difference on the fewest images minus that on the most, paired by seed, None without seeds at both}; "sentences"}.
    """
    sizes = sorted({run["size"] for run in found})
    of = {spelled(size): [run for run in found if run["size"] == size] for size in sizes}
    images = {size: _images(runs[0]) for size, runs in of.items()}
    steps = {size: _steps(runs) for size, runs in of.items()}
    names = [m for m in dict.fromkeys(run["method"] for run in found) if m != reference]
    if choice:
        of = {size: [r for r in runs if (r["method"], r["size"]) in choice.chosen] for size, runs in of.items()}
    differences = {m: {size: rates.difference(runs, m, reference) for size, runs in of.items()} for m in names}
    change = {m: _change(by_size) for m, by_size in differences.items()}
    chosen = choice and {
        size: {m: choice.chosen.get((m, n)) for m in [reference, *names]} for size, n in zip(of, sizes)
    }
    said = [*_on_steps(images, steps), *_on_rates(images, chosen)]
    for method, by_size in differences.items():
        said += _on_method(method, reference, by_size, change[method], images)
    known = {"images": images, "steps": steps, "rates": chosen, "differences": differences, "change": change}
    return {**known, "sentences": said}


def spelled(size):
    """A size as --max_images has it."""
    return "all" if size == math.inf else str(size)


def _images(run):
    return min(run["size"], run["config"]["data"]["train_images"])


def _steps(runs):
    """Optimizer steps of whole runs of one size."""
    steps = {_images(r) // r["config"]["effective_batch"] * r["config"]["identity"]["epochs"] for r in runs}
    return steps.pop() if len(steps) == 1 else "several"


def _change(by_size):
    """Of a method's differences: those on the fewest images minus those on the most."""
    few, *_, many = by_size.values() if len(by_size) > 1 else (None, None)
    if few is None:
        return None
    known = stats.paired(few["differences"], many["differences"])
    return known if known["n"] else None


def _on_steps(images, steps):
    """How long the runs of each size were: what differs with the number of images beside it."""
    if len(images) < 2 or "several" in steps.values():
        return []
    least, most = min(steps, key=steps.get), max(steps, key=steps.get)
    if steps[most] <= 1.1 * steps[least]:  # --steps, in whole epochs
        about = f"{steps[least]:,}" + (f" to {steps[most]:,}" if steps[most] > steps[least] else "")
        return [f"All numbers of images have {about} steps, so fewer images were seen more often."]
    known = f"{steps[least]:,} with {images[least]:,} images and {steps[most]:,} with {images[most]:,}"
    what = "what a method gains or loses may be of how short the runs were"
    return [f"Numbers of images differ in steps as well, {known}: {what}. --steps makes them equal, to whole epochs."]


def _on_rates(images, chosen):
    """Which rates were chosen with how many images."""
    said = []
    for size, by_method in (chosen or {}).items():
        each = [f"{m} {'none' if rate is None else spell(rate)}" for m, rate in by_method.items()]
        said.append(f"Rates chosen with {images[size]:,} images: {', '.join(each)}.")
    return said


def _on_method(method, reference, by_size, change, images):
    """A method's difference at the fewest and at the most images that it has one of, and whether these are two."""
    said, known = [], [size for size, of in by_size.items() if of["n"] or of["diverged"]]
    for size in dict.fromkeys(known[:1] + known[-1:]):
        said.append(f"With {images[size]:,} images {rates.on_difference(method, reference, by_size[size])}")
    if change and change["low"] is not None:
        half = (change["high"] - change["low"]) / 2
        mean, low, high = (findings.number(change[end], half) for end in ("mean", "low", "high"))
        few, *_, many = images.values()
        holds = "so" if change["low"] > 0 or change["high"] < 0 else "so these runs do not show that"
        said.append(
            f"That difference with {few:,} images minus the one with {many:,} is {mean} (95 % interval {low} to {high}, "
            f"{change['n']} seeds), {holds} it depends on the number of images."
        )
    return said
