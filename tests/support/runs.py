"""What runs leave, read back: losses, weights; and what runs would leave, made up."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from maekit import files
from maekit.analysis import rates
from maekit.settings.spelling import spell

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
CLOCK = ("epoch_time_s", "images_per_s", "peak_memory_mb")


def losses(folder):
    """The log without its clock columns."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in files.read_csv(folder / "log.csv")]


def weights(folder):
    return state(folder)["model"]


def state(folder):
    """The checkpoint of a run."""
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def same(a, b):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def flat(state, path=""):
    """{path: tensor} of all weights and states of optimizers in a checkpoint."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    found = {path: state} if isinstance(state, torch.Tensor) else {}
    for name, part in items:
        found |= flat(part, f"{path}/{name}")
    return found


def fabricated(method, seed, val, *, norm=None, seconds=2.0, layers=(), status="finished", measured=(), **options):
    """A run as comparison.load gives it. layers: per epoch, the alphas of its layers; status None: it has not ended."""
    log = [
        {
            "epoch": i,
            "val_mse": v,
            "train_loss": v,
            "epoch_time_s": seconds,
            "norm_alpha_mean": 1.5 + i,
            "images_per_s": 9.0,
            "peak_memory_mb": None,
        }
        for i, v in enumerate(val)
    ]
    alphas = [
        {"epoch": e, "layer": f"l{i}", "alpha": a, "saturated": a >= 2.0 or a <= 0.1}
        for e, row in enumerate(layers)
        for i, a in enumerate(row)
    ]
    identity = {"norm": norm or method.partition("-")[0], "seed": seed, **options}
    return {
        "path": Path(method) / f"seed{seed}",
        "method": method,
        "config": {"identity": identity},
        "log": log,
        "rate": None,
        "size": None,
        "norm_layers": alphas,
        "norm_alpha": alphas,
        "summary": status and {"seed": seed, "status": status, "val_mse": val[-1], **dict(measured)},
    }


def in_grid(method, seed, rate, last, *, size=None, status="finished", epochs=2):
    """A run of a grid that ended with a loss, as comparison.load gives it."""
    run = fabricated(method, seed, [1.0, last], lr=rate, status=status, epochs=epochs)
    run["config"]["effective_batch"] = 64
    parts = [method, *([f"n{size}"] if size else []), *([f"lr{rate}"] if rate else []), f"seed{seed}"]
    run["path"] = Path("out", *parts)
    run["config"]["data"] = {"train_images": 9469}
    rates.place_in_grid(run, Path("out"))
    return run


def write_trajectory(root, alpha, *, lr=1.5e-4, norm="LayerNorm", seed=0, epochs=6, status="finished", probes=True):
    """A trajectory.json of the kit's, its numbers a plain function of the arguments."""
    rng = np.random.default_rng([seed, int(1e6 * (alpha + 20)), int(1e7 * lr), len(norm)])
    points = []
    for epoch in range(epochs):
        point = {
            "epoch": epoch,
            "mse": round(0.4 + 0.5 / (1 + epoch) + 0.02 * rng.random(), 4),
            "accuracy": None,
            "frozen_accuracy": None,
            "knn_accuracy": None,
            "untrained_frozen_accuracy": None,
            "untrained_knn_accuracy": None,
            "alpha": alpha,
            "lr": lr,
        }
        if probes:
            point["accuracy"] = round(50 + 40 * math.tanh(alpha) + 5 * rng.random(), 1)
            point["frozen_accuracy"] = round(60 + 3 * min(epoch, 10) + 5 * rng.random(), 1)
            point["untrained_frozen_accuracy"] = 40.0 + epoch
            if epoch % 2:
                point |= {"knn_accuracy": round(65 + 5 * rng.random(), 1), "untrained_knn_accuracy": 45.0}
        points.append(point)
    head = {"alpha": alpha, "lr": lr, "model": "vit_tiny", "decoder": "base-8b", "norm": norm, "seed": seed}
    folder = root / f"{spell(alpha)}" / f"{norm}_lr{spell(lr)}_seed{seed}"
    folder.mkdir(parents=True)
    (folder / "trajectory.json").write_text(json.dumps({**head, "status": status, "trajectory": points}))
    return folder / "trajectory.json"


def write_original(root, alpha, *, lr=None, folder=None, points=((0.7, 20.0), (0.5, 30.0))):
    """A trajectory.json as the original scripts wrote it."""
    head = {"alpha": alpha, **({} if lr is None else {"lr": lr}), "model": "vit_tiny", "decoder": "base-8b"}
    file = root / (folder or str(alpha)) / "trajectory.json"
    file.parent.mkdir(parents=True)
    trajectory = [{"epoch": i, "mse": m, "accuracy": a, "alpha": alpha} for i, (m, a) in enumerate(points)]
    file.write_text(json.dumps({**head, "trajectory": trajectory}))
    return file
