#!/usr/bin/env python3
"""Milliseconds of a training step as it is run: eager, blocks compiled, as a CUDA graph, or both; crops, hidden waits, a profile.

    python benchmarks/bench_steps.py --demo                                        # on a CPU
    python benchmarks/bench_steps.py --imagenet_dir DIR --batch_sizes 64 --profile profile.txt

The model is the sweeps' (vit_tiny, base-8b), with the joint and the frozen probe. A row is printed as soon as it is known.
syncs: places of a step at which Python waits for the GPU; there should be none.
"""

import gc
import os
import tempfile
import time
import warnings
from itertools import product

from bench_train import flops_per_image, matrix_peak, ready_batches
from common import parser, report, set_up

from maekit.settings.parser import build_parser

VARIANTS = {  # name: (blocks compiled, one CUDA graph)
    "eager": (False, False),
    "compiled": (True, False),
    "graph": (False, True),
    "compiled, graph": (True, True),
}


def main():
    p = parser(__doc__)
    p.add_argument("--demo", action="store_true")
    p.add_argument("--imagenet_dir")
    p.add_argument("--model", default="vit_tiny")
    p.add_argument("--decoder_type", default="base-8b")
    p.add_argument("--batch_sizes", type=int, nargs="+", default=[512, 64])
    p.add_argument("--norms", nargs="+", default=["LayerNorm"])
    p.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--seconds", type=float, default=1000, help="no variant is begun later")
    p.add_argument("--profile", metavar="FILE", help="torch's profile of two steps of each variant")
    args = p.parse_args()
    device = set_up(args, as_train=True)
    began, rows, peak = time.perf_counter(), [], matrix_peak(device)
    for batch, norm, variant in product(args.batch_sizes, args.norms, args.variants):
        if time.perf_counter() - began > args.seconds or (device.type != "cuda" and VARIANTS[variant][1]):
            continue
        row = measure(variant, norm, batch, args, device, peak)
        print(row, flush=True)
        rows.append(row)
    report("steps", rows, args, device, peak=f"{peak / 1e12:.1f} TFLOP/s")


def measure(variant, norm, batch_size, args, device, peak):
    """A row: times of one variant's steps."""
    import torch

    compiled, graph = VARIANTS[variant]
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        job = open_job(norm, batch_size, args, device, folder, compiled, graph)
        crops = crop_ms(job, sync)
        batch = ready_batches(job, 1)[0]
        started = time.perf_counter()
        step = stepper(job, batch)
        step()
        step()
        sync()
        first = time.perf_counter() - started
        syncs = hidden_syncs(step) if device.type == "cuda" else None
        ms = milliseconds(step, args.steps, sync)
        rate = batch_size / ms * 1000
        launch = milliseconds(step, 3, lambda: None) if device.type == "cuda" else None
        sync()
        if args.profile:
            profile(step, sync, f"batch {batch_size}, {norm}, {variant}", args.profile, device)
        return {
            "batch": batch_size,
            "norm": norm,
            "variant": variant,
            "ms": ms,
            "ms of Python": launch,
            "images/s": rate,
            "of peak": f"{flops_per_image(job, device) * rate / peak:.0%}",
            "first two steps s": first,
            "crops ms": crops,
            "syncs": syncs,
            "memory MB": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        }


def open_job(norm, batch_size, args, device, folder, compiled, graph):
    import train
    from maekit.data import cache, sources
    from maekit.model import compiling
    from maekit.settings.resolution import resolve

    words = [
        "--norm",
        norm,
        "--alpha",
        "0.1",
        "--probes",
        "joint,frozen",
        "--device",
        device,
        "--output_dir",
        folder,
        "--compile",
        "on" if compiled else "off",
        "--epochs",
        1000,
    ]
    words += ["--imagenet_dir", args.imagenet_dir] if args.imagenet_dir else ["--demo"]
    if not args.demo:
        words += ["--input_size", 224, "--model", args.model, "--decoder_type", args.decoder_type]
    words += ["--batch_size", batch_size]
    run = resolve(build_parser("train.py", "").parse_args([str(word) for word in words]))
    source = cache.cached(sources.open_source(run.data, run.seed), run.data.cache, run.model.input_size, print)
    job = train.open_task(run, source)
    before, compiling.captures = compiling.captures, lambda *_: graph
    job.prepare()
    compiling.captures = before
    return job


def crop_ms(job, sync):
    """Of the crops of a batch on the device, None where they are made by workers."""
    if job.loaders.images is None:
        return None
    job.batches.order.set_epoch(0)
    batches = iter(job.batches.batches)
    batch = next(batches)
    del batches
    job.batches.move(batch)
    sync()
    return milliseconds(lambda: job.batches.move(batch), 5, sync)


def stepper(job, batch):
    """A function that does what Trainer.train_epoch does with a batch."""
    job.model.train()

    def step():
        job.gradients(batch, 0, 0)
        job.device.scaler.unscale_(job.optimizer)
        job.adapt()
        job.gradient_norms.add()
        job.device.scaler.step(job.optimizer)
        job.device.scaler.update()
        job.optimizer.zero_grad(set_to_none=True)
        job.after_step(0.0)

    return step


def milliseconds(function, n, sync):
    started = time.perf_counter()
    for _ in range(n):
        function()
    sync()
    return 1000 * (time.perf_counter() - started) / n


def hidden_syncs(step):
    """Files and lines at which a step waits for the GPU."""
    import torch

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return " ".join(sorted({f"{os.path.basename(w.filename)}:{w.lineno}" for w in seen})) or "none"


def profile(step, sync, title, path, device):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    on_gpu = device.type == "cuda"
    with profiled(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as found:
        step()
        step()
        sync()
    table = found.key_averages().table(
        sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total", row_limit=45, max_name_column_width=100
    )
    with open(path, "a", encoding="utf-8") as f:
        f.write(f"== {title}\n{table}\n")


if __name__ == "__main__":
    main()
