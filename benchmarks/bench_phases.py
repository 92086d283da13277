#!/usr/bin/env python3
"""Where the seconds of a run go: starting, images, model, baselines, training, validation, k-NN, checkpoints, figures.

    python benchmarks/bench_phases.py --demo --epochs 3
    python benchmarks/bench_phases.py --imagenet_dir DIR --model vit_tiny --decoder_type base-8b --batch_size 512 --epochs 6

All flags but --json, --device and --runs are train.py's. --runs N: so many runs of other alphas, one after the other in one process,
as the drivers' warm workers train them: the first one starts Python, CUDA and the compiler, the others find them started.
Phases nest: what k-NN and validation take within baselines and epochs is counted there as well.
"""

import sys
import tempfile
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path

from common import parser, report, set_up

STARTED = time.perf_counter()


def main():
    p = parser(__doc__)
    p.add_argument("--runs", type=int, default=2)
    args, flags = p.parse_known_args()
    device = set_up(args, as_train=True)
    imported = time.perf_counter()
    import train
    from maekit.analysis import figures
    from maekit.data import cache
    from maekit.probes import knn, representation
    from maekit.training import checkpoint, finetuning, pretraining, saving, trainer, validation  # noqa: F401

    spent, calls = defaultdict(float), defaultdict(int)
    for owner, name, phase in (
        (train, "main", "whole run"),
        (cache, "cached", "cache: found or made"),
        (train, "open_task", "model, images to the device"),
        (pretraining.Pretraining, "baselines", "baselines"),
        (trainer.Trainer, "train_epoch", "training epochs"),
        (pretraining.Pretraining, "capture", "CUDA graph of a step"),
        (pretraining.Pretraining, "validate", "validation with k-NN"),
        (pretraining.Pretraining, "validation_features", "features of validation images"),
        (knn.NearestNeighbours, "outcomes", "k-NN"),
        (representation.Representation, "score", "ranks and bands"),
        (pretraining.Pretraining, "pictures", "pictures"),
        (pretraining.Pretraining, "ending", "reconstructions at the end"),
        (saving.Saver, "save", "checkpoints: what training waits for"),
        (checkpoint, "write", "checkpoints: written beside it"),
        (figures, "save", "figure"),
    ):
        setattr(owner, name, timed(getattr(owner, name), phase, spent, calls))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.runs):
            before, calls_before = dict(spent), dict(calls)
            folder = Path(scratch, str(number))
            words = [*flags, "--alpha", str(0.1 + number / 10), "--device", str(device), "--output_dir", str(folder)]
            if train.main(words):
                sys.exit(f"error: the run failed: {' '.join(words)}")
            for phase, seconds in spent.items():
                n = calls[phase] - calls_before.get(phase, 0)
                if n:
                    taken = seconds - before.get(phase, 0)
                    rows.append({"run": number, "phase": phase, "calls": n, "seconds": round(taken, 3)})
    report("phases", rows, args, device, python_and_torch_s=round(imported - STARTED, 2), flags=" ".join(flags))


def timed(function, phase, spent, calls):
    @wraps(function)
    def around(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[phase] += time.perf_counter() - started
            calls[phase] += 1

    return around


if __name__ == "__main__":
    main()
