#!/usr/bin/env python3
"""How long the full alpha sweep takes: a slice of it is trained for real, and the whole follows from that.

    python benchmarks/bench_sweep.py --hf_dataset imagenette           # a folder of save_to_disk, or the hub's name
    python benchmarks/bench_sweep.py --demo                            # CPU mode: runs of the demo

Three runs of run_alpha_sweep.sh's settings (batch 512, all probes), by its pool and so in one warm process: one that pays what later
ones find ready (cache, kernels, what is compiled), a short and a long one, which differ by whole rounds of --eval_every epochs, so
that k-NN has its share. An epoch, validation and probes included, is what the long one takes longer; whole = what the first takes
longer than the short one, and 25 starts and 25 x 50 epochs, one run after the other. A run's time is from the end of the one before.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import KIT, parser, report, set_up

from maekit.settings.flags import DEFAULTS

ALPHAS, EPOCHS = 25, 50
EVAL_EVERY = DEFAULTS["eval_every"]
GOAL_MINUTES = 20  # on one H200


def main():
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=1, help=f"of {EVAL_EVERY} epochs that the long run has more")
    p.add_argument("--max_images", help="train on fewer images; the whole is then of so many")
    p.add_argument("--batch_size", type=int, default=512)
    p.add_argument("--norm", default="LayerNorm")
    p.add_argument("--num_workers", help="processes that decode; default: train.py's")
    p.add_argument("--warm", default="auto", choices=("auto", "off"), help="off: a process a run")
    p.add_argument("--model", default="vit_tiny")
    p.add_argument("--decoder_type", default="base-8b")
    p.add_argument("--demo", action="store_true", help="the demo's images and model: the whole is then the demo's")
    p.add_argument("--imagenet_dir")
    p.add_argument("--hf_dataset")
    p.add_argument("--hf_config")
    args = p.parse_args()
    device = set_up(args)
    command = command_of(args, device)
    more = EVAL_EVERY * args.rounds
    least = 3 if device.type == "cuda" else 1  # epochs, enough for a CUDA graph as a whole run has one
    rows, plan = [], (("first", least), ("short", least), ("long", least + more))
    with tempfile.TemporaryDirectory() as scratch:
        grid = Path(scratch, "commands.txt")
        commands = (
            [*command, "--epochs", str(epochs), "--output_dir", str(Path(scratch, name))] for name, epochs in plan
        )
        grid.write_text("".join(f"{shlex.join(words)}\n" for words in commands))
        ended = time.time()
        subprocess.run(
            [sys.executable, str(KIT / "maekit/drivers/pool.py"), "--warm", args.warm, str(grid)], check=True
        )
        for name, epochs in plan:
            before, ended = ended, (Path(scratch, name) / "summary.json").stat().st_mtime
            rows.append(measured(name, Path(scratch, name), epochs, ended - before))
    first, short, long = (row["seconds"] for row in rows)
    epoch = (long - short) / more
    start = short - least * epoch
    report(
        "sweep",
        rows,
        args,
        device,
        runs=ALPHAS,
        epochs=EPOCHS,
        epoch_s=round(epoch, 3),
        start_s=round(start, 3),
        first_s=round(first - short, 3),
        whole_minutes=round((first - short + ALPHAS * (start + EPOCHS * epoch)) / 60, 1),
        goal_minutes=GOAL_MINUTES,
    )


def command_of(args, device):
    """The words of one run of the sweep, but for its length and its folder."""
    words = f"--alpha 0.1 --probes all --eval_every {EVAL_EVERY} --device {device} --norm {args.norm}".split()
    if args.demo:
        words += ["--demo"]
    else:
        words += f"--model {args.model} --decoder_type {args.decoder_type} --lr 0.00015".split()
        words += ["--batch_size", str(args.batch_size)]
    for name in ("imagenet_dir", "hf_dataset", "hf_config", "max_images", "num_workers"):
        if getattr(args, name):
            words += [f"--{name}", getattr(args, name)]
    words += ["--compile", "on"] if device.type == "cuda" else []  # as for a whole run
    return [sys.executable, str(KIT / "train.py"), *words]


def measured(name, folder, epochs, seconds):
    """A row from the run's own files."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "run": name,
        "epochs": epochs,
        "hardware": config["hardware"],
        "seconds": seconds,
        "training images/s": summary["images_per_s"],
    }


if __name__ == "__main__":
    main()
