"""Weights that come from somewhere else: converted to timm's network, to another input size, read from others' files."""

import argparse
import copy
import decimal
import json
import os
import pathlib
import pickle
import re
import sys
import types
from itertools import product

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import norms
import train as train_module
from maekit.data import sources
from maekit.errors import InputError
from maekit.model.formats import to_timm
from maekit.model.mae import build_mae
from maekit.model.patches import interpolate_positions
from maekit.settings import methods
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.training import checkpoint
from tests.support import run, train_here
from tests.support.commands import complaint

QUICK = ("--demo", "--max_images", "32", "--max_val_images", "all", "--batch_size", "16", "--num_workers", "0")
KNN, *_ = EVALUATIONS = [("--task", task) for task in ("knn", "finetune", "linprobe")]
MODEL = "mae_vit_demo_patch8"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a pre-training run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_here(*QUICK, "--epochs", "1", "--probes", "knn", "--output_dir", folder, check=0)
    return folder


@pytest.fixture(scope="module")
def weights(finished):
    return torch.load(finished / "checkpoint.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def encoder(weights, tmp_path_factory):
    """A file like the official ones for fine-tuning: the encoder alone."""
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    path = tmp_path_factory.mktemp("official") / "mae_pretrain_vit_demo.pth"
    torch.save({"model": {name: value for name, value in weights.items() if name.startswith(parts)}}, path)
    return path


def open_job(*flags):
    """The job of a command, before its first step."""
    settled = resolve(build_parser("", "").parse_args([str(flag) for flag in (*QUICK, *flags)]))
    return train_module.open_task(settled, sources.open_source(settled.data, settled.seed))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The encoder as timm's network


def trained(norm, options=None):
    """A masked autoencoder none of whose weights has its initial value, and normalised images."""
    torch.manual_seed(0)
    mae = norms.convert_norms(build_mae(MODEL, img_size=64), norm, **(options or {}))
    with torch.no_grad():
        for name, value in mae.state_dict().items():
            if "pos_embed" not in name:
                value += 0.03 * torch.randn_like(value)
    return mae.eval(), torch.randn(5, 3, 64, 64)


@pytest.mark.parametrize("norm", methods.NORMS)
def test_timms_network_has_the_features_of_the_encoder(norm):
    mae, images = trained(norm)
    vit = to_timm(mae, num_classes=7).eval()
    with torch.no_grad():
        theirs = mae.forward_encoder(images, 0.0)[0][:, 0]
        ours = vit.forward_features(images)[:, 0]
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max() < 5e-5 * theirs.std()
        assert torch.equal(vit(images), vit.head(ours))


@pytest.mark.parametrize(("name", "side"), [("enc60d2h5p7", 28), ("enc64d3h4p4", 32), ("enc96d2h3p12", 96)])
def test_a_model_by_its_numbers_is_timms_network_too(name, side):
    torch.manual_seed(0)
    mae = build_mae(name, img_size=side, decoder_type="dec48d1h3", pos_embed="learned").eval()
    images = torch.randn(2, 3, side, side)
    features = to_timm(mae).eval().forward_features(images)
    latent, _, _ = mae.forward_encoder(images, 0, noise=torch.arange((side // mae.patch_size) ** 2).expand(2, -1) * 1.0)
    torch.testing.assert_close(features, latent, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", methods.NORMS)
def test_pooled_it_has_a_fresh_norm_behind_the_mean_of_the_patches(norm):
    options = {"alpha_init": 0.7} if norm in (*norms.FUNCTIONS, "AdaptiveDynamicTanh") else {}
    mae, images = trained(norm, options)
    vit = to_timm(mae, num_classes=7, global_pool="avg").eval()
    width = mae.cls_token.shape[-1]
    fresh = nn.LayerNorm(width, eps=1e-6) if norm == "LayerNorm" else norms.NORMS[norm](width, **options)
    mae.norm = nn.Identity()
    with torch.no_grad():
        theirs = fresh(mae.forward_encoder(images, 0.0)[0][:, 1:].mean(dim=1))
        ours = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max() and theirs.std() > 0.1


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("norm", methods.NORMS)
def test_converting_is_timms_class_draws_nothing_and_shares_nothing(norm, pool):
    mae, images = trained(norm)
    before = copy.deepcopy(mae.state_dict())
    state = torch.get_rng_state()
    vit = to_timm(mae, num_classes=7, global_pool=pool, drop_path_rate=0.1)
    assert torch.equal(torch.get_rng_state(), state), "the global stream was used"
    assert type(vit) is VisionTransformer and all(p.requires_grad for p in vit.parameters())
    kinds = {type(module) for name, module in vit.named_modules() if "norm" in name}
    assert kinds <= {norms.NORMS[norm], nn.Identity} and norms.NORMS[norm] in kinds
    again = pickle.loads(pickle.dumps(vit))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), vit.eval()(images))
        for value in vit.state_dict().values():
            value += 1
    assert same(mae.state_dict(), before)


@pytest.mark.parametrize("norm", methods.NORMS)
def test_resetting_a_norm_gives_the_values_of_its_constructor(norm):
    options = {
        "DynamicTanh": {"alpha_init": 0.7},
        "AdaptiveDynamicTanh": {"alpha_init": 0.7, "lam": 0.3},
        "DynamicErf": {"alpha_init": 0.7, "shift_init": 0.2},
        "Hardtanh": {"alpha_init": 0.7, "shift_init": None},
        "BHyT": {"lam_init": 0.7},
    }.get(norm, {})
    layer = norms.NORMS[norm](6, **options)
    first = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for value in layer.state_dict().values():
            value += 3
    assert not any(torch.equal(value, first[name]) for name, value in layer.state_dict().items())
    layer.reset_parameters()
    assert same(layer.state_dict(), first)


# Position tables


def bicubic(old, new):
    """(new, old) weights of bicubic interpolation with a = -0.75, half-pixel centres and repeated borders, in numpy."""

    def kernel(distance):
        x, a = abs(distance), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, min(max(j, 0), old - 1)] += kernel(centre - j)
    return weights


@pytest.mark.parametrize(("old", "new"), [(8, 4), (4, 8), (14, 24), (8, 5), (3, 3)])
def test_positions_are_interpolated_by_upstreams_rule(old, new):
    """util/pos_embed.py: bicubic over the grid of patches, the CLS row as it is."""
    table = torch.randn(1, 1 + old**2, 12, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(table, new)
    grid = table[0, 1:].double().numpy().reshape(old, old, 12)
    expected = np.einsum("ri,cj,ijd->rcd", bicubic(old, new), bicubic(old, new), grid)
    assert found.shape == (1, 1 + new**2, 12) and torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].numpy(), expected.reshape(-1, 12), atol=1e-5)
    if old == new:
        assert torch.equal(found, table)


@pytest.mark.slow
def test_another_input_size_is_said_and_works(finished, weights, tmp_path):
    path = finished / "checkpoint.pth"
    flags = (*QUICK, "--init", path, "--input_size", "32", "--epochs", "1")
    result = train_here(*flags, "--output_dir", tmp_path / "run", check=0)
    for name in ("pos_embed", "decoder_pos_embed"):
        assert f"{path}: {name} is interpolated from 8 x 8 patches to 4 x 4" in result.stdout
    result = train_here(*QUICK, *KNN, "--init", finished, "--input_size", "32", "--output_dir", tmp_path / "k", check=0)
    assert f"{path}: pos_embed is interpolated from 8 x 8" in result.stdout and "decoder" not in result.stdout
    result = train_here(*QUICK, *KNN, "--init", finished, "--output_dir", tmp_path / "same", check=0)
    assert "interpolated" not in result.stdout
    for task in (*EVALUATIONS, ()):
        network = open_job(*task, "--init", path, "--input_size", "96").network
        assert torch.equal(network.pos_embed, interpolate_positions(weights["pos_embed"], 12))
        assert torch.equal(network.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])


# Pre-training from weights


def test_pre_training_starts_from_the_weights_of_the_file(finished, weights, capsys):
    """Before its first step; the baseline that it is compared with is still the untrained encoder of the seed."""
    job = open_job("--init", finished, "--probes", "all", "--seed", "1")
    assert same(job.network.state_dict(), weights)
    fresh = train_module.build_model(job.run).state_dict()
    assert same(job.probes["frozen"].untrained.state_dict(), fresh) and not same(fresh, weights)
    assert capsys.readouterr().out == "", "nothing is special about it"


def test_weights_that_do_not_move_score_what_they_scored_there(finished, tmp_path):
    """At a rate of next to nothing; the baselines are those of the seed, not of the file."""
    flags = (*QUICK, "--epochs", "1", "--lr", "1e-30", "--probes", "knn", "--init", finished)
    train_here(*flags, "--output_dir", tmp_path / "run", check=0)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", finished))
    for name in ("val_mse", "knn_accuracy", "untrained_knn_accuracy"):
        assert ours[name] == theirs[name]
    assert ours["knn_accuracy"] != ours["untrained_knn_accuracy"]
    assert "finished already" in train_here(*flags, "--output_dir", tmp_path / "run", check=0).stdout
    without = [flag for flag in flags if flag not in ("--init", finished)]
    assert "--init sha256:" in complaint(*without, "--output_dir", tmp_path / "run")


def test_an_encoder_alone_starts_pre_training_and_is_announced(encoder, weights, tmp_path):
    result = train_here(*QUICK, "--epochs", "1", "--init", encoder, "--output_dir", tmp_path / "run", check=0)
    said = [line for line in result.stdout.splitlines() if str(encoder) in line]
    assert len(said) == 1 and "an encoder without decoder. The decoder starts from random weights" in said[0]
    job = open_job("--init", encoder)
    ours, seeds = job.network.state_dict(), train_module.build_model(job.run).state_dict()
    for name, value in ours.items():
        assert torch.equal(value, (seeds if name.startswith(("decoder_", "mask_token")) else weights)[name]), name


def test_an_encoder_alone_can_be_evaluated_but_not_resumed(encoder, finished, tmp_path):
    result = train_here(*QUICK, *KNN, "--init", encoder, "--output_dir", tmp_path / "knn", check=0)
    assert "decoder" not in result.stdout
    scores = [json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "knn", finished)]
    assert scores[0]["acc1"] == scores[1]["knn_accuracy"]
    line = complaint(*QUICK, "--epochs", "2", "--resume", encoder, "--output_dir", tmp_path / "run")
    assert f"{encoder}: an encoder without decoder" in line and f"--init {encoder}" in line


def test_a_whole_official_file_starts_it_without_a_word(weights, tmp_path):
    path = tmp_path / "mae_visualize_vit_demo.pth"
    torch.save({"model": weights}, path)
    result = train_here(*QUICK, "--epochs", "1", "--init", path, "--output_dir", tmp_path / "run", check=0)
    assert str(path) not in result.stdout and "random" not in result.stdout
    assert same(open_job("--init", path).network.state_dict(), weights)


def test_a_classifier_in_the_file_is_left_out(weights):
    theirs = {
        **weights,
        "head.weight": torch.zeros(3, 96),
        "head.bias": torch.zeros(3),
        "fc_norm.weight": torch.ones(96),
    }
    for load in (checkpoint.load_weights, checkpoint.load_encoder):
        mae = build_mae(MODEL, img_size=64)
        load("x.pth", {"model": theirs}, mae)
        assert torch.equal(mae.blocks[1].mlp.fc2.weight, weights["blocks.1.mlp.fc2.weight"])
        assert torch.equal(mae.decoder_pred.weight, weights["decoder_pred.weight"]) == (load is checkpoint.load_weights)


BY_PARAMETERS = {"DynamicErf": "DynamicErf or another point-wise norm with a shift"} | {
    name: name for name in ("LayerNorm", "RMSNorm", "DynamicTanh", "AdaptiveDynamicTanh", "BHyT")
}


@pytest.mark.parametrize(("ours", "theirs"), [*product(methods.NORMS, repeat=2)])
@pytest.mark.parametrize("named", [True, False])
def test_only_weights_of_the_same_norm_are_loaded(named, theirs, ours):
    """By the norm's name in the file; in one without, by its parameters, which some norms share."""
    if not named and not {theirs, ours} <= set(BY_PARAMETERS):
        return

    def build(norm):
        torch.manual_seed(len(norm))
        return norms.convert_norms(build_mae(MODEL, img_size=64), norm)

    for load in (checkpoint.load_weights, checkpoint.load_encoder):
        mae, state = build(ours), {"model": build(theirs).state_dict()}
        state |= {"args": {"norm": theirs}} if named else {}
        before = copy.deepcopy(mae.state_dict())
        norm = ours if named else None
        if theirs == ours:
            load("x.pth", state, mae, norm=norm)
            assert torch.equal(mae.cls_token, state["model"]["cls_token"])
        else:
            there, here = (theirs, ours) if named else (BY_PARAMETERS[theirs], BY_PARAMETERS[ours])
            with pytest.raises(InputError, match=f"its norm layers are {there}, here they are {here}"):
                load("x.pth", state, mae, norm=norm)
            assert same(mae.state_dict(), before)


@pytest.mark.parametrize("load", [checkpoint.load_weights, checkpoint.load_encoder, checkpoint.load_model])
def test_weights_of_a_users_own_norm_are_not_taken_for_dynamic_tanh(load):
    """A norm whose parameters have the names and shapes of DynamicTanh's."""
    mae = norms.convert_norms(build_mae(MODEL, img_size=64), "DynamicTanh")
    state = {"model": mae.state_dict(), "args": {"norm": "OwnNorm"}}
    assert checkpoint.norm_of(state["model"], state["args"]) == "OwnNorm"
    says = "its norm layers are OwnNorm, a norm that this kit does not know, here they are DynamicTanh"
    with pytest.raises(InputError, match=f"x.pth: .*{says}"):
        load("x.pth", state, mae, norm="DynamicTanh")
    load("x.pth", {"model": mae.state_dict(), "args": {"norm": "DynamicTanh"}}, mae, norm="DynamicTanh")


def test_parameters_that_no_norm_of_the_kit_has_are_of_none():
    own = {"blocks.0.norm1.alpha": torch.ones(1), "blocks.0.norm1.gain": torch.ones(96)}
    assert checkpoint.norm_of(own) is None
    theirs = {**build_mae(MODEL, img_size=64).state_dict(), **own}
    with pytest.raises(InputError, match="its norm layers are of a norm that this kit does not know, here they are L"):
        checkpoint.load_weights("x.pth", {"model": theirs}, build_mae(MODEL, img_size=64))


# What may be in a file


class WindowsPath:
    """Pickled as the path of another system, under the name that a newer Python has for it."""

    def __reduce__(self):
        return sys.modules["pathlib._local"].WindowsPath, ("runs", "x")


def test_upstreams_own_checkpoints_are_read(weights, tmp_path, monkeypatch):
    """Their args are an argparse.Namespace, in which may be paths, written on any system by any Python."""
    newer = types.ModuleType("pathlib._local")
    newer.WindowsPath = type("WindowsPath", (pathlib.PurePath,), {"__module__": "pathlib._local"})
    monkeypatch.setitem(sys.modules, "pathlib._local", newer)
    args = argparse.Namespace(
        output_dir=pathlib.Path("x"), log_dir=WindowsPath(), lr=1e-3, betas=(0.9, 0.95), resume=""
    )
    torch.save({"model": weights, "optimizer": {}, "epoch": 399, "scaler": {}, "args": args}, tmp_path / "x.pth")
    monkeypatch.delitem(sys.modules, "pathlib._local")
    found = checkpoint.read(tmp_path / "x.pth")
    assert same(found["model"], weights) and (found["epoch"], found["args"].lr) == (399, 1e-3)
    assert isinstance(found["args"].output_dir, pathlib.PurePath)
    result = train_here(*QUICK, *KNN, "--init", tmp_path / "x.pth", "--output_dir", tmp_path / "run", check=0)
    assert "finished" in result.stdout


class Runs:
    """An object that runs a command where it is unpickled."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def test_nothing_in_a_file_is_run(weights, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "theirs.pth"
    for harm in (
        Runs(os.system, f"touch {marker}"),
        Runs(pathlib.Path.touch, marker),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
    ):
        torch.save({"model": weights, "args": harm}, path)
        for flags in (("--init", path), ("--resume", path), *((*task, "--init", path) for task in EVALUATIONS)):
            line = complaint(*QUICK, *flags, "--output_dir", tmp_path / "run")
            assert f"{path}: needs the Python object" in line and "refused" in line and not marker.exists()
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file does harm where it is let"
        marker.unlink()


@pytest.mark.slow
def test_a_file_with_other_objects_is_refused_with_a_command_that_converts_it(weights, tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"model": weights, "args": argparse.Namespace(lr=decimal.Decimal("0.5"))}, path)
    flags = (*QUICK, *KNN, "--output_dir", tmp_path / "run")
    line = complaint(*flags, "--init", path)
    assert f"{path}: needs the Python object decimal.Decimal," in line
    command = re.search(r'python -c ("import torch; .*")\.$', line).group(1)
    run("bash", "-c", f"{sys.executable} -c {command}", cwd=tmp_path, check=0)
    assert same(checkpoint.read(tmp_path / "weights.pth")["model"], weights)
    train_here(*flags, "--init", tmp_path / "weights.pth", check=0)
