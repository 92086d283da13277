"""What a method's difference to the reference is over the number of training images."""

import math

from .. import stats
from . import findings, rates


def largest(found):
    """The runs on the most images of those that are compared."""
    most = max((run["size"] for run in found if run["size"] is not None), default=None)
    return [run for run in found if run["size"] == most]


def describe(found, reference):
    """{"images": {size: training images}, "differences": {method: {size: stats.paired to the reference}}, "sentences"} of runs in
    a grid of sizes, each method at its best rate where there are several; a size as it was typed."""
    sizes = sorted({run["size"] for run in found})
    images = {spelled(size): _images(found, size) for size in sizes}
    differences = {}
    for method in dict.fromkeys(run["method"] for run in found):
        if method != reference:
            differences[method] = {
                spelled(size): stats.paired(_losses(found, method, size), _losses(found, reference, size))
                for size in sizes
            }
    return {"images": images, "differences": differences, "sentences": _sentences(differences, images, reference)}


def spelled(size):
    """A size as --max_images has it."""
    return "all" if size == math.inf else str(size)


def _images(found, size):
    run = next(run for run in found if run["size"] == size)
    return min(size, run["config"]["data"]["train_images"])


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
