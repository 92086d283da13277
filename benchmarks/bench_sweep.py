#!/usr/bin/env python3
"""How long the full alpha sweep takes: a slice of it is trained for real, and the whole follows from that.

    python benchmarks/bench_sweep.py --hf_dataset imagenette           # a folder of save_to_disk, or the hub's name
    python benchmarks/bench_sweep.py --demo --epochs 2                 # CPU mode: two runs of the demo

Two runs of run_alpha_sweep.sh's settings (batch 512, joint classifier) of a few epochs each: the first pays what later ones find
ready (cache, compiled kernels). whole = 25 starts + 25 x 50 epochs, training and validation, one run after the other.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import KIT, parser, report, set_up

ALPHAS, EPOCHS = 25, 50
GOAL_MINUTES = 20  # on one H200


def main():
    p = parser(__doc__)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--batch_size", type=int, default=512)
    p.add_argument("--norm", default="LayerNorm")
    p.add_argument("--model", default="vit_tiny")
    p.add_argument("--decoder_type", default="base-8b")
    p.add_argument("--demo", action="store_true", help="the demo's images and model: the whole is then the demo's")
    p.add_argument("--imagenet_dir")
    p.add_argument("--hf_dataset")
    p.add_argument("--hf_config")
    args = p.parse_args()
    device = set_up(args)
    command = [sys.executable, str(KIT / "train.py"), "--alpha", "0.1", "--epochs", str(args.epochs), "--device", str(device),
               "--norm", args.norm]  # fmt: skip
    command += ["--demo"] if args.demo else ["--model", args.model, "--decoder_type", args.decoder_type, "--lr", "0.00015",
                                             "--batch_size", str(args.batch_size)]  # fmt: skip
    for name in ("imagenet_dir", "hf_dataset", "hf_config"):
        if getattr(args, name):
            command += [f"--{name}", getattr(args, name)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("first run", "second run"):
            folder = Path(scratch, name.replace(" ", "_"))
            started = time.perf_counter()
            subprocess.run([*command, "--output_dir", str(folder)], check=True)
            rows.append(measured(name, folder, time.perf_counter() - started))
    second = rows[-1]
    # the first epoch is left out: it waits for workers to start and kernels to compile, as the start does
    minutes = ALPHAS * (second["start s"] + EPOCHS * second["epoch s"]) / 60
    report(
        "sweep",
        rows,
        args,
        device,
        runs=ALPHAS,
        epochs=EPOCHS,
        whole_minutes=round(minutes, 1),
        goal_minutes=GOAL_MINUTES,
    )


def measured(name, folder, seconds):
    """A row from the run's own log."""
    with open(folder / "log.csv", encoding="utf-8") as f:
        names, *lines = (line.rstrip("\n").split(",") for line in f)
    epochs = [dict(zip(names, line)) for line in lines]
    later = [float(row["epoch_time_s"]) for row in epochs[1:]] or [float(epochs[0]["epoch_time_s"])]
    epoch = sum(later) / len(later)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "run": name,
        "hardware": config["hardware"],
        "seconds": seconds,
        "epoch s": epoch,
        "start s": seconds - len(epochs) * epoch,
        "images/s": float(epochs[-1]["images_per_s"]),
    }


if __name__ == "__main__":
    main()
