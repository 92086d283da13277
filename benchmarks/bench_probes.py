#!/usr/bin/env python3
"""What each probe costs: seconds of an epoch, validation and all that is scored included, with more and more of them.

    python benchmarks/bench_probes.py --demo
    python benchmarks/bench_probes.py --imagenet_dir DIR --input_size 64 --model enc64d4h4p8 --decoder_type dec64d1h4 --batch_size 64

All flags but --json, --device, --threads and --rounds are train.py's; --alpha, --probes and --readout are this one's to say. An
epoch of each in turn, so that a machine's moods meet all of them alike; a round is --eval_every epochs, of which the last one
scores what is not scored in each. `of_none` is an epoch's time as a multiple of that without probes; medians over --rounds.
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
    for number in range(args.rounds + 1):  # the first does not count: caches, kernels, components of patches
        taken = dict.fromkeys(SETS, 0.0)
        for epoch in range(number * every, (number + 1) * every):
            for name, trainer in trainers.items():
                started = time.perf_counter()
                if trainer.measure_epoch(epoch) is None:
                    sys.exit(f"error: the run with {name} diverged at epoch {epoch}. Use a smaller --lr.")
                taken[name] += time.perf_counter() - started
        for name in SETS:
            seconds[name].append(taken[name] / every)
    plain = seconds["none"][1:]
    rows = [
        {
            "probes": name,
            "epoch_s": round(statistics.median(taken[1:]), 3),
            "of_none": round(statistics.median(one / none for one, none in zip(taken[1:], plain)), 3),
        }
        for name, taken in seconds.items()
    ]
    images = trainers["all"].task.source
    name = f"probes, {len(images.train):,} images, {len(images.val):,} of validation"
    report(name, rows, args, device, eval_every=every, rounds=args.rounds, flags=" ".join(flags))


def open_trainer(words):
    """A Trainer of a run as train.py opens it, that writes nothing down; long enough for all that is measured."""
    import train
    from maekit.data import cache, sources
    from maekit.settings.parser import build_parser
    from maekit.settings.resolution import resolve
    from maekit.training.trainer import Trainer

    run = resolve(build_parser("train.py", "").parse_args([*words, "--epochs", "1000"]))
    source = sources.open_source(run.data, run.seed)
    task = train.open_task(run, cache.cached(source, run.data.cache, run.model.input_size, print))
    task.prepare()
    return Trainer(task)


if __name__ == "__main__":
    main()
