#!/usr/bin/env python3
"""Images per second that one core brings from JPEG files to batches: upstream's pipeline, ours fresh, ours from the cache.

    python benchmarks/bench_data.py --imagenet_dir /data/ILSVRC --json data.json
    python benchmarks/bench_data.py                                  photographs of scikit-image, as 500 x 375 JPEGs

Upstream's is main_pretrain.py's: ImageFolder, PIL, RandomResizedCrop(224, scale=(0.2, 1), bicubic), flip, ToTensor,
Normalize. Ours are TrainImages: the same crops as uint8, which are normalised on the device. All three read the same
images in batches of 64, in turns, in this process and one thread; what is printed is the median over the rounds. Seconds
are those of the processor, so that what else runs on the machine matters little: read the files once before, that no
disk is waited for.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from maekit import cache, data, demo, files, settings, sources
from maekit.settings import DataSettings, ModelSettings, OptimSettings

SIDE, BATCH = 224, 64
PIPELINES = ("upstream", "fresh", "cached")
MODEL = ModelSettings("mae_vit_base_patch16", SIDE, 0.75, False, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet_dir", metavar="DIR", help="ILSVRC folder, or one with train/ and val/")
    parser.add_argument("--images", type=int, default=640, metavar="N", help="of the training images (default: 640)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each pipeline (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write what is printed there")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.imagenet_dir or write_photographs(Path(scratch, "images"), args.images)
        source = sources.open_source(DataSettings(str(folder), args.images, 0), seed=0)
        started = time.perf_counter()
        stored = cache.cached(source, str(Path(scratch, "cache")), SIDE, lambda _: None)
        building = time.perf_counter() - started
        table = {
            "machine": machine(),
            "data": describe(args.imagenet_dir, stored.train.store),
            "images": len(source.train),
            "rounds": args.rounds,
            **measure(source.train, stored.train, args.rounds),
            **difference(source.train, stored.train),
            "building the cache, images/s, all cores": (len(source.train) + len(source.val)) / building,
        }
    for name, value in table.items():
        print(f"{name:45} {value:.2f}" if isinstance(value, float) else f"{name:45} {value}")
    if args.json:
        files.write_json(args.json, table)


def describe(folder, store):
    """Whose images they are, and how large."""
    height, width = np.median(store.original, axis=0).astype(int)
    return f"{'JPEGs of --imagenet_dir' if folder else 'photographs of scikit-image'}, median {width} x {height}"


def measure(images, stored, rounds):
    """Images/s of each pipeline and how many times upstream's that is, medians over the rounds."""
    pipelines = dict(zip(PIPELINES, (upstream_batches(images), our_batches(images), our_batches(stored))))
    speeds = {name: [] for name in pipelines}
    for turn in range(rounds + 1):  # one to warm up
        for name, batches in pipelines.items():
            started, n = time.process_time(), 0
            if name != "upstream":
                batches.order.set_epoch(turn)
            for batch in batches:
                n += len(batch["images"] if name != "upstream" else batch[0])
            if turn:
                speeds[name].append(n / (time.process_time() - started))
    table = {f"{name}, images/s": statistics.median(values) for name, values in speeds.items()}
    for name in PIPELINES[1:]:
        ratios = [own / theirs for own, theirs in zip(speeds[name], speeds["upstream"])]
        table[f"{name} / upstream"] = statistics.median(ratios)
    return table


def difference(images, stored):
    """Mean absolute difference, in levels of 255, of crops from the cache and crops of the same boxes of fresh images."""
    fresh, cached = (data.TrainImages(each, SIDE, MODEL.patches, seed=0) for each in (images, stored))
    reduced = np.flatnonzero((stored.store.stored != stored.store.original).any(axis=1))
    levels = np.array([
        (fresh[0, i]["images"].float() - cached[0, i]["images"].float()).abs().mean().item() for i in range(len(images))
    ])  # fmt: skip
    return {
        "reduced images": len(reduced),
        "difference, levels of 255": float(levels.mean()),
        "difference of reduced images": float(levels[reduced].mean()) if len(reduced) else 0.0,
    }


def upstream_batches(images):
    """Upstream's loader, main_pretrain.py, of the same images."""
    transform = transforms.Compose([
        transforms.RandomResizedCrop(SIDE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD),
    ])  # fmt: skip
    dataset = ImageFolder(images.root, transform)
    number = {path: i for i, (path, _) in enumerate(dataset.samples)}
    chosen = [number[images.file(i)] for i in range(len(images))]
    return DataLoader(Subset(dataset, chosen), batch_size=BATCH, shuffle=True, drop_last=True)


def our_batches(images):
    optim = OptimSettings(1, BATCH, 1, 1e-3, 0.0, 0.0, 0.0)
    return data.train_batches(images, MODEL, optim, seed=0, broken=data.BrokenImages(print), workers=0)


def write_photographs(folder, n_images):
    """train/ and val/ of 500 x 375 JPEGs, cut from scikit-image's photographs at random; the folder."""
    rng = np.random.default_rng(0)
    photos = [Image.open(demo.photograph(name)).convert("RGB") for name in demo.PHOTOGRAPHS]
    for i in range(n_images + 2):
        photo = photos[i % len(photos)]
        scale = min(photo.width / 500, photo.height / 375) * rng.uniform(0.7, 1)
        width, height = int(500 * scale), int(375 * scale)
        x, y = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        file = folder / ("train" if i < n_images else "val") / f"class{i % 2}" / f"{i}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((x, y, x + width, y + height)).resize((500, 375), Image.BICUBIC).save(file, quality=92)
    return folder


def machine():
    """Processor, cores and versions, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return (
        f"{model}, {settings.available_cores()} cores, {platform.system()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    )


if __name__ == "__main__":
    main()
