"""Validation: mean loss, trivial baselines, reconstructions and their quality."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from maekit.data import loader, sources
from maekit.data.pixels import Pixels
from maekit.model.mae import build_mae
from maekit.model.patches import hidden_patches
from maekit.probes.joint import JointMAE, JointProbe
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.settings.typed import DataSettings, ModelSettings
from maekit.training import validation
from maekit.training.device import Device
from train import open_task

SIDE, PATCH, RATIO = 64, 8, 0.75
GRID = SIDE // PATCH
MODEL = ModelSettings("mae_vit_demo_patch8", SIDE, RATIO, False, None)
CPU = Device("cpu", "float32")
PIXELS = Pixels(CPU.torch)


@pytest.fixture(scope="module")
def images(demo_dir):
    """Ten validation photographs, one of each class."""
    source = sources.open_source(DataSettings(str(demo_dir), None, 0), 0)
    return source.val.subset(np.arange(5, 200, 20))


def batches(images, batch_size=4):
    broken = loader.BrokenImages(print)
    return loader.val_batches(images, MODEL, batch_size=batch_size, broken=broken, workers=0)


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "norm_pix_loss"])
def mae(request):
    torch.manual_seed(0)
    return build_mae(MODEL.name, img_size=SIDE, norm_pix_loss=request.param)


def samples(images):
    """(normalised image (3, H, W), pixels that are hidden (H, W)) of every image, by numpy."""
    dataset = batches(images).dataset
    for i in range(len(images)):
        sample = dataset[i]
        image = sample["images"].numpy() / 255
        image = (image - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
        hidden = np.ones(GRID * GRID, dtype=bool)
        hidden[np.argsort(sample["noise"].numpy())[: int(GRID * GRID * (1 - RATIO))]] = False
        yield image, np.kron(hidden.reshape(GRID, GRID), np.ones((PATCH, PATCH), dtype=bool))


# Loss


def val_mse(mae, batches, device=CPU):
    model = JointMAE(mae)
    measure = partial(validation.measured, model, {}, device, PIXELS, RATIO)
    means, accuracies = validation.validate(batches, measure, device)
    assert list(means) == ["val_mse"] and not accuracies  # where there is no probe
    return means["val_mse"]


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_the_validation_loss_is_the_mean_over_images_however_they_are_batched(mae, images, batch_size):
    losses = []
    with torch.no_grad():
        for i in range(len(images)):
            sample = batches(images).dataset[i]
            image = PIXELS.normalize(sample["images"][None])
            losses.append(mae(image, RATIO, sample["noise"][None])[0].item())
    assert len(losses) % 4  # the last batch of four is not full
    loss = val_mse(mae, batches(images, batch_size))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("alpha", [-10.0, 0.0, 0.5])
def test_the_validation_loss_is_of_reconstruction_alone_whatever_alpha(alpha, mae, images):
    broken = loader.BrokenImages(print)
    labelled = loader.val_batches(images, MODEL, batch_size=4, broken=broken, workers=0, with_labels=True)
    model = JointMAE(mae, alpha, classes=10)
    measure = partial(validation.measured, model, {"joint": JointProbe(model)}, CPU, PIXELS, RATIO)
    means, accuracies = validation.validate(labelled, measure, CPU)
    assert means["val_mse"] == val_mse(mae, batches(images)) and 0 <= accuracies["accuracy"] <= 100


def test_small_losses_count_after_a_large_one():
    """In float32 2^24 + 1 is 2^24."""
    losses = iter([2.0**24, 1.0, 1.0, 1.0])
    batch = {name: torch.zeros(1) for name in ("images", "noise", "labels")}

    def measure(*_):
        return {"val_mse": torch.tensor(next(losses))}, {}

    assert validation.validate([batch] * 4, measure, CPU) == ({"val_mse": (2**24 + 3) / 4}, {})


def test_validation_is_repeatable_whatever_the_global_seed(mae, images):
    losses = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.add(val_mse(mae, batches(images)))
    assert len(losses) == 1


def test_validation_works_in_bfloat16(mae, images):
    exact = val_mse(mae, batches(images))
    assert val_mse(mae, batches(images), Device("cpu", "bfloat16")) == pytest.approx(exact, rel=0.02)


def test_a_loss_that_is_not_finite_is_returned_not_raised(images):
    mae = build_mae(MODEL.name, img_size=SIDE)
    torch.nn.init.constant_(mae.decoder_pred.weight, math.nan)
    assert math.isnan(val_mse(mae, batches(images)))


# Baselines


@pytest.fixture(scope="module")
def plain_baselines(images):
    mae = build_mae(MODEL.name, img_size=SIDE)
    return validation.baselines(batches(images), PIXELS, mae, RATIO)


def test_flat_colour_is_the_error_of_the_mean_colour_of_the_visible_patches(images, plain_baselines):
    errors = []
    for image, hidden in samples(images):
        colour = image[:, ~hidden].mean(axis=1)
        errors.append(np.mean((image[:, hidden] - colour[:, None]) ** 2))
    assert plain_baselines["flat_colour"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_smooth_colour_is_the_error_of_a_gaussian_blur_of_the_visible_pixels(images, plain_baselines):
    errors = []
    for image, hidden in samples(images):
        visible = (~hidden).astype(float)
        weight = gaussian_filter(visible, PATCH, mode="constant", truncate=8)
        blurred = [gaussian_filter(channel * visible, PATCH, mode="constant", truncate=8) / weight for channel in image]
        errors.append(np.mean((image[:, hidden] - np.stack(blurred)[:, hidden]) ** 2))
    assert plain_baselines["smooth_colour"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert plain_baselines["smooth_colour"] < plain_baselines["flat_colour"]


def test_baselines_do_not_depend_on_the_batch_size(images, plain_baselines):
    mae = build_mae(MODEL.name, img_size=SIDE)
    again = validation.baselines(batches(images, batch_size=7), PIXELS, mae, RATIO)
    assert again == pytest.approx(plain_baselines, rel=1e-5)


def test_with_norm_pix_loss_the_flat_baseline_is_zero_in_the_space_of_the_loss(images):
    mae = build_mae(MODEL.name, img_size=SIDE, norm_pix_loss=True)
    errors = []
    for image, hidden in samples(images):
        patches = []
        for row, column in np.argwhere(hidden[::PATCH, ::PATCH]) * PATCH:
            patch = image[:, row : row + PATCH, column : column + PATCH]
            patches.append(np.mean((patch - patch.mean()) ** 2 / (patch.var(ddof=1) + 1e-6)))
        errors.append(np.mean(patches))
    baselines = validation.baselines(batches(images), PIXELS, mae, RATIO)
    assert baselines["flat_colour"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert baselines["smooth_colour"] is None


def test_a_uniform_image_is_predicted_exactly_by_both_baselines():
    colour = torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1).expand(2, 3, SIDE, SIDE)
    mask = hidden_patches(torch.rand(2, GRID * GRID), RATIO)
    torch.testing.assert_close(validation.flat_colour(colour, mask), colour)
    torch.testing.assert_close(validation.smooth_colour(colour, mask), colour)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.6, 0.9, 0.1])
def test_baselines_hide_the_patches_that_the_model_hides(mae, ratio):
    noise = torch.rand(5, GRID * GRID)
    with torch.no_grad():
        _, mask, _ = mae.forward_encoder(torch.zeros(5, 3, SIDE, SIDE), ratio, noise)
    assert torch.equal(hidden_patches(noise, ratio), mask)


# Reconstructions


def as_uint8(image):
    """Normalised (3, H, W) -> uint8 (H, W, 3)."""
    image = image * np.reshape([0.229, 0.224, 0.225], (3, 1, 1)) + np.reshape([0.485, 0.456, 0.406], (3, 1, 1))
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.fixture(scope="module")
def drawn(mae, images):
    """(images, pictures, quality) of eight images, all of which are drawn."""
    images = images.subset(slice(0, 8))
    return images, *validation.reconstruct(mae, batches(images).dataset, CPU, PIXELS, RATIO, batch_size=3)


def test_pictures_show_image_masked_image_and_reconstruction(mae, drawn):
    images, pictures, _ = drawn
    assert {k: (v.shape, v.dtype) for k, v in pictures.items() if k != "name"} == {
        "image": ((8, SIDE, SIDE, 3), np.uint8),
        "masked": ((8, SIDE, SIDE, 3), np.uint8),
        "reconstruction": ((8, SIDE, SIDE, 3), np.uint8),
        "mask": ((8, GRID * GRID), bool),
    }
    assert pictures["name"].tolist() == [Path(images.file(i)).name for i in range(8)]
    for i, (image, hidden) in enumerate(samples(images)):
        np.testing.assert_array_equal(pictures["image"][i], as_uint8(image))
        np.testing.assert_array_equal(pictures["mask"][i], hidden[::PATCH, ::PATCH].reshape(-1))
        np.testing.assert_array_equal(pictures["masked"][i], np.where(hidden[..., None], 128, as_uint8(image)))


def test_reconstructions_are_the_models_predictions_in_pixels(mae, drawn):
    images, pictures, _ = drawn
    dataset = batches(images).dataset
    for i, (image, _) in enumerate(samples(images)):
        with torch.no_grad():
            _, pred, _ = mae(PIXELS.normalize(dataset[i]["images"][None]), RATIO, dataset[i]["noise"][None])
        pred = pred[0].numpy().astype(float)
        rebuilt = np.empty_like(image)
        for number, values in enumerate(pred):
            row, column = number // GRID * PATCH, number % GRID * PATCH
            patch = image[:, row : row + PATCH, column : column + PATCH]
            values = values.reshape(PATCH, PATCH, 3).transpose(2, 0, 1)
            if mae.norm_pix_loss:
                values = values * np.sqrt(patch.var(ddof=1) + 1e-6) + patch.mean()
            rebuilt[:, row : row + PATCH, column : column + PATCH] = values
        difference = pictures["reconstruction"][i].astype(int) - as_uint8(rebuilt)
        assert np.abs(difference).max() <= 1  # rounding


def test_quality_is_that_of_the_composite_which_keeps_visible_pixels(drawn):
    _, pictures, quality = drawn
    psnr, ssim = [], []
    for image, rebuilt, mask in zip(pictures["image"], pictures["reconstruction"], pictures["mask"]):
        hidden = np.kron(mask.reshape(GRID, GRID), np.ones((PATCH, PATCH), dtype=bool))[..., None]
        composite = np.where(hidden, rebuilt, image)
        error = np.mean((composite.astype(float) - image.astype(float)) ** 2)
        psnr.append(10 * math.log10(255**2 / error))
        ssim.append(structural_similarity(image, composite, channel_axis=2, data_range=255))
    assert quality["psnr"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert quality["ssim"] == pytest.approx(np.mean(ssim), rel=1e-6)
    assert quality["quality_images"] == 8


class PerfectOnHidden(torch.nn.Module):
    """Predicts hidden patches exactly but for one grey level, and nonsense for visible ones."""

    def __init__(self, mae):
        super().__init__()
        self.mae, self.reconstruct = mae, mae.reconstruct

    def forward(self, images, mask_ratio, noise):
        mask = hidden_patches(noise, mask_ratio)
        off = images + 1 / 255 / PIXELS.std
        target = self.mae.patchify(off)
        if self.mae.norm_pix_loss:
            own = self.mae.patchify(images)
            target = (target - own.mean(-1, keepdim=True)) / (own.var(-1, keepdim=True) + 1e-6).sqrt()
        return torch.zeros(()), torch.where(mask[:, :, None] == 1, target, -1000.0), mask


def test_nonsense_predictions_of_visible_patches_do_not_count(mae, images):
    perfect = PerfectOnHidden(mae)
    pictures, quality = validation.reconstruct(perfect, batches(images).dataset, CPU, PIXELS, RATIO)
    # three quarters of the pixels are off by one level of 255, but for the few that are white already
    assert quality["psnr"] == pytest.approx(10 * math.log10(255**2 / 0.75), abs=0.3)
    hidden = np.kron(pictures["mask"].reshape(-1, GRID, GRID), np.ones((1, PATCH, PATCH), dtype=bool))
    off = pictures["reconstruction"].astype(int) - pictures["image"]
    assert set(np.unique(off[hidden])) <= {0, 1} and off[hidden].mean() > 0.9


def test_pictures_and_quality_take_an_even_fixed_choice(mae, demo_dir, monkeypatch):
    monkeypatch.setattr(validation, "N_QUALITY", 11)
    monkeypatch.setattr(validation, "N_DRAWN", 3)
    whole = sources.open_source(DataSettings(str(demo_dir), None, 0), 0).val.subset(slice(0, 101))
    pictures, quality = validation.reconstruct(mae, batches(whole).dataset, CPU, PIXELS, RATIO, batch_size=4)
    assert quality["quality_images"] == 11  # images 0, 10, ..., 100; drawn: the first, middle and last of them
    assert pictures["name"].tolist() == [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 51, 101)]
    file = demo_dir / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000051.JPEG"
    image = np.asarray(Image.open(file).resize((73, 73), Image.BICUBIC).crop((4, 4, 68, 68)))
    np.testing.assert_array_equal(pictures["image"][1], image)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_reconstructions_hide_the_share_of_patches_that_the_run_hides(ratio, mae, images):
    pictures, quality = validation.reconstruct(mae, batches(images).dataset, CPU, PIXELS, ratio)
    assert pictures["mask"].mean() == ratio
    assert np.isfinite([quality["psnr"], quality["ssim"]]).all()


def test_a_run_is_validated_and_drawn_with_its_own_mask_ratio():
    typed = ("--demo", "--max_images", "64", "--num_workers", "0", "--mask_ratio", "0.5")
    settled = resolve(build_parser("", "").parse_args(typed))
    job = open_task(settled, sources.open_source(settled.data, 0))
    assert job.reconstruct(n=4, measured=False)[0]["mask"].mean() == 0.5
    measure = partial(validation.measured, job.model, {}, CPU, PIXELS, 0.5)
    job.model.train()
    row = job.validate(0)
    assert not job.model.training
    assert row == validation.validate(job.loaders.validation, measure, CPU)[0]
    assert job.baselines() == validation.baselines(job.loaders.validation, PIXELS, job.mae, 0.5)
    assert job.baselines() != validation.baselines(job.loaders.validation, PIXELS, job.mae, RATIO)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_as_many_pictures_are_drawn_as_were_asked_for(n, images):
    mae = build_mae(MODEL.name, img_size=SIDE)
    pictures, quality = validation.reconstruct(mae, batches(images).dataset, CPU, PIXELS, RATIO, n=n, measured=False)
    assert len(pictures["image"]) == n and quality == {}
    assert validation.reconstruct(mae, batches(images).dataset, CPU, PIXELS, RATIO, n=n)[1]["quality_images"] == n


def test_a_single_validation_image_is_enough(mae, images):
    pictures, quality = validation.reconstruct(mae, batches(images.subset(slice(3, 4))).dataset, CPU, PIXELS, RATIO)
    assert len(pictures["image"]) == quality["quality_images"] == 1
    assert math.isfinite(quality["psnr"]) and -1 <= quality["ssim"] <= 1


def test_reconstructing_works_in_bfloat16(mae, images, drawn):
    dataset = batches(drawn[0]).dataset
    pictures, quality = validation.reconstruct(mae, dataset, Device("cpu", "bfloat16"), PIXELS, RATIO)
    assert pictures["reconstruction"].dtype == np.uint8
    assert quality["psnr"] == pytest.approx(drawn[2]["psnr"], abs=0.3)
