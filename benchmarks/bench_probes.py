#!/usr/bin/env python3
"""What each probe costs: seconds of an epoch, validation and all that is scored included, with more and more of them.

    python benchmarks/bench_probes.py --demo
    python benchmarks/bench_probes.py --imagenet_dir DIR --input_size 64 --model enc64d4h4p8 --decoder_type dec64d1h4 --batch_size 64

All flags but --json, --device, --threads and --rounds are train.py's; --alpha, --probes and --readout are this one's to say. An
epoch of each in turn, so that a machine's moods meet all of them alike; a round is --eval_every epochs, of which the last one
scores what is not scored in each. `epoch_s` is the mean of a round, of_none that of an epoch's time over the same one's without
probes; of the last epochs and of all others the medians over --rounds.
"""

import statistics
import sys
import time

from common import parser, report, set_up

SETS = {
    "none": ("--probes", "none"),
    "frozen, CLS": ("--probes", "frozen", "--readout", "cls"),
    "frozen, both": ("--probes", "frozen", "--readout", "cls mean"),
    "and joint": ("--probes", "joint frozen", "--readout", "cls mean"),
    "and k-NN": ("--probes", "joint frozen knn", "--readout", "cls mean"),
    "all": ("--probes", "all", "--readout", "cls mean"),
}
OWN = ("--alpha", "--probes", "--readout")


def main():
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=3)
    args, flags = p.parse_known_args()
    refused = [word for word in flags if word.partition("=")[0] in OWN]
    if refused:
        p.error(f"{refused[0]}: is what is measured here. Leave it out.")
    device = set_up(args, as_train=True)
    trainers = {name: open_trainer([*flags, *chosen, "--device", str(device)]) for name, chosen in SETS.items()}
    every = trainers["all"].task.run.probes.eval_every
    seconds = {name: [] for name in SETS}
    # the first round does not count: caches, kernels, components of patches
    for epoch in range((args.rounds + 1) * every):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            if trainer.measure_epoch(epoch) is None:
                sys.exit(f"error: the run with {name} diverged at epoch {epoch}. Use a smaller --lr.")
            seconds[name].append(time.perf_counter() - started)
    plain = seconds["none"][every:]
    rows = []
    for name, taken in seconds.items():
        taken = taken[every:]
        of_none = [one / none for one, none in zip(taken, plain)]
        rows.append(
            {"probes": name, "epoch_s": round(typical(taken, every), 3), "of_none": round(typical(of_none, every), 3)}
        )
    images = trainers["all"].task.source
    name = f"probes, {len(images.train):,} images, {len(images.val):,} of validation"
    report(name, rows, args, device, eval_every=every, rounds=args.rounds, flags=" ".join(flags))


def typical(values, every):
    """Mean over a round of values, one an epoch: the last of a round, which score, and all others are each their median."""
    last = values[every - 1 :: every]
    others = [value for i, value in enumerate(values) if i % every < every - 1]
    return (statistics.median(last) + (every - 1) * (statistics.median(others) if others else 0)) / every


def open_trainer(words):
    """A Trainer of a run as train.py opens it, that writes nothing down; long enough for all that is measured."""
    import train
    from maekit.data import cache, sources
    from maekit.settings.parser import build_parser
    from maekit.settings.resolution import resolve
    from maekit.training.trainer import Trainer

    run = resolve(build_parser("train.py", "").parse_args([*words, "--epochs", "1000"]))  # which refuses --steps
    source = sources.open_source(run.data, run.seed)
    task = train.open_task(run, cache.cached(source, run.data.cache, run.model.input_size, print))
    task.prepare()
    return Trainer(task)


if __name__ == "__main__":
    main()
