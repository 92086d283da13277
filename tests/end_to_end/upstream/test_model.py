"""Our model beside upstream's, step by step."""

import gc
import math
from functools import partial

import numpy as np
import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

import norms
from maekit.model.mae import MaskedAutoencoder, build_mae
from maekit.settings import architectures
from tests.support.upstream import BASE, STEPS, TOLERANCE, GivenNoise, difference, pictures


def noises(steps, n, patches):
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.random((steps, n, patches), dtype=np.float32))


def with_weights_that_all_matter(mae):
    """The model with tokens, biases and scales moved away from 0 and 1, so that each has its part in the numbers."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in mae.parameters():
            if p.requires_grad and (p.ndim == 1 or p.shape[:2] == (1, 1)):
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return mae


def trained(mae, loss_of, images, noise):
    """What five AdamW steps on the same images under other masks give; loss_of(mae, images, noise) is a forward pass."""
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), lr=1.5e-4, betas=(0.9, 0.95), fused=True)
    found = {"losses": []}
    mae.train()
    for step in range(STEPS):
        loss, pred, mask = loss_of(mae, images, noise[step])
        loss.backward()
        if step == 0:
            found["gradients"] = {n: p.grad.clone() for n, p in mae.named_parameters() if p.grad is not None}
            found |= {"pred": {"pred": pred.detach()}, "mask": mask}
        found["losses"].append(loss.item())
        norms.update_adaptive(mae)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found["weights"] = dict(mae.state_dict())
    return found


def compared(label, ours, expected, record_property):
    """Assert that what `trained` found for two models is equal to TOLERANCE; the largest differences are printed."""
    assert torch.equal(ours["mask"], expected["mask"])
    largest = {"loss": (max(abs(a - b) / b for a, b in zip(ours["losses"], expected["losses"])), None)}
    largest |= {part: difference(ours[part], expected[part]) for part in ("pred", "gradients", "weights")}
    for part, (value, where) in largest.items():
        record_property(part, value)
        print(f"{label}: {part} differ by {value:.1e} {where or ''}")
    assert all(value <= TOLERANCE for value, _ in largest.values()), largest
    assert all(math.isfinite(loss) for loss in ours["losses"]) and ours["losses"][-1] < ours["losses"][0]


def with_our_noise(mae, images, noise):
    return mae(images, 0.75, noise)


CASES = {
    "base": (BASE, {}, "LayerNorm"),
    "base norm_pix_loss": (BASE, {"norm_pix_loss": True}, "LayerNorm"),
    **{f"base {norm}": (BASE, {"img_size": 112}, norm) for norm in norms.NORMS if norm != "LayerNorm"},
    "large": ("mae_vit_large_patch16", {}, "LayerNorm"),
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_of_our_model_are_five_steps_of_upstreams(case, theirs, monkeypatch, record_property):
    """Loss, prediction, mask, every gradient, and the weights after five steps; upstream's masking included."""
    name, options, norm = CASES[case]
    side = options.get("img_size", 224)
    images, noise = pictures(2, side), noises(STEPS, 2, (side // 16) ** 2)

    def build(make):
        torch.manual_seed(3)
        return norms.convert_norms(make(**options), norm)

    def with_torchs_noise(mae, images, noise):
        given.noise = noise
        return mae(images, mask_ratio=0.75)

    ours = with_weights_that_all_matter(build(partial(build_mae, name)))
    other = build(getattr(theirs("models_mae"), name))
    assert type(other).__module__ == "models_mae" and not isinstance(other, MaskedAutoencoder)
    shapes = [{n: tuple(t.shape) for n, t in mae.state_dict().items()} for mae in (ours, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(ours.state_dict())
    if (
        norm != "LayerNorm"
    ):  # float32 leaves little of a scalar's gradient that cancels, and moves values over Hardtanh's kink
        ours, other, images = ours.double(), other.double(), images.double()

    with monkeypatch.context() as patched:
        given = GivenNoise(patched)
        expected = trained(other, with_torchs_noise, images, noise)
        assert given.asked == STEPS
    del other  # before the other one trains, which takes as much memory
    gc.collect()
    found = trained(ours, with_our_noise, images, noise)
    assert len(found["gradients"]) == sum(p.requires_grad for p in ours.parameters())
    compared(case, found, expected, record_property)


def test_the_class_that_the_kit_trains_is_upstreams_own_to_the_last_bit(theirs, monkeypatch):
    """It takes the masks' noise from its caller and changes nothing else."""
    images, noise = pictures(2, 64), noises(1, 2, 16)[0]
    torch.manual_seed(3)
    kits = with_weights_that_all_matter(build_mae(BASE, img_size=64, upstream=theirs("models_mae")))
    own = getattr(theirs("models_mae"), BASE)(img_size=64)
    assert isinstance(kits, type(own)) and list(kits.state_dict()) == list(own.state_dict())
    own.load_state_dict(kits.state_dict())
    for norm_pix_loss in (False, True):
        for mae in (kits, own):
            mae.norm_pix_loss = norm_pix_loss
            mae.zero_grad(set_to_none=True)
        with monkeypatch.context() as patched:
            given = GivenNoise(patched)
            given.noise = noise
            expected = (*own(images), *own.forward_encoder(images, 0.5))
        found = (*kits(images, 0.75, noise), *kits.forward_encoder(images, 0.5, noise))
        assert len(found) == 6 and all(torch.equal(a, b) for a, b in zip(found, expected))
        found[0].backward()
        expected[0].backward()
        for (n, p), q in zip(kits.named_parameters(), own.parameters()):
            assert p.grad is q.grad is None or torch.equal(p.grad, q.grad), n


def test_without_noise_the_kits_class_draws_the_masks_that_upstreams_draws(theirs):
    images, found = pictures(2, 64), []
    kits = build_mae(BASE, img_size=64, upstream=theirs("models_mae"))
    own = getattr(theirs("models_mae"), BASE)(img_size=64)
    for mae in (kits, own):
        torch.manual_seed(5)
        with torch.no_grad():
            found.append(mae(images)[2])
    assert torch.equal(*found) and found[0].sum(1).tolist() == [12, 12]


@pytest.mark.parametrize(
    ("name", "decoder", "pos_embed"),
    [
        ("mae_vit_demo_patch8", None, "sincos"),
        ("mae_vit_demo_patch8", "linear", "sincos"),
        ("vit_tiny", "base-8b", "sincos"),
        ("vit_tiny", "linear", "sincos"),
        ("enc60d2h5p4", "dec48d1h3", "learned"),
    ],
)
def test_models_that_upstream_lacks_are_built_of_its_class_and_equal_ours(
    name, decoder, pos_embed, theirs, record_property
):
    patch = architectures.architecture(name).patch
    images, noise = pictures(2, 64), noises(STEPS, 2, (64 // patch) ** 2)
    both = []
    for module in (None, theirs("models_mae")):
        torch.manual_seed(3)
        how = {"decoder_type": decoder, "pos_embed": pos_embed, "upstream": module}
        both.append(build_mae(name, img_size=64, norm_pix_loss=True, **how))
    ours, other = both
    trained_ones = [{n for n, p in mae.named_parameters() if p.requires_grad} for mae in both]
    assert trained_ones[0] == trained_ones[1]
    assert isinstance(other, theirs("models_mae").MaskedAutoencoderViT)
    weights, others = ours.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[n], others[n]) for n in weights)  # of one seed
    for mae in both:
        with_weights_that_all_matter(mae)
    found, expected = (trained(mae, with_our_noise, images, noise) for mae in both)
    compared(f"{name} {decoder}", found, expected, record_property)
    pred = found["pred"]["pred"]
    assert torch.equal(ours.reconstruct(images, pred), other.reconstruct(images, pred))


@pytest.mark.parametrize("name", [f"mae_vit_{size}" for size in ("base_patch16", "large_patch16", "huge_patch14")])
def test_names_and_shapes_of_all_of_upstreams_models_are_ours(name, theirs):
    with torch.device("meta"):  # no memory, no time
        ours, other = build_mae(name), getattr(theirs("models_mae"), name)()
    for kind in ("named_parameters", "named_buffers"):
        described = [{n: (tuple(t.shape), t.requires_grad) for n, t in getattr(m, kind)()} for m in (ours, other)]
        assert described[0] == described[1]
    eps = [{n: m.eps for n, m in mae.named_modules() if isinstance(m, nn.LayerNorm)} for mae in (ours, other)]
    assert eps[0] == eps[1]


def test_initial_weights_are_drawn_as_upstreams_are(theirs):
    """Tables and constants equal, random tensors alike in spread and largest value; of tensors too small to tell, both
    are random."""
    torch.manual_seed(0)
    ours, other = build_mae(BASE).state_dict(), getattr(theirs("models_mae"), BASE)().state_dict()
    drawn = 0
    for name, b in other.items():
        a = ours[name]
        if "pos_embed" in name or b.std() == 0:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        else:
            drawn += 1
            rough = 0.02 if a.numel() > 10_000 else 0.2
            assert a.std().item() == pytest.approx(b.std().item(), rel=rough), name
            assert a.numel() < 10_000 or a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=1e-3), name
    assert drawn == 2 + 4 + 20 * 4  # tokens, patch embedding with its bias, two layers, matrices of the blocks
