"""The masked autoencoder: upstream's numbers, its parts, and what starts the same for every norm."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import norms
from maekit.model.mae import MaskedAutoencoder, build_mae
from maekit.model.patches import patchify, sincos_positions, unpatchify
from maekit.settings import methods
from maekit.settings.architectures import MODELS, Architecture, Transformer, architecture
from tests.support.golden import GOLDEN, close, fill_by_rule

# Upstream's numbers


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "norm_pix_loss"])
def golden_run(request):
    """(golden entry, model, what it computed), forward and backward under the golden rule."""
    entry = GOLDEN["mae_vit_base_patch16 norm_pix_loss" if request.param else "mae_vit_base_patch16"]
    mae = build_mae("mae_vit_base_patch16", norm_pix_loss=request.param)
    with torch.no_grad():
        fill_by_rule(mae)
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32))
    noise = torch.from_numpy(np.random.RandomState(1).random_sample((2, 196)).astype(np.float32))
    loss, pred, mask = mae(images, mask_ratio=0.75, noise=noise)
    loss.backward()
    with torch.no_grad():
        latent, _, _ = mae.forward_encoder(images, 0.75, noise)
    return entry, mae, {"loss": loss.detach(), "pred": pred.detach(), "mask": mask, "latent": latent}


def test_the_loss_is_upstreams(golden_run):
    golden, _, ours = golden_run
    assert close(ours["loss"], golden["loss"])


def test_the_masks_are_upstreams(golden_run):
    golden, _, ours = golden_run
    assert (1 - ours["mask"]).sum(1).tolist() == golden["mask_kept"]
    assert ours["mask"][0, : len(golden["mask_first_row"])].tolist() == golden["mask_first_row"]


def test_the_latent_is_upstreams(golden_run):
    golden, _, ours = golden_run
    assert ours["latent"].shape == (2, 50, 768)
    assert close(ours["latent"].mean(), golden["latent_mean"])
    assert close(ours["latent"].std(), golden["latent_std"])
    assert close(ours["latent"][0, 0, :5], golden["cls_first5"])


def test_the_prediction_is_upstreams(golden_run):
    golden, _, ours = golden_run
    assert ours["pred"].shape == (2, 196, 768)
    assert close(ours["pred"].mean(), golden["pred_mean"])
    assert close(ours["pred"].std(), golden["pred_std"])
    assert close(ours["pred"][0, 0, :5], golden["pred_0_0_first5"])


def test_the_gradients_are_upstreams(golden_run):
    golden, mae, _ = golden_run
    gradients = {name: p.grad.norm().item() for name, p in mae.named_parameters() if p.grad is not None}
    for name, norm in golden["grad_norms"].items():
        assert close(gradients[name], norm), name
    assert close(np.linalg.norm(list(gradients.values())), golden["grad_global_norm"])


def test_the_position_tables_are_upstreams(golden_run):
    golden, mae, _ = golden_run
    assert close(mae.pos_embed[0, 1, :6], golden["pos_embed_0_1_first6"])
    assert close(mae.pos_embed[0, 100, -3:], golden["pos_embed_0_100_last3"])
    assert close(mae.decoder_pos_embed.double().sum(), golden["decoder_pos_embed_sum"])
    assert not mae.pos_embed.requires_grad and not mae.decoder_pos_embed.requires_grad


def test_the_model_has_upstreams_size(golden_run):
    golden, mae, _ = golden_run
    assert sum(p.numel() for p in mae.parameters()) == golden["parameters"]
    assert sum(p.numel() for p in mae.parameters() if p.requires_grad) == golden["trainable"]
    assert len(mae.state_dict()) == golden["state_dict_keys"]


def test_position_tables_hold_sines_and_cosines_of_column_then_row():
    table = sincos_positions(8, 3)[0]
    assert table.shape == (10, 8)
    assert (table[0] == 0).all()  # the CLS token
    row, column = 2, 1
    frequencies = np.array([1.0, 0.01])  # 10000 ** -(i / 2)
    expected = [f(place * frequencies) for place in (column, row) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(table[1 + row * 3 + column], np.concatenate(expected), rtol=1e-6)


# Names and decoders


def test_flags_know_the_norms_that_there_are():
    assert list(methods.NORMS) == list(norms.NORMS)
    assert {norm.alias: name for name, norm in methods.NORMS.items()} == norms.ALIASES


@pytest.mark.parametrize("name", [*MODELS, "enc60d2h5p7"])
def test_every_name_builds_a_model_of_its_sizes(name):
    with torch.device("meta"):  # no memory, no time
        mae = build_mae(name)
    sizes = architecture(name)
    assert mae.patch_embed.proj.weight.shape == (sizes.encoder.width, 3, sizes.patch, sizes.patch)
    for blocks, part in ((mae.blocks, sizes.encoder), (mae.decoder_blocks, sizes.decoder)):
        assert len(blocks) == part.depth
        assert {block.attn.num_heads for block in blocks} == {part.heads}
        assert {block.norm1.weight.shape for block in blocks} == {(part.width,)}


@pytest.mark.parametrize(
    ("name", "alias", "patch", "width", "depth", "heads"),
    [
        ("mae_vit_tiny_patch16", "vit_tiny", 16, 192, 12, 3),
        ("mae_vit_small_patch16", "vit_small", 16, 384, 12, 6),
        ("mae_vit_base_patch16", "vit_base", 16, 768, 12, 12),
        ("mae_vit_large_patch16", "vit_large", 16, 1024, 24, 16),
        ("mae_vit_huge_patch14", "vit_huge", 14, 1280, 32, 16),
    ],
)
def test_names_stand_for_the_sizes_of_the_papers(name, alias, patch, width, depth, heads):
    assert architecture(name) == Architecture(patch, Transformer(width, depth, heads), Transformer(512, 8, 16))
    assert architecture(name) == architecture(alias) == architecture(f"enc{width}d{depth}h{heads}p{patch}")


def test_a_model_by_its_numbers_is_the_one_of_that_name():
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    named = build_mae("vit_tiny", img_size=64, decoder_type="base-8b")
    numbered = build_mae("enc192d12h3p16", img_size=64, decoder_type="dec512d8h8")
    assert sum(p.numel() for p in named.parameters()) == sum(p.numel() for p in numbered.parameters())
    numbered.load_state_dict(named.state_dict())  # strict: each name and shape
    for ours, theirs in zip(named(images, noise=noise), numbered(images, noise=noise)):
        assert torch.equal(ours, theirs)


def test_learned_positions_are_trained_and_start_small_beside_the_same_weights():
    models = []
    for kind in ("sincos", "learned"):
        torch.manual_seed(0)
        models.append(build_mae("enc192d2h3p4", img_size=32, decoder_type="dec96d1h3", pos_embed=kind))
    fixed, learned = models
    tables = {"pos_embed", "decoder_pos_embed"}
    for name, weight in learned.named_parameters():
        assert weight.requires_grad
        assert torch.equal(weight, fixed.get_parameter(name)) == (name not in tables), name
        if name in tables:
            assert abs(weight.std() - 0.02) < 5e-4 and abs(weight.mean()) < 1e-3, name
    learned(torch.randn(2, 3, 32, 32))[0].backward()
    assert all(learned.get_parameter(name).grad.abs().sum() > 0 for name in tables)


def test_vit_tiny_with_decoder_base_8b_has_31_million_trainable_parameters():
    with torch.device("meta"):
        mae = build_mae("vit_tiny", decoder_type="base-8b")
    n = sum(p.numel() for p in mae.parameters() if p.requires_grad)
    assert abs(n - 31_200_000) < 50_000


@pytest.mark.parametrize(("size", "width"), [("tiny", 192), ("small", 384), ("base", 512), ("large", 768)])
@pytest.mark.parametrize("depth", [1, 12])
def test_a_decoder_name_says_width_and_depth_and_heads_are_64_wide(size, width, depth):
    with torch.device("meta"):
        mae = build_mae("vit_tiny", img_size=32, decoder_type=f"{size}-{depth}b")
    assert mae.decoder_embed.weight.shape == (width, 192)
    assert len(mae.decoder_blocks) == depth
    assert {block.attn.num_heads for block in mae.decoder_blocks} == {width // 64}
    assert mae.decoder_pred.weight.shape == (16 * 16 * 3, width)


def test_the_linear_decoder_is_one_linear_layer_that_tells_hidden_patches_apart():
    torch.manual_seed(0)
    mae = build_mae("mae_vit_demo_patch8", img_size=32, decoder_type="linear")
    layers = [(n, m) for n, m in mae.named_modules() if n.startswith("decoder") and list(m.parameters())]
    assert [n for n, _ in layers] == ["decoder_pred"] and isinstance(layers[0][1], nn.Linear)
    _, pred, mask = mae(torch.randn(1, 3, 32, 32))
    hidden = pred[0, mask[0].bool()]
    distances = torch.cdist(hidden, hidden) + torch.eye(len(hidden))
    assert len(hidden) == 12 and distances.min() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["", "base", "base-8", "base-b", "base-0b", "base-xb", "base--1b", "huge-8b", "Linear", "dec64d2", "dec64d2h2p8"]
    + ["dec0d2h2", "dec64d0h2", "dec64d2h0", "dec064d2h2", "dec64d2h3", "dec66d2h3", "enc64d2h2p8", "dec64d2h2 "],
)
def test_an_unknown_decoder_is_a_value_error(name):
    with pytest.raises(ValueError, match="decoder"):
        build_mae("vit_tiny", img_size=32, decoder_type=name)


@pytest.mark.parametrize("name", ["vit_giant", "enc64d2h2", "enc64d2h2p0", "enc64d2h3p8", "enc66d2h3p8", "dec64d2h2"])
def test_an_unknown_model_is_a_value_error(name):
    with pytest.raises(ValueError, match=f"model '{name}'"):
        build_mae(name)


def test_an_image_that_patches_do_not_tile_is_a_value_error():
    with pytest.raises(ValueError, match="img_size 60"):
        build_mae("mae_vit_demo_patch8", img_size=60)


# Patches, masks, loss


def test_a_patch_holds_its_pixels_row_by_row_with_channels_last():
    # the value of a pixel says where it is: channel, row, column
    channel, row, column = np.meshgrid(np.arange(3), np.arange(6), np.arange(6), indexing="ij")
    images = torch.from_numpy(channel * 10000 + row * 100 + column)[None].float()
    patches = patchify(images, 2)
    assert patches.shape == (1, 9, 12)
    assert patches[0, 0].tolist() == [0, 10000, 20000, 1, 10001, 20001, 100, 10100, 20100, 101, 10101, 20101]
    assert patches[0, 1, :3].tolist() == [2, 10002, 20002]  # to the right
    assert patches[0, 3, :3].tolist() == [200, 10200, 20200]  # below


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (28, 14), (16, 16)])
def test_unpatchify_undoes_patchify(side, patch):
    images = torch.randn(2, 3, side, side)
    patches = patchify(images, patch)
    assert patches.shape == (2, (side // patch) ** 2, patch * patch * 3)
    assert torch.equal(unpatchify(patches, patch), images)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.6, 0.9, 0.1])
def test_the_patches_of_least_noise_stay_visible(small, ratio):
    noise = np.random.default_rng(3).random((5, 16), dtype=np.float32)
    with torch.no_grad():
        latent, mask, ids_restore = small.forward_encoder(torch.randn(5, 3, 32, 32), ratio, torch.from_numpy(noise))
    kept = int(16 * (1 - ratio))
    expected = np.ones((5, 16))
    for row, order in zip(expected, np.argsort(noise, axis=1)):
        row[order[:kept]] = 0
    assert latent.shape == (5, 1 + kept, small.pos_embed.shape[-1])
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(ids_restore, np.argsort(np.argsort(noise, axis=1), axis=1))


def test_where_nothing_is_hidden_all_patches_are_in_place(small):
    with torch.no_grad():
        latent, mask, ids_restore = small.forward_encoder(torch.randn(3, 3, 32, 32), 0.0, torch.rand(3, 16))
    assert latent.shape[1] == 17 and not mask.any()
    assert torch.equal(ids_restore, torch.arange(16).expand(3, -1))


@pytest.mark.parametrize("kept", [4, 16])
def test_patches_are_embedded_as_the_convolution_does(kept):
    """Values, and the gradients of the projection and of learned positions, in float64."""
    mae = build_mae("mae_vit_demo_patch8", img_size=32, pos_embed="learned").double()
    images, ids = torch.randn(3, 3, 32, 32).double(), torch.arange(16).expand(3, -1)
    if kept < 16:
        ids = torch.rand(3, 16).argsort(dim=1)[:, :kept]
    everything = mae.patch_embed.proj(images).flatten(2).mT + mae.pos_embed[:, 1:]
    expected = torch.stack([embedded[of] for embedded, of in zip(everything, ids)])
    parameters = [*mae.patch_embed.parameters(), mae.pos_embed]
    towards = torch.randn_like(expected)
    torch.testing.assert_close(mae.embed(images, ids), expected)
    torch.testing.assert_close(
        torch.autograd.grad(mae.embed(images, ids), parameters, towards),
        torch.autograd.grad(expected, parameters, towards),
    )


def test_images_of_another_size_than_the_model_are_refused(small):
    with pytest.raises(ValueError, match=r"\(40, 40\).*\(32, 32\)"):
        small(torch.randn(1, 3, 40, 40), 0.75, torch.rand(1, 16))


def test_without_noise_masks_are_random_and_follow_the_global_seed(small):
    images = torch.randn(8, 3, 32, 32)
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            masks.append(small(images)[2])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert len({tuple(mask.tolist()) for mask in masks[0]}) > 4


def test_the_encoder_never_sees_hidden_patches(small):
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        _, pred, mask = small(images, 0.75, noise)
        hidden = mask[:, :, None] == 1
        other = small.unpatchify(torch.where(hidden, 100.0, small.patchify(images)))
        _, same, _ = small(other, 0.75, noise)
        other = small.unpatchify(torch.where(hidden, small.patchify(images), 100.0))
        _, different, _ = small(other, 0.75, noise)
    assert torch.equal(pred, same)
    assert not torch.allclose(pred, different)


def test_the_cls_token_has_a_position_of_its_own(small, another):
    """Of no value in the tables of the kit, but of one in tables that were trained."""
    images, noise, moved = torch.randn(2, 3, 32, 32), torch.rand(2, 16), another
    moved.load_state_dict(small.state_dict())
    with torch.no_grad():
        moved.pos_embed[:, :1] += 0.5
        assert not torch.allclose(
            moved.forward_encoder(images, 0.75, noise)[0], small.forward_encoder(images, 0.75, noise)[0]
        )
        moved.cls_token -= 0.5
        torch.testing.assert_close(
            moved.forward_encoder(images, 0.75, noise)[0], small.forward_encoder(images, 0.75, noise)[0]
        )


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_is_the_mean_squared_error_of_hidden_patches_only(norm_pix_loss):
    mae = build_mae("mae_vit_demo_patch8", img_size=16, norm_pix_loss=norm_pix_loss)
    rng = np.random.default_rng(4)
    images, pred = rng.standard_normal((2, 3, 16, 16)), rng.standard_normal((2, 4, 192))
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    errors = []
    for n, patch in np.argwhere(mask):
        top, left = patch // 2 * 8, patch % 2 * 8
        target = images[n, :, top : top + 8, left : left + 8].transpose(1, 2, 0).reshape(-1)
        if norm_pix_loss:
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
        errors.append(np.mean((pred[n, patch] - target) ** 2))
    images, pred, mask = torch.from_numpy(images), torch.from_numpy(pred), torch.from_numpy(mask)
    assert mae.forward_loss(images, pred, mask).item() == pytest.approx(np.mean(errors), rel=1e-12)
    with_other_visible = torch.where(mask[:, :, None] == 1, pred, torch.tensor(1e6, dtype=pred.dtype))
    assert mae.forward_loss(images, with_other_visible, mask).item() == pytest.approx(np.mean(errors), rel=1e-12)
    with_other_hidden = torch.where(mask[:, :, None] == 1, pred + 1, pred)
    assert mae.forward_loss(images, with_other_hidden, mask).item() != pytest.approx(np.mean(errors), rel=1e-3)


def test_reconstruct_draws_predictions_of_normalised_patches_in_pixels():
    mae = build_mae("mae_vit_demo_patch8", img_size=32, norm_pix_loss=True)
    images = torch.randn(3, 3, 32, 32) * 2 + 1
    patches = images.numpy().reshape(3, 3, 4, 8, 4, 8).transpose(0, 2, 4, 3, 5, 1).reshape(3, 16, 192)
    deviation = np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    exact = torch.from_numpy((patches - patches.mean(-1, keepdims=True)) / deviation)
    torch.testing.assert_close(mae.reconstruct(images, exact), images, rtol=0, atol=1e-4)
    assert mae.forward_loss(images, exact, torch.ones(3, 16)).item() == pytest.approx(0, abs=1e-9)


def test_reconstruct_draws_plain_predictions_as_they_are(small):
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(small.reconstruct(torch.zeros_like(images), small.patchify(images)), images)


# Fair by construction


@pytest.mark.parametrize("token", ["cls_token", "mask_token"])
def test_tokens_start_as_small_random_numbers_of_the_seed(token):
    first = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        first.append(getattr(build_mae("vit_tiny", img_size=32), token).detach())
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert 0.015 < first[0].std() < 0.025 and first[0].mean().abs() < 0.01


class StandIn(MaskedAutoencoder):
    """A model of ours that is called as upstream's class is."""

    def __init__(self, img_size, patch, _, width, depth, heads, width_2, depth_2, heads_2, *, norm_layer, **options):
        sizes = Transformer(width, depth, heads), Transformer(width_2, depth_2, heads_2)
        super().__init__(img_size, patch, *sizes, **options)


@pytest.mark.parametrize("decoder", [None, "linear"])
def test_a_model_of_another_class_starts_from_the_weights_that_ours_would_have(decoder):
    both = []
    for upstream in (None, SimpleNamespace(MaskedAutoencoderViT=StandIn)):
        torch.manual_seed(3)
        both.append(build_mae("mae_vit_demo_patch8", img_size=32, decoder_type=decoder, upstream=upstream))
    ours, theirs = (mae.state_dict() for mae in both)
    assert isinstance(both[1], StandIn) and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_models_of_one_seed_differ_in_nothing_but_the_norm():
    def shared_parameters(name):
        torch.manual_seed(5)
        mae = norms.convert_norms(build_mae("mae_vit_demo_patch8", img_size=32), name)
        of_norms = {n for n, m in mae.named_modules() if isinstance(m, (*norms.NORMS.values(), norms.Scale))}
        return {n: p for n, p in mae.named_parameters() if n.rpartition(".")[0] not in of_norms}

    layer_norm = shared_parameters("LayerNorm")
    assert len(layer_norm) == 2 + 2 + 3 * 2 + 3 * 8  # tables, tokens, embeddings and prediction, blocks
    for name in norms.NORMS:
        other = shared_parameters(name)
        assert list(other) == list(layer_norm)
        assert all(torch.equal(other[n], p) for n, p in layer_norm.items()), name
