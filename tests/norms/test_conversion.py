"""Conversion of models, watching alpha, and norms.py alone."""

import copy
import os
import shutil
import subprocess
import sys
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig

import norms
from tests.support import KIT

DYNAMIC = [name for name in norms.NORMS if name not in ("LayerNorm", "NoNorm")]


@pytest.fixture(scope="module")
def timm_models():
    return {
        "vit_tiny_patch16_224": timm.create_model("vit_tiny_patch16_224", img_size=64),
        "convnext_tiny": timm.create_model("convnext_tiny"),
    }


WITHOUT_BIAS = ("RMSNorm", "BHyT")


def norm_layers(model):
    return [m for m in model.modules() if isinstance(m, tuple(norms.NORMS.values()))]


@pytest.mark.parametrize("name", [*norms.NORMS, *norms.ALIASES])
@pytest.mark.parametrize("model_name", ["vit_tiny_patch16_224", "convnext_tiny"])
def test_timm_models_are_converted_whole(timm_models, model_name, name):
    original = timm_models[model_name]
    model = copy.deepcopy(original, {id(p): p for p in original.parameters()})  # weights may be shared
    n = len(norm_layers(model))
    layer_class = norms.NORMS[norms.ALIASES.get(name, name)]
    state = torch.get_rng_state()
    if layer_class is norms.NoNorm and model_name == "convnext_tiny":
        with pytest.raises(TypeError, match="ls1"):  # there is no place for the scale
            norms.convert_norms(model, name)
        return
    converted = norms.convert_norms(model, name)
    assert torch.equal(torch.get_rng_state(), state), "conversion drew random numbers"
    layers = norm_layers(converted)
    assert n == {"vit_tiny_patch16_224": 25, "convnext_tiny": 23}[model_name] == len(layers)
    assert all(isinstance(layer, layer_class) for layer in layers)
    with torch.no_grad():
        assert converted.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["LayerNorm", *DYNAMIC])
def test_channels_first_layers_of_torchvision_are_converted(name):
    model = torchvision.models.ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=5)
    n = len(norm_layers(model))
    norms.convert_norms(model, name)
    assert len(norm_layers(model)) == n == 5
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def small_timm_model(kind, name):
    """For a norm of a name, to which it can be converted."""
    if kind == "convnext" and name == "NoNorm":
        pytest.skip("has no place for the scale of a branch")
    if kind == "vit":
        return timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5)
    return timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)


@pytest.mark.parametrize("name", norms.NORMS)
@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conversion_keeps_the_dtype(kind, name, dtype):
    model = norms.convert_norms(small_timm_model(kind, name).to(dtype), name)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", norms.NORMS)
@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_conversion_keeps_the_device(kind, name):
    model = small_timm_model(kind, name).to("meta")  # a device other than the default one that every machine has
    norms.convert_norms(model, name)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", DYNAMIC)
def test_conversion_keeps_the_training_mode(name):
    model = nn.Sequential(nn.LayerNorm(3).train(), nn.LayerNorm(3).eval())
    norms.convert_norms(model, name)
    assert [layer.training for layer in model] == [True, False]


@pytest.mark.parametrize("name", DYNAMIC)
def test_layers_without_weight_or_bias_stay_without(name):
    model = nn.Sequential(nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False), nn.LayerNorm(3))
    norms.convert_norms(model, name)
    assert model[0].weight is None and model[0].bias is None
    assert model[1].weight is not None and model[1].bias is None
    assert model[2].weight is not None and (model[2].bias is None) == (name in WITHOUT_BIAS)
    assert model(torch.randn(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_layer_without_weight_takes_device_and_dtype_of_the_model_around_it(name):
    def model(**where):
        return nn.Sequential(nn.Linear(3, 3, **where), nn.LayerNorm(3, elementwise_affine=False))

    converted = norms.convert_norms(model(dtype=torch.bfloat16), name)
    assert converted(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    converted = norms.convert_norms(model(device="meta"), name)
    assert {tensor.device.type for tensor in converted.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", DYNAMIC)
def test_parameters_of_whole_numbers_around_it_lend_it_no_dtype(name):
    """As those of a quantised model."""
    quantised = nn.Module()
    quantised.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    norm, linear = nn.LayerNorm(3, elementwise_affine=False), nn.Linear(3, 3, dtype=torch.bfloat16)
    converted = norms.convert_norms(nn.ModuleList([quantised, norm, linear]), name)
    assert converted[1](torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {t.dtype for t in converted[1].state_dict().values()} <= {torch.bfloat16}


def test_a_layer_that_is_used_in_two_places_is_converted_in_both():
    shared = nn.LayerNorm(3)
    model = norms.convert_norms(nn.ModuleList([shared, nn.Sequential(shared), shared]), "DynamicTanh")
    assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert model[0] is model[1][0] is model[2]


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_lone_layer_is_converted_itself(name):
    converted = norms.convert_norms(nn.LayerNorm((2, 3), dtype=torch.float64).eval(), name)
    assert type(converted) is norms.NORMS[name]
    assert converted.normalized_shape == (2, 3)
    assert converted.weight.dtype == torch.float64
    assert not converted.training


def test_conversion_to_layer_norm_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, eps=1e-6))
    layers = list(model.modules())
    assert norms.convert_norms(model, "ln") is model
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))


def test_conversion_hands_options_to_every_layer():
    options = {"alpha_init": 0.8, "lam": 0.2, "smooth": 0.5, "alpha_min": 0.3, "alpha_max": 0.9}
    model = norms.convert_norms(nn.Sequential(nn.LayerNorm(3), nn.Sequential(nn.LayerNorm(3))), "adyt", **options)
    for layer in (model[0], model[1][0]):
        assert {name: getattr(layer, name) for name in options} == options
        assert layer.alpha_base.item() == pytest.approx(0.8)
        assert layer.alpha.item() == pytest.approx(0.9)  # 0.8 * 1.2, clipped
    assert norms.convert_norms(nn.LayerNorm(3), "dyt", alpha_init=2.0).alpha.item() == 2.0


def test_branches_without_norms_begin_at_0_and_their_scale_is_trained():
    model = norms.convert_norms(small_timm_model("vit", "NoNorm"), "none")
    x = torch.randn(2, 5, 192)
    block = model.blocks[0]
    assert torch.equal(block(x), x) and not any(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert {name for name, _ in block.named_parameters() if "ls" in name} == {"ls1.scale", "ls2.scale"}
    block(x).square().sum().backward()
    assert block.ls1.scale.grad.abs() > 0 and block.attn.qkv.weight.grad.abs().sum() == 0
    with torch.no_grad():
        block.ls1.scale.fill_(0.5)
        assert torch.allclose(block(x), x + 0.5 * block.attn(x))


def test_alpha_in_front_of_attention_can_be_another_one():
    model = norms.convert_norms(small_timm_model("vit", "derf"), "derf", alpha_init=0.3, alpha_before_attention=0.8)
    found = {name: round(m.alpha.item(), 6) for name, m in model.named_modules() if isinstance(m, norms.DynamicErf)}
    assert found == {"blocks.0.norm1": 0.8, "blocks.0.norm2": 0.3, "norm": 0.3}
    with pytest.raises(TypeError, match="alpha_init"):
        norms.convert_norms(small_timm_model("vit", "rms"), "rms", alpha_before_attention=0.8)


@pytest.mark.parametrize("name", ["BatchNorm", "layernorm", ""])
def test_an_unknown_norm_is_a_key_error(name):
    with pytest.raises(KeyError):
        norms.convert_norms(nn.LayerNorm(3), name)


@pytest.mark.parametrize("name", norms.NORMS)
def test_an_unknown_option_is_a_type_error(name):
    with pytest.raises(TypeError, match="sharpness"):
        norms.convert_norms(nn.Sequential(nn.LayerNorm(3)), name, sharpness=1.0)


# Watching alpha, and standing alone


def test_norm_alphas_names_every_layer_with_its_alpha_and_saturation():
    inside, above, below = (norms.AdaptiveDynamicTanh(3, alpha_init=a) for a in (0.5, 1.9, 0.05))
    layers = OrderedDict(
        ln=nn.LayerNorm(3),
        dyt=norms.DynamicTanh(3, alpha_init=3.0),
        rms=norms.RMSNorm(3),
        deep=nn.Sequential(norms.DynamicErf(3, alpha_init=0.25), inside),
        above=above,
        below=below,
    )
    rows = norms.norm_alphas(nn.Sequential(layers))
    assert [name for name, _, _ in rows] == ["dyt", "deep.0", "deep.1", "above", "below"]
    assert [value for _, value, _ in rows] == pytest.approx([3.0, 0.25, 0.55, 2.0, 0.1], rel=1e-5)
    assert [saturated for _, _, saturated in rows] == [None, None, False, True, True]
    assert norms.norm_alphas(nn.Sequential(nn.LayerNorm(3))) == []


@pytest.mark.slow
def test_norms_py_works_alone_and_needs_torch_only(tmp_path):
    shutil.copy(KIT / "norms.py", tmp_path / "norms.py")
    script = (
        "import sys, norms, torch\n"
        "model = norms.convert_norms(torch.nn.Sequential(torch.nn.LayerNorm(3)), 'adyt')\n"
        "model(torch.randn(2, 3)).sum().backward(); norms.update_adaptive(model); print(norms.norm_alphas(model))\n"
        "print(norms.__file__)\n"
        "print([m for m in ('timm', 'torchvision', 'maekit', 'train', 'PIL', 'pandas') if m in sys.modules])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    _, file, imported = result.stdout.splitlines()
    assert file == str(tmp_path / "norms.py")
    assert imported == "[]"
