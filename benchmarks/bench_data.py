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

import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from common import parser, report
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from maekit.data import cache, demo, loader, sources
from maekit.data.datasets import TrainImages
from maekit.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from maekit.settings.typed import DataSettings, ModelSettings, OptimSettings

SIDE, BATCH = 224, 64
PIPELINES = ("upstream", "fresh", "cached")
MODEL = ModelSettings("mae_vit_base_patch16", SIDE, 0.75, False, None)


def main():
    p = parser(__doc__)
    p.add_argument("--imagenet_dir", metavar="DIR", help="ILSVRC folder, or one with train/ and val/")
    p.add_argument("--images", type=int, default=640, metavar="N", help="of the training images (default: 640)")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each pipeline (default: 5)")
    args = p.parse_args()
    if args.images < BATCH or args.rounds < 1:
        p.error(f"--images {args.images} --rounds {args.rounds}: at least a batch of {BATCH} images and a round")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.imagenet_dir or write_photographs(Path(scratch, "images"), args.images)
        source = sources.open_source(DataSettings(str(folder), args.images, 0), seed=0)
        started = time.perf_counter()
        stored = cache.cached(source, str(Path(scratch, "cache")), SIDE, lambda _: None)
        building = (len(source.train) + len(source.val)) / (time.perf_counter() - started)
        rows = measure(source.train, stored.train, args.rounds)
        difference, reduced = differences(source.train, stored.train)
        report(
            "data",
            rows,
            args,
            torch.device("cpu"),
            data=describe(args.imagenet_dir, stored.train.store),
            images=len(source.train),
            rounds=args.rounds,
            **{
                "images reduced in the cache": reduced,
                "cached crops differ from fresh ones by (levels of 255)": round(difference, 2),
                "building the cache, images/s, all cores": round(building),
            },
        )


def describe(folder, store):
    """Whose images they are, and how large."""
    height, width = np.median(store.original, axis=0).astype(int)
    return f"{'JPEGs of --imagenet_dir' if folder else 'photographs of scikit-image'}, median {width} x {height}"


def measure(images, stored, rounds):
    """A row per pipeline: images/s, and how many times upstream's that is, medians over the rounds."""
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
    rows = []
    for name, values in speeds.items():
        ratios = [own / theirs for own, theirs in zip(values, speeds["upstream"])]
        rows.append(
            {
                "pipeline": name,
                "images/s of a core": statistics.median(values),
                "of upstream": statistics.median(ratios),
            }
        )
    return rows


def differences(images, stored):
    """Mean absolute difference, in levels of 255, of crops from the cache and crops of the same boxes of fresh images; and
    how many images are reduced in the cache."""
    fresh, cached = (TrainImages(each, SIDE, MODEL.patches, seed=0) for each in (images, stored))
    levels = [
        (fresh[0, i]["images"].float() - cached[0, i]["images"].float()).abs().mean().item() for i in range(len(images))
    ]
    return float(np.mean(levels)), int((stored.store.stored != stored.store.original).any(axis=1).sum())


def upstream_batches(images):
    """Upstream's loader, main_pretrain.py, of the same images."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ]
    )
    dataset = ImageFolder(images.root, transform)
    number = {path: i for i, (path, _) in enumerate(dataset.samples)}
    chosen = [number[images.file(i)] for i in range(len(images))]
    return DataLoader(Subset(dataset, chosen), batch_size=BATCH, shuffle=True, drop_last=True)


def our_batches(images):
    optim = OptimSettings(1, BATCH, 1, 1e-3, 0.0, 0.0, 0.0)
    return loader.train_batches(images, MODEL, optim, seed=0, broken=loader.BrokenImages(print), workers=0)


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


if __name__ == "__main__":
    main()
