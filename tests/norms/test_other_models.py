"""Conversion of everybody's models: a converted model computes its norms in every mode, for whatever reads a LayerNorm.

FAMILIES=all converts one model of every family in timm that has a LayerNorm and fewer than 40 M parameters: an hour.
"""

import os

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import DropPath, LayerNormAct, LayerNormAct2d
from torch import nn

import norms

NAMES = [name for name in norms.NORMS if name not in ("LayerNorm", "NoNorm")]

FAMILIES = {  # of timm, by its module: those whose norms, or what follows them, are unlike the others'
    "coat": "coat_lite_tiny",
    "convnext": "convnext_atto",
    "edgenext": "edgenext_xx_small",
    "efficientvit_mit": "efficientvit_b0",
    "maxxvit": "coatnext_nano_rw_224",
    "mobilevit": "mobilevitv2_050",
    "nextvit": "nextvit_small",
    "pvt_v2": "pvt_v2_b0",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "twins": "twins_svt_small",
    "vision_transformer": "vit_tiny_patch16_224",
    "xcit": "xcit_nano_12_p16_224",
}


DIFFER_BY_THEMSELVES = nn.modules.batchnorm._BatchNorm, nn.Dropout, DropPath, torchvision.ops.StochasticDepth


def assert_computes_the_same_in_every_mode(model, *inputs, result=lambda out: out, **named):
    """Forward and backward in training; what evaluation makes of it, with and without autograd, is the same."""
    model.train()
    for module in model.modules():
        if isinstance(module, DIFFER_BY_THEMSELVES):
            module.eval()
    trained = result(model(*inputs, **named))
    trained.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    model.eval()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(result(model(*inputs, **named)), trained, rtol=1e-4, atol=1e-5)
    return trained.detach()


# torch's own encoder, whose fast path computes LayerNorm whatever the layer is


def encoder(name, **options):
    torch.manual_seed(0)
    options = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "dropout": 0.0, "batch_first": True} | options
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), 2)
    return norms.convert_norms(model, name)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}])
def test_an_encoder_of_torch_computes_its_norms_in_evaluation_too(name, options):
    x = 3 * torch.randn(3, 5, 32)
    model = encoder(name, **options)
    assert_computes_the_same_in_every_mode(model, x)
    assert_computes_the_same_in_every_mode(model.layers[0], x)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_of_torch_takes_padded_sequences(name):
    x, padded = 3 * torch.randn(3, 5, 32), torch.arange(5) >= torch.tensor([[5], [3], [2]])
    shown = assert_computes_the_same_in_every_mode(
        encoder(name), x, src_key_padding_mask=padded, result=lambda out: out[~padded]
    )
    other = torch.where(padded[..., None], 100.0, x)
    assert torch.allclose(encoder(name)(other, src_key_padding_mask=padded)[~padded], shown, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_one_puts_into_an_encoder_oneself_are_computed_too(name):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    layer.norm1, layer.norm2 = norms.NORMS[name](32), norms.NORMS[name](32)
    assert_computes_the_same_in_every_mode(layer, 3 * torch.randn(3, 5, 32))


@pytest.mark.parametrize("name", NAMES)
def test_who_computes_a_layer_norm_from_a_layers_attributes_gets_no_number(name):
    layer = norms.NORMS[name](8)
    assert F.layer_norm(torch.randn(2, 8), layer.normalized_shape, layer.weight, layer.bias, layer.eps).isnan().all()


# What may write over a norm's result


@pytest.mark.parametrize("name", [*NAMES, "NoNorm"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_first", [True, False])
def test_an_operation_in_place_may_follow_a_norm(name, affine, channels_first):
    x = torch.randn(2, 6, 4, 4) if channels_first else torch.randn(2, 4, 6)
    layer = norms.NORMS[name](6, affine=affine, channels_first=channels_first)
    gradients = []
    for in_place in (True, False):
        ours = x.clone().requires_grad_()
        y = layer(ours)
        (F.hardswish(y, inplace=True) if in_place else F.hardswish(y)).square().sum().backward()
        assert torch.equal(ours, x)
        gradients.append(ours.grad)
    assert torch.equal(*gradients)


# LayerNorms that read, or do, something else


class OrderByName(nn.LayerNorm):
    """As transformers has it: `data_format` tells the order, and nothing of the class's name."""

    def __init__(self, n, data_format):
        super().__init__(n, eps=1e-6)
        self.data_format = data_format

    def forward(self, x):
        if self.data_format == "channels_last":
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("n", [1, 2, 3, 64])
def test_the_order_of_channels_is_what_a_layer_does_not_what_it_is_called(n, device):
    for order in ("channels_first", "channels_last"):
        layer = norms.convert_norms(OrderByName(n, order).to(device), "DynamicTanh")
        assert layer.channels_first == (order == "channels_first")


@pytest.mark.parametrize("layer_class", [LayerNormAct, LayerNormAct2d])
def test_an_activation_within_a_layer_norm_stays(layer_class):
    channels_first = layer_class is LayerNormAct2d
    model = nn.Sequential(layer_class(6, act_layer=nn.GELU)).eval()
    x = torch.randn(2, 6, 3, 3).movedim(1, 1 if channels_first else -1)
    norm = norms.DynamicTanh(6, channels_first=channels_first)
    converted = norms.convert_norms(model, "DynamicTanh")
    assert not converted[0].training
    assert torch.equal(converted(x), F.gelu(norm(x)))


class InFloat32(nn.LayerNorm):
    """As LayerNormFp32, which timm has since 1.0.17."""

    def forward(self, x):
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


LayerNormFp32 = getattr(timm.layers, "LayerNormFp32", InFloat32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_norm_that_computes_in_another_type_is_one(dtype):
    assert type(norms.convert_norms(LayerNormFp32(6).to(dtype), "dyt")) is norms.DynamicTanh


def test_a_subclass_that_computes_something_else_is_refused():
    class Doubled(nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match="Doubled computes something else"):
        norms.convert_norms(nn.Sequential(Doubled(4)), "dyt")


def test_dropout_before_the_norm_is_not_taken_for_one_behind_it():
    class Before(nn.LayerNorm):
        def __init__(self, n):
            super().__init__(n)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return super().forward(self.drop(x))

    class Behind(Before):
        def forward(self, x):
            return self.drop(nn.LayerNorm.forward(self, x))

    with pytest.raises(TypeError, match="Before computes something else"):
        norms.convert_norms(nn.Sequential(Before(16)), "dyt")
    state = torch.get_rng_state()
    converted = norms.convert_norms(nn.Sequential(Behind(16)), "dyt")
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) for m in converted[0]] == [norms.DynamicTanh, nn.Dropout]


def test_a_layer_norm_with_a_parametrised_weight_is_one():
    layer = nn.utils.parametrize.register_parametrization(nn.LayerNorm(6), "weight", nn.Identity())
    assert norms.convert_norms(nn.Sequential(layer), "dyt")(torch.randn(2, 6)).shape == (2, 6)


def test_a_subclass_that_reads_three_dimensions_alone_is_one():
    class OfSequences(nn.LayerNorm):
        def forward(self, x):
            _, _, _ = x.shape
            return super().forward(x)

    assert type(norms.convert_norms(OfSequences(6), "dyt")) is norms.DynamicTanh


def test_the_default_type_of_numbers_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        assert type(norms.convert_norms(LayerNormFp32(6), "dyt")) is norms.DynamicTanh
    finally:
        torch.set_default_dtype(torch.float32)


# Libraries


def smallest_of_every_family():
    """{module of timm: its smallest model with a LayerNorm}, none of 40 M parameters or more."""
    found = {}
    for family in timm.list_modules():
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                model = timm.create_model(name)
            size = sum(p.numel() for p in model.parameters())
            if size < 40e6 and any(isinstance(m, nn.LayerNorm) for m in model.modules()):
                found[family] = min(found.get(family, (size, name)), (size, name))
    return {family: name for family, (_, name) in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values())
def test_models_of_timm(name):
    check_timm_model(name)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FAMILIES") != "all", reason="takes an hour; FAMILIES=all")
def test_a_model_of_every_family_of_timm():
    failed = {}
    for family, name in smallest_of_every_family().items():
        try:
            check_timm_model(name)
            print(f"{family}: {name}: forward, backward, eval = train")
        except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
            failed[family, name] = error
            print(f"{family}: {name}: {error}")
    assert not failed


def check_timm_model(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    norms.convert_norms(model, "AdaptiveDynamicTanh")
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert_computes_the_same_in_every_mode(model, torch.randn(2, *model.default_cfg["input_size"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin_t", "swin_v2_t", "convnext_tiny", "maxvit_t"])
def test_models_of_torchvision(name):
    torch.manual_seed(0)
    small_vit = {"image_size": 224, "patch_size": 32, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    vit = name == "vit"
    model = torchvision.models.VisionTransformer(**small_vit) if vit else torchvision.models.get_model(name)
    norms.convert_norms(model, "AdaptiveDynamicTanh")
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert_computes_the_same_in_every_mode(model, torch.randn(2, 3, 224, 224))


def transformers_model(name):
    """(model, inputs by name, function of its output) of a small configuration."""
    import transformers as t  # takes seconds

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "ViTMAE":
        decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
        config = t.ViTMAEConfig(**small, **decoder, decoder_intermediate_size=64, image_size=32, patch_size=8)
        return t.ViTMAEForPreTraining(config), {**pixels, "noise": torch.rand(2, 16)}, lambda out: out.logits
    if name == "Dinov2":
        return t.Dinov2Model(t.Dinov2Config(**small, image_size=32, patch_size=8)), pixels, lambda out: out[0]
    if name == "ConvNext":
        config = t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        return t.ConvNextModel(config), pixels, lambda out: out[0]
    words = {"input_ids": torch.arange(10).view(2, 5)}
    return (
        t.BertModel(t.BertConfig(**small, vocab_size=20, attention_probs_dropout_prob=0.0)),
        words,
        lambda out: out[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViTMAE", "Dinov2", "ConvNext", "Bert"])
def test_models_of_transformers(name):
    pytest.importorskip("transformers")
    model, inputs, result = transformers_model(name)
    norms.convert_norms(model, "AdaptiveDynamicTanh")
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert_computes_the_same_in_every_mode(model, result=result, **inputs)
