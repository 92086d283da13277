"""Crops made on a device are those that PIL makes of the same boxes. The device is the CPU here."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maekit.data import cache, decoding, loader, resident, sources
from maekit.data.datasets import TrainImages, ValImages
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.settings.typed import DataSettings, ModelSettings
from maekit.training.trainer import Trainer
from tests import support
from tests.support.batches import by_pil


@pytest.fixture(scope="module")
def demo_source(demo_dir, tmp_path_factory):
    source = sources.open_source(DataSettings(str(demo_dir), None, 0), seed=0)
    return cache.cached(source, str(tmp_path_factory.mktemp("cache")), 64, lambda _: None)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_crops_are_pils_to_rounding(demo_source, side):
    """Enlarged and reduced, mirrored and not, of several chunks, boxes between pixels and at the edges."""
    rng = np.random.default_rng(side)
    store = demo_source.train.store
    index = rng.integers(len(demo_source.train), size=100)
    sizes = store.stored[index].astype(float)
    aspects = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), size=(100, 1)) * [[0.5, -0.5]])
    lengths = np.minimum(sizes.min(axis=1, keepdims=True) * rng.uniform(0.45, 1, size=(100, 1)) * aspects, sizes)
    corners = (sizes - lengths) * rng.choice([0, 0.3, 1], size=(100, 2))
    boxes = np.concatenate([corners, lengths], axis=1)
    flips = rng.random(100) < 0.5
    found = resident.ResidentImages(store, torch.device("cpu")).crop(
        torch.from_numpy(index), torch.from_numpy(boxes), torch.from_numpy(flips), side
    )
    assert found.dtype == torch.uint8 and found.shape == (100, 3, side, side)
    expected = torch.stack([by_pil(store, *each, side) for each in zip(index, boxes, flips)])
    levels = (found.float() - expected.float()).abs()
    per_crop = levels.mean(dim=(1, 2, 3))
    assert per_crop.median() < 0.01 and levels.mean() < 0.1, (per_crop.median(), levels.mean())
    assert levels.max() <= 6  # where PIL resizes the columns first, it rounds other values in between


@pytest.mark.parametrize("side", [64, 160, 224])
def test_middles_are_those_of_the_cpu(demo_source, side):
    """Of whole images, and of ones that are stored reduced."""
    short = round(side * 256 / 224)
    for source in (demo_source.val, demo_source.train):
        index = torch.arange(0, len(source), len(source) // 12)
        store = source.store
        for factor in (1, 3):
            reduced = SimpleNamespace(
                path=store.path, stored=store.stored, original=store.original * factor, offsets=store.offsets
            )
            found = resident.ResidentImages(reduced, torch.device("cpu")).center_crop(index, short, side)
            pictures = [
                decoding.Picture(store.picture(i).pixels, *(store.original[i] * factor).tolist()) for i in index
            ]
            expected = torch.stack([picture.center_crop(short, side) for picture in pictures])
            levels = (found.float() - expected.float()).abs()
            assert levels.mean() < 0.1 and levels.max() <= 6, (side, factor, levels.mean(), levels.max())


def test_batches_that_are_kept_are_those_of_the_cpu(demo_source, monkeypatch):
    """Made on the device or by the CPU, at the first pass alone."""
    model = SimpleNamespace(input_size=64, patches=64)

    class Products:
        @staticmethod
        def crops(pixels, whole, exact, rows, taps, side):
            columns = int((whole[:, 5] - whole[:, 3]).max())
            return resident.ResidentImages._crop(SimpleNamespace(pixels=pixels), whole, exact, rows, columns, side)

    def batches():
        broken = loader.BrokenImages(print)
        return loader.val_batches(demo_source.val, model, batch_size=64, broken=broken, workers=0, with_labels=True)

    expected = list(batches())
    for kernels in (Products, None):
        with monkeypatch.context() as patch:
            patch.setattr(resident, "_kernels", lambda device, kernels=kernels: kernels)
            there = resident.ResidentImages(demo_source.val.store, torch.device("cpu"))
            kept = resident.KeptBatches(batches(), torch.device("cpu"), there)
            found = list(kept)
            patch.setattr(ValImages, "__getitem__", None)
            again = list(kept)
        assert len(found) == len(again) == len(kept) == len(expected) == 4
        for ours, same, theirs in zip(found, again, expected):
            assert all(torch.equal(ours[name], theirs[name]) for name in ("labels", "noise", "index"))
            assert all(ours[name] is same[name] for name in ours)
            assert (ours["images"].float() - theirs["images"].float()).abs().mean() < (0.1 if kernels else 1e-9)


def test_an_image_without_pixels_on_the_device_is_broken_there_though_its_file_is_whole(demo_source):
    """It was unreadable when the cache was made: another one is taken in its place, and not a black square."""
    store = demo_source.train.store
    stored = store.stored.copy()
    stored[5] = 0
    images = cache.CachedImages(
        demo_source.train.images, cache.Store(store.path, stored, store.original, store.offsets)
    )
    plain, boxed = (TrainImages(images, 64, 64, 0, boxes_only=only)[0, 5] for only in (False, True))
    assert plain["index"] == 5 and plain["broken"] == -1
    assert boxed["index"] != 5 and boxed["broken"] == 5


def test_a_batch_has_the_boxes_of_the_images_it_would_have(demo_source):
    model = ModelSettings("mae_vit_demo_patch8", 64, 0.75, False, None)
    plain, boxed = (
        TrainImages(demo_source.train, 64, model.patches, seed=3, with_labels=True, boxes_only=only)
        for only in (False, True)
    )
    store = demo_source.train.store
    for key in ((0, 5), (1, 5), (0, 700)):
        expected, found = plain[key], boxed[key]
        assert "images" not in found
        assert all(found[name] == expected[name] for name in ("labels", "index", "broken"))
        assert torch.equal(found["noise"], expected["noise"])
        crop = by_pil(store, found["index"], found["place"].tolist(), found["mirrored"], 64)
        assert torch.equal(crop, expected["images"])  # stored whole, and this small: by PIL from the same box


@pytest.mark.slow
def test_a_run_with_resident_images_is_nearly_the_run_without(tmp_path, monkeypatch):
    """Pre-training and linear probing, as on a GPU: losses differ by the rounding of the crops."""

    def losses(*flags):
        run = resolve(
            build_parser("", "").parse_args(
                [
                    "--demo",
                    "--max_images",
                    "64",
                    "--batch_size",
                    "16",
                    "--num_workers",
                    "0",
                    "--output_dir",
                    str(tmp_path),
                    *flags,
                ]
            )
        )
        source = cache.cached(sources.open_source(run.data, run.seed), str(tmp_path / "cache"), 64, lambda _: None)
        job = support.train_module.open_task(run, source)
        job.prepare()
        bar = type("Bar", (), {"mininterval": 60, "update": lambda self, n: None})()
        return job, [Trainer(job, bar=bar).train_epoch(epoch)["train_loss"] for epoch in range(2)]

    for flags in (("--norm", "dyt", "--probes", "frozen"), ("--task", "linprobe", "--init", "untrained")):
        with monkeypatch.context() as patch:
            patch.setattr(resident, "place", lambda images, device, _: resident.ResidentImages(images.store, device))
            job, on_device = losses(*flags)
            assert job.loaders.images is not None and job.batches.dataset.boxes_only
        job, plain = losses(*flags)
        assert job.loaders.images is None
        assert on_device == pytest.approx(plain, rel=2e-3) and on_device != plain


def test_images_live_on_a_gpu_alone_and_only_where_they_fit(demo_source, monkeypatch):
    assert resident.place(demo_source.train, torch.device("cpu")) is None
    made = []
    monkeypatch.setattr(resident, "ResidentImages", lambda store, device: made.append(device) or store)
    n_bytes = int(demo_source.train.store.offsets[-1])
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * n_bytes - 1, 0))
    assert resident.place(demo_source.train, gpu) is None and not made
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * n_bytes, 0))
    assert resident.place(demo_source.train, gpu) is demo_source.train.store and made == [gpu]
    assert resident.place(demo_source.train.images, gpu) is None  # no cache
    assert resident.place(demo_source.train, gpu, "off") is None and made == [gpu]


def test_validation_images_stay_in_memory_where_they_fit(demo_source, monkeypatch):
    model = SimpleNamespace(input_size=64, patches=64)
    batches = loader.val_batches(demo_source.val, model, batch_size=64, broken=loader.BrokenImages(print), workers=0)
    cpu, gpu, there, n_bytes = torch.device("cpu"), torch.device("cuda"), object(), 4 * 64 * 3 * 64**2  # four batches
    kept = resident.keep(batches, cpu)
    assert resident.keep(batches, cpu, None, "off") is batches
    assert all(same(*pair) for _ in range(2) for pair in zip(kept, batches, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.data.DataLoader, "__iter__", None)  # the third time nothing is read
        assert len(list(kept)) == 4
    monkeypatch.setattr(resident, "MOST_CROPS", n_bytes - 1)
    assert resident.keep(batches, cpu) is batches
    monkeypatch.setattr(resident, "MOST_CROPS", n_bytes)
    assert isinstance(resident.keep(batches, cpu), resident.KeptBatches)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * n_bytes - 1, 0))
    assert resident.keep(batches, gpu, there) is batches
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * n_bytes, 0))
    kept = resident.keep(batches, gpu, there)
    assert resident.keep(batches, gpu, there, "off") is batches
    assert isinstance(kept, resident.KeptBatches) and kept.images is there and kept.device == gpu and len(kept) == 4


def same(one, other):
    """Whether two batches have the same values."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_reduced_images_are_cropped_at_the_boxes_of_their_originals():
    picture = decoding.Picture(np.zeros((100, 200, 3), np.uint8), 300, 600)
    assert picture.stored_box(30, 60, 150, 300) == pytest.approx((10, 20, 50, 100))


INTERPRETED = """
import sys
import numpy as np, torch
from types import SimpleNamespace
from maekit.data import resampling, resident
rng = np.random.default_rng(0)
sizes = rng.integers(8, 24, size=(6, 2))
offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * 3)])
rng.integers(0, 256, size=offsets[-1], dtype=np.uint8).tofile(sys.argv[1])
store = SimpleNamespace(path=sys.argv[1], stored=sizes, original=sizes, offsets=offsets)
images = resident.ResidentImages(store, torch.device("cpu"))
index = torch.from_numpy(rng.integers(6, size=5))
lengths = sizes[index] * rng.uniform(0.3, 1, size=(5, 2))
corners = (sizes[index] - lengths) * rng.choice([0, 0.3, 1], size=(5, 2))
boxes, flips = torch.from_numpy(np.concatenate([corners, lengths], axis=1)), torch.from_numpy(rng.random(5) < 0.5)
for side in (5, 20):
    products = images.crop(index, boxes, flips, side)
    images.kernels = resampling
    kernels = images.crop(index, boxes, flips, side)
    images.kernels = None
    levels = (products.float() - kernels.float()).abs()
    assert kernels.dtype == torch.uint8 and levels.max() <= 1 and (levels > 0).float().mean() < 1e-3, (side, levels.max(), (levels > 0).float().mean())
"""


@pytest.mark.slow
def test_the_kernels_crops_are_those_of_the_products(tmp_path):
    """In Triton's interpreter: boxes between pixels and at the edges, mirrored, reduced and enlarged."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(support.KIT)}
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path / "pixels")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kernels_compile():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maekit.data import resampling

    kinds = {"pixels": "*u8", "whole": "*i64", "exact": "*fp32", "half": "*u8", "crops": "*u8", "PLACES": "constexpr"}
    for kernel in (resampling._across_kernel, resampling._down_kernel):
        signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
        for capability in (80, 90):
            source = ASTSource(kernel, signature, {"PLACES": resampling.PLACES})
            assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
