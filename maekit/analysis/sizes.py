"""What a method's difference to the reference is over the number of training images."""

import math

from .. import stats
from . import findings, rates


def largest(found):
    """The runs on the most images of those that are compared."""
    most = max((run["size"] for run in found if run["size"] is not None), default=None)
    return [run for run in found if run["size"] == most]


def describe(found, reference):
    """{"images": {size: training images}, "steps": {size: optimizer steps}, "differences": {method: {size: stats.paired to the
    reference}}, "sentences"} of runs in a grid of sizes, each method at its best rate where there are several; a size as it
    was typed."""
    sizes = sorted({run["size"] for run in found})
    of = {spelled(size): next(run for run in found if run["size"] == size) for size in sizes}
    images = {size: _images(run) for size, run in of.items()}
    steps = {size: _steps(run) for size, run in of.items()}
    differences = {}
    for method in dict.fromkeys(run["method"] for run in found):
        if method != reference:
            differences[method] = {
                spelled(size): stats.paired(_losses(found, method, size), _losses(found, reference, size))
                for size in sizes
            }
    said = [*_on_steps(images, steps), *_sentences(differences, images, reference)]
    return {"images": images, "steps": steps, "differences": differences, "sentences": said}


def spelled(size):
    """A size as --max_images has it."""
    return "all" if size == math.inf else str(size)


def _images(run):
    return min(run["size"], run["config"]["data"]["train_images"])


def _steps(run):
    """Optimizer steps of the whole run."""
    return _images(run) // run["config"]["effective_batch"] * run["config"]["identity"]["epochs"]


def _on_steps(images, steps):
    """How long the runs of each size were: what differs with the number of images beside it."""
    few, many = min(images, key=images.get), max(images, key=images.get)
    least, most = min(steps.values()), max(steps.values())
    if len(images) < 2:
        return []
    if most <= 1.1 * least:  # --steps, in whole epochs
        about = f"{most:,}" if most == least else f"{least:,} to {most:,}"
        return [f"All numbers of images have {about} steps, so fewer images were seen more often."]
    known = f"{steps[few]:,} with {images[few]:,} images and {steps[many]:,} with {images[many]:,}"
    what = "what a method gains or loses on few images may be of how short the runs were"
    return [f"Fewer images are fewer steps as well, {known}: {what}. --steps makes them equal."]


def _losses(found, method, size):
    runs = {run["config"]["identity"]["seed"]: rates.final_loss(run) for run in found if _is(run, method, size)}
    return {seed: loss for seed, loss in runs.items() if loss is not None and math.isfinite(loss)}


def _is(run, method, size):
    return run["method"] == method and run["size"] == size


def _sentences(differences, images, reference):
    """Of each method its difference at the fewest and at the most images that it has one of."""
    said = []
    for method, by_size in differences.items():
        known = [size for size, difference in by_size.items() if difference["n"]]
        for size in dict.fromkeys(known[:1] + known[-1:]):
            said.append(f"With {images[size]:,} images {findings.on_difference(method, reference, by_size[size])}")
    return said
