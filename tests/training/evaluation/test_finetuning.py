"""Fine-tuning: rates of layers, drop path, mixing, augmentation, the head."""

import math
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from torch import nn

from maekit.data import streams
from maekit.data.datasets import AugmentedImages
from maekit.training.finetuning import augmentation, posterize_increasing
from tests.support import train_here
from tests.support.commands import complaint, resolved
from tests.support.evaluation import (
    CLASSES,
    DEPTH,
    FINETUNE,
    KNN,
    LINPROBE,
    QUICK,
    WIDTH,
    encoder,
    first_batch,
    open_job,
    train_epoch,
)
from tests.support.runs import losses, same, state, summary


def upstreams_layer(name, depth):
    """Layer of a parameter, 0 to depth + 1, as upstream's util/lr_decay.py has it."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
@pytest.mark.parametrize("decay", [None, 0.5])
def test_rates_fall_layer_by_layer_and_weights_alone_decay(norm, decay, pretrained):
    job = open_job(*QUICK, *FINETUNE, "--init", pretrained[norm], *(("--layer_decay", decay) if decay else ()))
    names = {id(parameter): name for name, parameter in job.network.named_parameters()}
    last = train_epoch(job)["lr"]
    seen = []
    for group in job.optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            scale = (decay or 0.65) ** (DEPTH + 1 - upstreams_layer(name, DEPTH))
            assert group["lr_scale"] == pytest.approx(scale, rel=1e-12), name
            assert group["lr"] == pytest.approx(last * scale, rel=1e-12)
            decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
            assert group["weight_decay"] == (0.05 if decays else 0), name
    assert sorted(seen) == sorted(names.values()) and "pos_embed" in seen


def test_the_head_starts_nearly_at_zero_and_drop_path_rises_linearly(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0.3")
    head = job.network.head
    assert head.weight.shape == (CLASSES, WIDTH) and head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert not head.bias.any() and head.weight.abs().max() < 1e-4
    other = open_job(*QUICK, *FINETUNE, "--init", plain, "--seed", "1").network.head
    assert not torch.equal(head.weight, other.weight)
    rates = [[getattr(path, "drop_prob", 0.0) for path in (b.drop_path1, b.drop_path2)] for b in job.network.blocks]
    assert np.allclose(rates, [[rate, rate] for rate in (0, 0.1, 0.2, 0.3)])


def test_patches_are_pooled_and_then_normed(pretrained):
    """Worked out from the masked autoencoder that the checkpoint is of."""
    job = open_job(*QUICK, *FINETUNE, "--init", pretrained["DynamicTanh"])
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mae = open_job(*QUICK, *KNN, "--init", pretrained["DynamicTanh"]).network.eval()
    mae.norm = nn.Identity()
    with torch.no_grad():
        tokens = mae.forward_encoder(images, 0.0)[0]
        pooled = tokens[:, 1:].mean(dim=1)
        expected = torch.tanh(0.7 * pooled) @ job.network.head.weight.T
        assert torch.allclose(job.network.eval()(images), expected, rtol=1e-4, atol=1e-4)


def seen_by_network(plain, *flags):
    """(images, labels) of a batch, the images and logits that the network saw, loss; with a head that has opinions."""
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0", *flags)
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    seen = []
    job.network.register_forward_hook(lambda _, inputs, logits: seen.extend((inputs[0].clone(), logits)))
    batch = first_batch(job)
    images = batch["images"].clone()
    (loss,) = job.losses(batch, 0, 0)
    return images, batch["labels"], *seen, loss.item()


def cross_entropy(logits, targets):
    """Mean of -sum(target log p) in float64, for targets (N, classes)."""
    z = logits.detach().double().numpy()
    log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    return -(targets * log_p).sum(1).mean()


def smoothed(labels, smoothing):
    return np.eye(CLASSES)[labels.numpy()] * (1 - smoothing) + smoothing / CLASSES


def test_the_loss_of_mixed_up_images_is_cross_entropy_with_labels_mixed_alike(plain):
    images, labels, network_saw, logits, loss = seen_by_network(plain, "--cutmix", "0")
    others = images.flip(0)
    share = (((network_saw - others) * (images - others)).sum() / ((images - others) ** 2).sum()).item()
    assert 0.01 < share < 0.99 and torch.allclose(network_saw, share * images + (1 - share) * others, atol=1e-4)
    targets = share * smoothed(labels, 0.1) + (1 - share) * smoothed(labels.flip(0), 0.1)
    assert loss == pytest.approx(cross_entropy(logits, targets), rel=1e-4)
    assert abs(loss - cross_entropy(logits, smoothed(labels, 0.1))) > 0.01


def test_the_loss_of_cut_and_mixed_images_counts_the_area_of_the_patch(plain):
    images, labels, network_saw, logits, loss = seen_by_network(plain, "--mixup", "0", "--smoothing", "0.2")
    changed = (network_saw != images).any(0).any(0)
    rows, columns = (changed.any(d).nonzero().flatten() for d in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert torch.equal(network_saw[:, :, *box], images.flip(0)[:, :, *box])
    share = 1 - len(rows) * len(columns) / 64**2
    assert 0 < share < 1
    targets = share * smoothed(labels, 0.2) + (1 - share) * smoothed(labels.flip(0), 0.2)
    assert loss == pytest.approx(cross_entropy(logits, targets), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.1, 0])
def test_the_loss_without_mixing_is_cross_entropy_smoothed_or_plain(smoothing, plain):
    flags = ("--mixup", "0", "--cutmix", "0", "--smoothing", smoothing)
    images, labels, network_saw, logits, loss = seen_by_network(plain, *flags)
    assert torch.equal(images, network_saw)
    assert loss == pytest.approx(cross_entropy(logits, smoothed(labels, smoothing)), rel=1e-5)


def test_mixing_and_drop_path_are_decided_by_seed_epoch_and_step(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--drop_path", "0.5")
    nn.init.normal_(job.network.head.weight, generator=torch.Generator().manual_seed(0))
    batch = first_batch(job)

    def loss(epoch, i, mixing):
        job.mixup = mixing
        torch.rand(random.randrange(9))
        return job.losses({name: value.clone() for name, value in batch.items()}, epoch, i)[0].item()

    for mixing in (job.mixup, None):
        if mixing is None:
            job.criterion = nn.CrossEntropyLoss()
        values = [loss(epoch, i, mixing) for epoch, i in ((0, 0), (0, 1), (1, 0))]
        assert len(set(values)) == 3 and values == [loss(epoch, i, mixing) for epoch, i in ((0, 0), (0, 1), (1, 0))]


@pytest.fixture(scope="module")
def an_epoch(plain):
    """A weight of the first block after one epoch of the defaults."""
    job = open_job(*QUICK, *FINETUNE, "--init", plain)
    train_epoch(job)
    return job.network.blocks[0].attn.qkv.weight


@pytest.mark.parametrize(
    "flags",
    [
        ("--layer_decay", "0.9"),
        ("--drop_path", "0.5"),
        ("--mixup", "0"),
        ("--cutmix", "0"),
        ("--smoothing", "0.3"),
        ("--reprob", "0.9"),
        ("--aa", "none"),
        ("--aa", "rand-m5-mstd0.5-inc1"),
        ("--weight_decay", "0.5"),
        ("--min_lr", "1e-4"),
        ("--accum_iter", "2"),
        ("--seed", "1"),
    ],
    ids=" ".join,
)
def test_a_flag_changes_what_is_trained(flags, plain, an_epoch):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, *flags)
    train_epoch(job)
    weight = job.network.blocks[0].attn.qkv.weight
    assert weight.isfinite().all() and not torch.equal(weight, an_epoch)


def test_images_are_cropped_flipped_and_normalised_where_nothing_else_is_asked_for(plain):
    job = open_job(*QUICK, *FINETUNE, "--init", plain, "--aa", "none", "--reprob", "0")
    images = first_batch(job)["images"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (images * std + mean) * 255
    assert images.shape == (16, 3, 64, 64) and torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert -0.01 < pixels.min() and pixels.max() < 255.01 and pixels.std() > 20
    assert torch.allclose(job.pixels.normalize(pixels.round().byte()), images, atol=1e-4), "as in pre-training"
    erased = first_batch(open_job(*QUICK, *FINETUNE, "--init", plain, "--aa", "none", "--reprob", "0.9"))["images"]
    noisy = (erased != images).any(1).flatten(1).float().mean(1)  # share of each image
    assert (noisy > 0).sum() > 10 and noisy.max() < 0.5


def test_an_image_is_augmented_alike_in_any_process_at_any_time(plain):
    dataset = open_job(*QUICK, *FINETUNE, "--init", plain).batches.dataset
    transform = pickle.loads(pickle.dumps(dataset.transform))  # as workers get it that are not forked
    there = AugmentedImages(dataset.images, transform, 0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for key in ((0, 5), (1, 5), (0, 6)):
        assert same(dataset[key], there[key]) and same(dataset[key], dataset[key])
    assert not torch.equal(dataset[0, 5]["images"], dataset[1, 5]["images"])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert same(before, after), "the global streams were used"


def test_a_seeded_block_has_its_own_numbers_and_leaves_the_global_streams_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = draw(), draw()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    first = draw()
    with streams.seeded(streams.MIXING, 0, 1, 2):
        inside = draw()
    with pytest.raises(KeyError), streams.seeded(streams.MIXING, 0, 1, 2):
        assert draw() == inside
        raise KeyError
    assert (first, draw()) == expected
    others = []
    for key in ((streams.MIXING, 0, 2, 1), (streams.MIXING, 1, 1, 2), (streams.DROPPING, 0, 1, 2)):
        with streams.seeded(*key):
            others.append(draw())
    assert len({inside, *others}) == 4 and not {v for d in others for v in d} & set(inside)


def test_posterizing_to_no_bits_is_black_and_else_timms():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    black = posterize_increasing(image, 0)
    assert black.size == image.size and black.mode == image.mode and black.getextrema() == ((0, 0),) * 3
    for bits in range(1, 9):
        ours = posterize_increasing(image, bits)
        assert np.array_equal(ours, ImageOps.posterize(image, bits))
    augmentation(resolved("--demo", *FINETUNE, "--init", "untrained"))
    strongest = auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    assert strongest(image).getextrema() == ((0, 0),) * 3


@pytest.mark.slow
def test_no_epochs_validate_the_fine_tuned_classifier(finetuned, tmp_path):
    """Without training: the loss and accuracies of its own last epoch."""
    flags = (*QUICK, *FINETUNE, "--epochs", "0", "--init", finetuned, "--output_dir", tmp_path)
    result = train_here(*flags, check=0)
    found, last = summary(tmp_path), losses(finetuned)[-1]
    assert {name: found[name] for name in ("val_loss", "acc1", "acc5")} == {
        name: last[name] for name in ("val_loss", "acc1", "acc5")
    }
    assert f"top-1 {last['acc1']:.1f} %" in result.stdout and found["total_epochs"] == 0
    assert not (tmp_path / "checkpoint.pth").exists()


def test_no_epochs_need_a_head_that_knows_the_classes(plain, finetuned, tmp_path):
    flags = (*QUICK, *FINETUNE, "--epochs", "0", "--output_dir", tmp_path / "run")
    for init in (plain, "untrained"):
        line = complaint(*flags, "--init", init)
        assert "has no head to classify with" in line and "Fine-tune it first" in line
    weights = state(finetuned)
    for classes in (9, 12):
        weights["model"]["head.weight"] = torch.zeros(classes, WIDTH)
        weights["model"]["head.bias"] = torch.zeros(classes)
        torch.save(weights, tmp_path / f"{classes}.pth")
    line = complaint(*flags, "--init", tmp_path / "9.pth")
    assert "its head knows 9 classes, the data set has 10" in line and "--epochs 1 or more" in line
    train_here(*flags, "--init", tmp_path / "12.pth", check=0)
    assert summary(tmp_path / "run")["val_loss"] == pytest.approx(math.log(12))
    assert "--epochs 0: must be positive" in complaint(*QUICK, *LINPROBE, "--epochs", "0", "--init", plain)


def test_a_fine_tuned_network_can_be_fine_tuned_again_with_a_new_head(finetuned):
    job = open_job(*QUICK, *FINETUNE, "--init", finetuned)
    theirs = state(finetuned)["model"]
    assert same(encoder(job.network.state_dict()), encoder(theirs))
    assert (
        job.network.head.weight.std() < 3e-5 < theirs["head.weight"].std() and (job.network.fc_norm.weight == 1).all()
    )
