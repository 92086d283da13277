"""What the model makes of images it was not trained on: loss, trivial baselines of the loss, reconstructions."""

import os

import numpy as np
import torch
from torch.utils.data import default_collate

from .. import distributed
from ..model.maps import maps
from ..model.patches import hidden_patches, patch_statistics, unpatchify
from ..probes.accuracy import outcome, percent

N_DRAWN = 8  # validation images kept as pictures
N_QUALITY = 64  # validation images that PSNR and SSIM are means over
N_FLAT = 1024  # validation images whose activations say where norm layers are flat


@torch.inference_mode()
def validate(batches, measure, device, by_class=None):
    """What the epoch's row of the log says of the validation images, every image counted once.

    measure: function of images, noise and labels of a batch, `measured` of a model in eval mode. Returns (means, accuracies):
    {name: mean over all images}, val_mse among them, the loss over all hidden patches, in the loss's own space; and accuracies
    of masked images, in percent, by their columns. by_class: accuracy.ByClass that gets these class by class.
    """
    totals, n, outcomes, classes = {}, 0, {}, []
    for batch in batches:
        inputs = [batch[name].to(device.torch, non_blocking=True) for name in ("images", "noise", "labels")]
        means, found = measure(*inputs)
        for name, values in found.items():
            outcomes.setdefault(name, []).append(values.clone())  # the next replay of a CUDA graph is over it
        classes.append(inputs[2])
        for name, mean in means.items():
            totals[name] = totals.get(name, 0.0) + mean.to(device.sum_dtype) * len(inputs[0])
        n += len(inputs[0])
    sums = torch.stack([*totals.values()])
    *sums, n = distributed.add(torch.cat([sums, sums.new_tensor([n])])).tolist()
    outcomes = {name: torch.cat(parts) for name, parts in outcomes.items()}
    for name, values in outcomes.items() if by_class else ():
        by_class.add(name, values, torch.cat(classes))
    means = {name: total / n for name, total in zip(totals, sums)}
    return means, {name: percent(values) for name, values in outcomes.items()}


def measured(model, probes, device, pixels, mask_ratio, images, noise, labels, scoring=False):
    """Of uint8 images on the device: means over them, {name: scalar}, the reconstruction loss as val_mse and, if `scoring`,
    those of the probes; and the outcome of each image, {column: (N,)} of accuracy.outcome.

    model: JointMAE; probes: {name: Probe}.
    """
    images = pixels.normalize(images)
    with device.autocast():
        out = model(images, mask_ratio, noise, labels)
        features = features_for(probes, out, images, mask_ratio, noise)
    outcomes = {
        column: outcome(predicted, probe.truth(labels))
        for probe in probes.values()
        for column, predicted in probe.predict(out, features).items()
    }
    means = {"val_mse": out.reconstruction}
    for probe in probes.values() if scoring else ():
        means |= probe.means(out, images)
    return means, outcomes


def features_for(probes, out, images, mask_ratio, noise):
    """What {name: Probe} keep of a forward pass, {name: tensor}, see Probe.features."""
    found = {}
    for probe in probes.values():
        found |= probe.features(out, images, mask_ratio, noise)
    return found


@torch.inference_mode()
def baselines(batches, pixels, model, mask_ratio):
    """Losses of two predictions that take no learning, over the same images and masks as `validate`.

    flat_colour: the mean colour of an image's visible patches. smooth_colour: the visible pixels blurred, a Gaussian of
    one patch as deviation. With norm_pix_loss a flat patch is 0 in the space of the loss, and smooth_colour is None.
    """
    sums, n = torch.zeros(2, device=pixels.device), 0
    for batch in batches:
        images = pixels.normalize(batch["images"])
        mask = hidden_patches(batch["noise"].to(images.device), mask_ratio)
        target = model.patchify(images)
        if model.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
            predictions = [torch.zeros_like(target)]
        else:
            predictions = [model.patchify(p) for p in (flat_colour(images, mask), smooth_colour(images, mask))]
        for i, prediction in enumerate(predictions):
            error = ((prediction - target) ** 2).mean(-1)
            sums[i] += (error * mask).sum() / mask.sum() * len(images)
        n += len(images)
    n = distributed.add(sums.new_tensor(n))
    flat, smooth = (distributed.add(sums) / n).tolist()
    return {"flat_colour": flat, "smooth_colour": None if model.norm_pix_loss else smooth}


def flat_colour(images, mask):
    """Every pixel the mean colour of the visible ones: (N, 3, H, W), (N, L) -> (N, 3, H, W)."""
    visible = _visible_pixels(images, mask)
    mean = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
    return mean.expand_as(images)


def smooth_colour(images, mask):
    """Every pixel the Gaussian-weighted mean of the visible ones around it, deviation one patch."""
    visible = _visible_pixels(images, mask)
    side = images.shape[-1]
    patch = side / mask.shape[1] ** 0.5
    place = torch.arange(side, device=images.device)
    blur = torch.exp(-((place[:, None] - place) ** 2) / (2 * patch**2))
    weight = blur @ visible @ blur + 1e-6 * patch**2
    return (blur @ (images * visible) @ blur + 1e-6 * patch**2 * flat_colour(images, mask)) / weight


def _visible_pixels(images, mask):
    patch = images.shape[-1] // round(mask.shape[1] ** 0.5)
    return 1 - unpatchify(mask[:, :, None].expand(-1, -1, patch**2), patch)  # (N, 1, H, W)


@torch.inference_mode()
def reconstruct(model, dataset, device, pixels, mask_ratio, batch_size=16, n=None, measured=True):
    """Draw what the model makes of a fixed, even choice of validation images.

    Returns (pictures, quality): pictures has uint8 arrays image, masked, reconstruction (n, H, W, 3), hidden pixels of
    `masked` grey, mask bool (n, L), and names; quality has psnr (dB) and ssim, means over up to n (64) images of the
    composite: visible patches as they are, hidden ones as predicted; {} if it is not `measured`, which takes the longer.
    """
    from skimage.metrics import structural_similarity

    model.eval()
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(n or N_QUALITY, len(dataset))).round().astype(int))
    drawn = set(np.linspace(0, len(chosen) - 1, min(N_DRAWN, len(chosen))).round().astype(int).tolist())
    pictures = {"image": [], "masked": [], "reconstruction": [], "mask": [], "name": []}
    psnr, ssim = [], []
    for start in range(0, len(chosen), batch_size):
        batch = default_collate([dataset[int(i)] for i in chosen[start : start + batch_size]])
        images = pixels.normalize(batch["images"])
        with device.autocast():
            _, pred, mask = model(images, mask_ratio, batch["noise"].to(device.torch))
        rebuilt = _channels_last(pixels.to_uint8(model.reconstruct(images, pred.float())))
        visible = _visible_pixels(images, mask).cpu().numpy().transpose(0, 2, 3, 1).astype(bool)
        originals = _channels_last(batch["images"])
        composites = np.where(visible, originals, rebuilt)
        for i, (original, composite) in enumerate(zip(originals, composites)):
            if measured:
                error = np.mean((original.astype(np.float64) - composite) ** 2)
                psnr.append(10 * np.log10(255**2 / error))
                ssim.append(structural_similarity(original, composite, channel_axis=2, data_range=255))
            if start + i in drawn:
                pictures["image"].append(original)
                pictures["masked"].append(np.where(visible[i], original, 128).astype(np.uint8))
                pictures["reconstruction"].append(rebuilt[i])
                pictures["mask"].append(mask[i].bool().cpu().numpy())
                pictures["name"].append(os.path.basename(dataset.images.file(int(batch["index"][i]))))
    pictures = {name: np.stack(arrays) for name, arrays in pictures.items()}
    if not measured:
        return pictures, {}
    return pictures, {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim)), "quality_images": len(chosen)}


@torch.inference_mode()
def flat_shares(model, dataset, device, pixels, mask_ratio, layers, batch_size=64):
    """{name: share of the activations that a norm layer reads at which it is flat} of masked images, an even choice of a data
    set's. layers: {name: norm layer}, of which those that have a `flat` count."""
    model.eval()
    found = {name: 0.0 for name, layer in layers.items() if hasattr(layer, "flat")}
    if not found:
        return {}
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(N_FLAT, len(dataset))).round().astype(int))

    def watch(name):
        def add(layer, inputs):
            found[name] = found[name] + layer.flat(inputs[0]) * (n / len(chosen))

        return layers[name].register_forward_pre_hook(add)

    hooks = [watch(name) for name in found]
    try:
        for start in range(0, len(chosen), batch_size):
            batch = default_collate([dataset[int(i)] for i in chosen[start : start + batch_size]])
            n = len(batch["images"])
            with device.autocast():
                model(pixels.normalize(batch["images"]), mask_ratio, batch["noise"].to(device.torch))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(zip(found, torch.stack(list(found.values())).tolist()))


@torch.inference_mode()
def maps_of(model, images, device, pixels):
    """What an encoder makes of whole images, uint8 (n, H, W, 3): {"attention": (n, L), "tokens": (n, L, D)}, float16, see
    model.maps."""
    model.eval()
    with device.autocast():
        found = maps(model, pixels.normalize(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))
    return {name: of.cpu().numpy().astype(np.float16) for name, of in zip(("attention", "tokens"), found)}


def _channels_last(images):
    return images.numpy().transpose(0, 2, 3, 1)
