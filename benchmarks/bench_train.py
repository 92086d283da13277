#!/usr/bin/env python3
"""Training steps per second: this kit's loop against upstream's, the same model on the same batches, in turn.

    python benchmarks/bench_train.py --mae_dir mae                        # demo model and ViT-Tiny on a CPU; ViT-B on a GPU
    python benchmarks/bench_train.py --mae_dir mae --imagenet_dir /data/ILSVRC --with_data

upstream is engine_pretrain.train_one_epoch of a patched clone with its optimizer and its scaler, on its own model, on a CPU in a
process of its own, whose threads and memory are as its script has them; without a clone it is left out. Batches lie ready in
memory, on a GPU in its memory; --with_data measures image files to trained weights instead, each side with its own loader. peak:
FLOP/s of the model, without what is computed again, over those of a large matrix product.
"""

import contextlib
import io
import os
import tempfile
from functools import partial
from types import SimpleNamespace

from common import Apart, in_turn, parser, report, set_up

from maekit.settings.architectures import architecture
from maekit.settings.parser import build_parser

ON_CPU = (
    {"model": "enc96d4h3p8", "decoder_type": "dec64d2h2", "batch_size": 64, "steps": 8},
    {"model": "vit_tiny", "batch_size": 8, "steps": 1},
)
ON_GPU = (
    {"model": "vit_base", "batch_size": 256, "steps": 8},
    {"model": "vit_tiny", "decoder_type": "base-8b", "batch_size": 64, "steps": 32},
    {"model": "vit_tiny", "decoder_type": "base-8b", "batch_size": 512, "steps": 8},
)


def main():
    p = parser(__doc__)
    p.add_argument("--mae_dir", help="upstream's clone; default: mae beside the scripts, if it is there")
    p.add_argument("--model", help="one model instead of the usual ones")
    p.add_argument("--cases", type=int, help="how many of the usual ones; default: all")
    p.add_argument("--decoder_type")
    p.add_argument("--batch_size", type=int, default=64)
    p.add_argument("--norms", nargs="+", default=["LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"])
    p.add_argument("--steps", type=int, default=8, help="optimizer steps of one measurement with --model")
    p.add_argument("--seconds", type=float, default=10, help="for each row")
    p.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    p.add_argument("--with_data", action="store_true", help="decoding, cropping and loading included")
    p.add_argument("--imagenet_dir", help="images of --with_data; default: the demo's")
    p.add_argument("--num_workers", type=int, default=0)
    args = p.parse_args()
    device = set_up(args, as_train=True)
    from maekit.model import upstream

    clone = upstream.find(args.mae_dir)
    if clone is None:
        print("no clone of upstream: it is left out. Name one with --mae_dir.")
    else:
        clone = clone.ensure_patched()
    chosen = ON_GPU if device.type == "cuda" else ON_CPU
    if args.model:
        chosen = [
            {"model": args.model, "decoder_type": args.decoder_type, "batch_size": args.batch_size, "steps": args.steps}
        ]
    chosen = chosen[: args.cases]
    peak = matrix_peak(device)
    rows = []
    for case in chosen:
        for row in compare(case, args, device, clone, peak):
            rows.append(row)
            print(row, flush=True)
    report("train", rows, args, device, peak=f"{peak / 1e12:.1f} TFLOP/s", with_data=args.with_data)


def compare(case, args, device, clone, peak):
    """Rows of one model: upstream, and ours with each norm."""
    import torch

    import train

    torch._dynamo.reset()  # what is compiled for one model counts against the next one's limit
    epochs, jobs, memory = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for norm in args.norms:
            run = settings_of(case, args, device, norm, folder)
            before = allocated(device)
            jobs[norm] = job = open_job(run, train)
            if args.with_data:
                epochs[norm] = partial(our_epoch, job, None)
            else:
                epochs[norm] = partial(our_epoch, job, ready_batches(job, case["steps"]))
            memory[norm] = peak_memory(epochs[norm], device, before)
        if clone is not None and device.type == "cpu":
            epochs["upstream"], memory["upstream"] = Apart(upstreams_own, case, args, device, folder), None
        elif clone is not None:
            run = settings_of(case, args, device, "LayerNorm", folder)
            before = allocated(device)
            epochs["upstream"] = upstreams_epoch(run, jobs[args.norms[0]], args, clone, case["steps"])
            memory["upstream"] = peak_memory(epochs["upstream"], device, before)
        seconds = in_turn(epochs, device, args.seconds, least=3)
        images = case["steps"] * case["batch_size"]
        if args.with_data:
            images = len(jobs[args.norms[0]].batches) * case["batch_size"]
        flops = flops_per_image(jobs[args.norms[0]], device)
    for name in epochs:
        yield {
            "model": case["model"] + (f", {case['decoder_type']}" if case.get("decoder_type") else ""),
            "batch": case["batch_size"],
            "loop": name if name == "upstream" else f"kit, {name}",
            "images/s": images / seconds[name],
            "of upstream": seconds["upstream"] / seconds[name] if "upstream" in seconds else None,
            "peak": f"{flops * images / seconds[name] / peak:.0%}",
            "memory MB": memory[name],
        }


def settings_of(case, args, device, norm, folder):
    from maekit.settings.resolution import resolve

    words = [
        "--norm",
        norm,
        "--num_workers",
        args.num_workers,
        "--device",
        device,
        "--output_dir",
        folder,
        "--compile",
        args.compile,
    ]
    words += ["--imagenet_dir", args.imagenet_dir] if args.imagenet_dir else ["--demo"]
    words += ["--input_size", 64 if architecture(case["model"]).patch == 8 else 224, "--epochs", 10_000]
    for name in ("model", "decoder_type", "batch_size"):
        words += [f"--{name}", case[name]] if case.get(name) is not None else []
    return resolve(build_parser("train.py", "").parse_args([str(word) for word in words]))


def open_job(run, train):
    from maekit.data import cache, sources

    source = cache.cached(sources.open_source(run.data, run.seed), run.data.cache, run.model.input_size, lambda _: None)
    job = train.open_task(run, source)
    job.prepare()
    return job


def ready_batches(job, n):
    """n batches as the loader makes them, in the device's memory."""
    import torch

    size, batch = job.run.model.input_size, job.run.optim.batch_size
    generator = torch.Generator().manual_seed(0)
    made = {
        "images": torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8),
        "labels": torch.zeros(batch, dtype=torch.int64),
        "noise": torch.rand(batch, job.run.model.patches, generator=generator),
    }
    batches = Ready([{name: tensor.to(job.device.torch) for name, tensor in made.items()}] * n)
    return batches


class Ready(list):
    """Batches that need no loading."""

    order = SimpleNamespace(set_epoch=lambda epoch, first=0: None)


def our_epoch(job, batches):
    from maekit.training.trainer import Trainer

    if batches is not None:
        job.batches = batches
    bar = SimpleNamespace(mininterval=60, update=lambda images: None)
    row = Trainer(job, bar=bar).train_epoch(0)
    assert row["train_loss"] == row["train_loss"], "the loss is not finite"


def upstreams_own(case, args, device, folder):
    """upstreams_epoch in a fresh process."""
    set_up(args)
    import train
    from maekit.model import upstream

    run = settings_of(case, args, device, "LayerNorm", folder)
    clone = upstream.find(args.mae_dir).ensure_patched()
    return upstreams_epoch(run, open_job(run, train), args, clone, case["steps"])


def upstreams_epoch(run, job, args, clone, steps):
    """A function that trains one epoch by upstream's engine on upstream's model, as its main_pretrain.py sets them up."""
    import torch
    from timm.optim import param_groups_weight_decay

    from maekit.model.mae import build_mae

    module = clone.module()
    import engine_pretrain
    from util.misc import NativeScalerWithGradNormCount

    device = job.device.torch
    mae = build_mae(
        run.model.name, img_size=run.model.input_size, decoder_type=run.model.decoder_type, upstream=module
    ).to(device)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=run.optim.lr, betas=(0.9, 0.95))
    settings = SimpleNamespace(
        accum_iter=1,
        mask_ratio=0.75,
        lr=run.optim.lr,
        min_lr=0.0,
        warmup_epochs=run.optim.warmup_epochs,
        epochs=run.optim.epochs,
    )
    batches = (
        upstreams_loader(run, job, args)
        if args.with_data
        else [(job.pixels.normalize(batch["images"]), batch["labels"]) for batch in ready_batches(job, steps)]
    )

    def epoch():
        scaler = NativeScalerWithGradNormCount(device)
        with contextlib.redirect_stdout(io.StringIO()):
            engine_pretrain.train_one_epoch(mae, batches, optimizer, device, 0, scaler, args=settings)

    return epoch


def upstreams_loader(run, job, args):
    """Upstream's transform and loader of main_pretrain.py on the same images."""
    import torch
    from torchvision import datasets, transforms

    from maekit.data.pixels import IMAGENET_MEAN, IMAGENET_STD

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(run.model.input_size, scale=(0.2, 1.0), interpolation=3),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(os.path.join(job.source.train.root), transform=transform)
    return torch.utils.data.DataLoader(
        images,
        batch_size=run.optim.batch_size,
        shuffle=True,
        num_workers=args.num_workers,
        pin_memory=job.device.torch.type == "cuda",
        drop_last=True,
    )


def flops_per_image(job, device):
    """Of a forward and a backward pass of the model, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    size = job.run.model.input_size
    mae = job.build().to(device)  # not the compiled one
    images = torch.randn(2, 3, size, size, device=device)
    with FlopCounterMode(display=False) as counter:
        mae(images, 0.75)[0].backward()
    return counter.get_total_flops() / 2


def matrix_peak(device):
    """FLOP/s of a large matrix product in the precision of the training."""
    import torch

    n, dtype, times = (8192, torch.bfloat16, 20) if device.type == "cuda" else (2048, torch.float32, 1)
    a, into = torch.randn(2, n, n, device=device, dtype=dtype)

    def products():  # several, so that what Python takes for one does not count
        for _ in range(times):
            torch.mm(a, a, out=into)

    return 2 * n**3 * times / in_turn({"products": products}, device, 2)["products"]


def allocated(device):
    """Bytes of a GPU's memory that are in use; 0 elsewhere."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(epoch, device, before):
    """MB on a GPU that a variant takes, weights, optimizer and batches included; `before` it was made that many bytes were.

    None elsewhere, where all variants share a process.
    """
    if device.type != "cuda":
        return None
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    epoch()  # compiles, makes what the optimizer keeps and the CUDA graph, whose memory counts when it is made
    epoch()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


if __name__ == "__main__":
    main()
