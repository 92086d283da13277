"""Trees of images, batches of them, and what PIL makes of the same files."""

import math

import numpy as np
import torch
from PIL import Image, ImageOps

from maekit.data import crops, loader, sources, streams
from maekit.settings.typed import DataSettings, ModelSettings, OptimSettings
from tests.support import WNIDS

SIDE = 64
MODEL = ModelSettings("mae_vit_demo_patch8", SIDE, 0.75, False, None)
COLUMNS = ("images", "labels", "noise", "index", "broken")


def open_folder(folder, max_images=None, seed=0):
    return sources.open_source(DataSettings(None if folder is None else str(folder), max_images, 0), seed)


def training(images, *, batch_size=8, accum_iter=1, seed=0, workers=0, said=None, **options):
    """(batches, BrokenImages) of training images; what is said goes to the list `said`."""
    broken = loader.BrokenImages(([] if said is None else said).append)
    optim = OptimSettings(1, batch_size, accum_iter, 1e-3, 0.0, 0.1, 0.05)
    batches = loader.train_batches(images, MODEL, optim, seed=seed, broken=broken, workers=workers, **options)
    return batches, broken


def validation(images, *, batch_size=8, workers=0, said=None, **options):
    broken = loader.BrokenImages(([] if said is None else said).append)
    return loader.val_batches(images, MODEL, batch_size=batch_size, broken=broken, workers=workers, **options), broken


def collect(batches, epoch=None):
    """All batches of one pass, concatenated."""
    if epoch is not None:
        batches.order.set_epoch(epoch)
    passed = list(batches)
    return {column: torch.cat([batch[column] for batch in passed]) for column in COLUMNS}


def equal(a, b):
    return all(torch.equal(a[column], b[column]) for column in COLUMNS)


def save_image(path, rng, side=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    blocks.resize((side, side + 6), Image.BILINEAR).save(path, quality=95)


def write_folders(root, *, train=4, val=2, classes=("ant", "bee", "cat"), side=24):
    """Plain train/ and val/ class folders of small images; `train` and `val` are images of a class."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        for name in classes:
            for i in range(n):
                save_image(root / split / name / f"{name}_{i:03d}.JPEG", rng, side)
    return root


def write_annotated(root):
    """An ILSVRC tree whose flat validation images have XML annotations and no table; {stem: wnid}."""
    rng, wnids = np.random.default_rng(1), {}
    for i in range(9):
        save_image(root / "Data" / "CLS-LOC" / "train" / WNIDS[i % 3] / f"{WNIDS[i % 3]}_{i}.JPEG", rng, 90)
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    annotations.mkdir(parents=True)
    for i in range(7):
        stem = f"ILSVRC2012_val_{i + 1:08d}"
        wnids[stem] = WNIDS[(i * 2 + 1) % 3]
        save_image(root / "Data" / "CLS-LOC" / "val" / f"{stem}.JPEG", rng, 90)
        (annotations / f"{stem}.xml").write_text(
            f"<annotation><folder>val</folder><filename>{stem}</filename><size><width>90</width></size>\n"
            f"<object><name>{wnids[stem]}</name><bndbox><xmin>1</xmin></bndbox></object>\n"
            f"<object><name>{WNIDS[0]}</name></object></annotation>\n"
        )
    return wnids


def center_crop_by_pil(file):
    """The validation image: shorter side to 256/224 of the input size, then the middle."""
    image = Image.open(file).convert("RGB")
    short = round(SIDE * 256 / 224)
    scale = short / min(image.size)
    width, height = (short if side == min(image.size) else int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.BICUBIC)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


def random_crop_by_pil(file, seed, epoch, index):
    """The training image, its mask noise, and whether it is flipped, from the generator of (seed, epoch, index)."""
    image = Image.open(file).convert("RGB")
    rng = streams.generator(streams.CROP, seed, epoch, index)
    top, left, height, width = crops.random_resized_crop_box(rng, image.height, image.width)
    flip = rng.random() < 0.5
    image = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.BICUBIC)
    noise = rng.random(MODEL.patches, dtype=np.float32)
    return np.asarray(ImageOps.mirror(image) if flip else image), noise, flip


def by_pil(store, index, box, flip, side):
    """A crop by PIL: the pixels that the box touches, and of them the box."""
    pixels = store.picture(index).pixels
    top, left, height, width = box
    y, x = math.floor(top), math.floor(left)
    touched = np.ascontiguousarray(pixels[y : math.ceil(top + height), x : math.ceil(left + width)])
    right, bottom = min(left - x + width, touched.shape[1]), min(top - y + height, touched.shape[0])
    crop = Image.fromarray(touched).resize((side, side), Image.BICUBIC, box=(left - x, top - y, right, bottom))
    found = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
    return found.flip(2) if flip else found
