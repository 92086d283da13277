"""Weights that others have made, through --init: the same numbers come out of them, and what they are is said truthfully."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import norms
from maekit.errors import InputError
from maekit.model import others
from maekit.model.mae import build_mae
from maekit.settings import published
from maekit.training import checkpoint
from tests.support import KIT, train_here
from tests.support.commands import complaint, resolved

SAVED = [KIT / "tests/golden/transformers4", KIT / "tests/golden/transformers5"]
MODEL = ("--model", "mae_vit_demo_patch8", "--input_size", "32")
DEMO = ("--demo", "--max_images", "32", "--batch_size", "16", "--num_workers", "0", "--device", "cpu", "--cache", "off")


@pytest.fixture(scope="module")
def mae():
    torch.manual_seed(1)
    return build_mae("mae_vit_demo_patch8", img_size=32)


def saved(weights, path):
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    return path


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# Files of PyTorch


@pytest.mark.parametrize("key", [*others.WRAPPERS, None])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "encoder.", "model.", "vit.", "a.b."]
)
def test_weights_are_found_under_any_key_and_behind_any_prefix(mae, tmp_path, key, prefix):
    weights = {prefix + name: value for name, value in mae.state_dict().items()}
    weights |= {"probe.weight": torch.ones(2)} if prefix else {}
    path, said = saved(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "x.pth"), []
    same(checkpoint.read_weights(path, said.append)["model"], mae.state_dict())
    assert len(said) == bool(prefix)
    if prefix:
        assert f"with {prefix} before each name" in said[0] and "1 tensors of others left out (probe.weight)" in said[0]
        assert ("DistributedDataParallel" in said[0]) == ("module." in prefix)
        assert ("torch.compile" in said[0]) == ("_orig_mod." in prefix)


def test_a_safetensors_file_is_read_and_its_norm_believed(mae, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(mae.state_dict(), path, {"norm": "DynamicTanh"})
    state = checkpoint.read_weights(path)
    same(state["model"], mae.state_dict())
    with pytest.raises(InputError, match=r"its norm layers are DynamicTanh, here they are LayerNorm"):
        checkpoint.load_encoder(path, state, mae, norm="LayerNorm")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: {f"student.{n}": v for n, v in w.items()} | {f"teacher.{n}": v for n, v in w.items()},
            "several networks",
        ),
        (lambda w: {"conv1.weight": torch.ones(2)}, "has no cls_token among its 1 tensors (conv1.weight)"),
        (
            lambda w: {**w, "pos_embed": w["pos_embed"][:, :9]},
            "pos_embed has 9 positions, one of the class token and 8 of",
        ),
        (lambda w: {**w, "pos_embed": w["pos_embed"][0]}, "pos_embed is (17, 64), where"),
        (lambda w: {**w, "norm.bias": w["norm.bias"] / 0}, "of the 64 values of norm.bias are not finite"),
        (lambda w: {"epoch": 3, "loss": 0.1}, "has no weights: expected them under one of model, state_dict"),
        (lambda w: {"model": {}, "epoch": 3}, "has no weights"),
        (lambda w: torch.ones(3), "holds a Tensor, no dict of weights"),
        (lambda w: [1, 2], "holds a list, no dict of weights"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_what_a_file_is_not_is_said_truthfully(mae, tmp_path, change, said, wrapped):
    changed = change(mae.state_dict())
    path = tmp_path / "x.pth"
    if wrapped and isinstance(changed, dict) and "epoch" not in changed:
        changed = {"model": changed}
    torch.save(changed, path)
    line = complaint(*DEMO, *MODEL, "--task", "knn", "--init", path, "--output_dir", tmp_path / "out")
    assert line.startswith(f"error: {path}: ") and said in line, line


def test_another_norm_is_named_only_where_the_norms_differ(mae, tmp_path):
    path = saved(norms.convert_norms(build_mae(MODEL[1], img_size=32), "rms").state_dict(), tmp_path / "x.pth")
    line = complaint(*DEMO, *MODEL, "--task", "knn", "--init", path, "--output_dir", tmp_path / "out")
    assert "its norm layers are RMSNorm, here they are LayerNorm" in line


@pytest.mark.parametrize("damage", ["cut", "text", "header"])
def test_a_damaged_safetensors_file_is_one_line(mae, tmp_path, damage):
    path = saved(mae.state_dict(), tmp_path / "x.safetensors")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "text": b"no weights", "header": b"\xff" * 8 + whole[8:]}[damage])
    line = complaint(*DEMO, *MODEL, "--task", "knn", "--init", path, "--output_dir", tmp_path / "out")
    assert f"{path}: truncated, damaged or no safetensors file" in line


# timm


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_timms_network_is_read_as_an_encoder_with_its_features(tmp_path, ending):
    torch.manual_seed(2)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=7).eval()
    path, said = saved(vit.state_dict(), tmp_path / f"vit.{ending}"), []
    ours = build_mae("enc192d2h3p16", img_size=64).eval()
    checkpoint.load_encoder(path, checkpoint.read_weights(path, said.append), ours, norm="LayerNorm")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(_tokens(ours, images), vit.forward_features(images), rtol=0, atol=1e-5)


def _tokens(mae, images):
    """The encoder's tokens of whole images, in the images' order."""
    order = torch.linspace(0, 1, mae.patch_embed.num_patches).expand(len(images), -1)
    return mae.forward_encoder(images, 0.0, order)[0]


# Hugging Face


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
def test_what_transformers_saved_computes_here_what_it_computed_there(folder):
    file, network = published.weights_in(folder, str(folder))
    assert network == {
        "norm": "LayerNorm",
        "input_size": 16,
        "model": "enc8d2h2p4",
        "decoder_type": "dec8d1h2",
        "norm_pix_loss": True,
    }
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    mae = build_mae(
        network["model"], img_size=16, decoder_type=network["decoder_type"], norm_pix_loss=network["norm_pix_loss"]
    ).eval()
    said = []
    checkpoint.load_weights(file, checkpoint.read_weights(file, said.append), mae, norm="LayerNorm", say=said.append)
    assert said == [f"{file}: weights as Hugging Face's ViTMAE names them."]
    with torch.no_grad():
        loss, pred, mask = mae(expected["images"], noise=expected["noise"])
        tokens, _, _ = mae.forward_encoder(expected["images"], 0.75, expected["noise"])
    for found, name in ((loss[None], "loss"), (pred, "pred"), (mask, "mask"), (tokens, "tokens")):
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_transformers_and_the_kit_agree_under_equal_weights_images_and_noise(norm_pix_loss, tmp_path):
    t = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = t.ViTMAEConfig(
        num_hidden_layers=2,
        decoder_num_hidden_layers=1,
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,
        image_size=64,
    )
    theirs = t.ViTMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "saved")
    torch.save(theirs.state_dict(), tmp_path / "in memory.pth")  # by the names that version 5 has there
    images, noise = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.rand(2, 16)
    expected = theirs.double()(images, noise=noise)
    for path in (tmp_path / "saved/model.safetensors", tmp_path / "in memory.pth"):
        ours = build_mae("enc768d2h12p16", img_size=64, decoder_type="dec512d1h16", norm_pix_loss=norm_pix_loss).eval()
        checkpoint.load_weights(path, checkpoint.read_weights(path), ours)
        loss, pred, mask = ours.double()(images, noise=noise)
        assert torch.equal(mask.bool(), expected.mask.bool())
        torch.testing.assert_close(pred, expected.logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("named", ["the folder", "its file"])
def test_a_saved_folder_is_evaluated_with_the_network_that_its_config_says(named, tmp_path):
    where = SAVED[1] if named == "the folder" else SAVED[1] / "model.safetensors"
    flags = () if named == "the folder" else ("--model", "enc8d2h2p4", "--input_size", 16)
    out = tmp_path / "out"
    result = train_here(*DEMO, "--task", "knn", "--init", where, *flags, "--output_dir", out, check=0)
    assert "weights as Hugging Face's ViTMAE names them." in result.stdout
    config = json.loads((out / "config.json").read_text())
    assert config["identity"]["model"] == "enc8d2h2p4" and config["identity"]["input_size"] == 16
    assert config["identity"]["init"].startswith("sha256:")


def test_a_network_that_the_kit_has_not_is_refused_by_what_differs(tmp_path):
    for key, value, said in (
        ("model_type", "dinov2", "is of model_type dinov2, where vit and vit_mae are read"),
        ("hidden_act", "relu", "its hidden_act is relu, here it is gelu"),
        ("intermediate_size", 24, "its intermediate_size is 24, here it is 32"),
        ("num_channels", 1, "its num_channels is 1, here it is 3"),
        ("image_size", [16, 24], "its image_size is [16, 24], here they are square"),
        ("patch_size", [4, 8], "its patch_size is [4, 8], here they are square"),
    ):
        folder = tmp_path / key
        shutil.copytree(SAVED[0], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        assert f"--init {folder}: {said}." in complaint(*DEMO, "--task", "knn", "--init", folder)


def test_a_saved_folder_without_weights_that_are_read_says_so(tmp_path):
    folder = tmp_path / "saved"
    shutil.copytree(SAVED[0], folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    line = complaint(*DEMO, "--task", "knn", "--init", folder)
    assert f"--init {folder}: has a config.json, but neither model.safetensors nor pytorch_model.bin" in line
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "its weights are in several files" in complaint(*DEMO, "--task", "knn", "--init", folder)


def test_sides_that_are_told_twice_are_one():
    told = {"model_type": "vit", "image_size": [224, 224], "patch_size": [16, 16]}
    assert published._of_transformers(told)["model"] == "mae_vit_base_patch16"


def test_a_dry_run_of_a_driver_downloads_nothing(tmp_path):
    """And needs no packages for it."""
    script = "import sys; sys.modules['huggingface_hub'] = None; import runpy; sys.argv[0] = 'c'; "
    script += "runpy.run_module('maekit.drivers.check_commands', run_name='__main__')"
    for name, code in (("facebook/vit-mae-base", 0), ("vit-mae-base", 2)):
        line = f"python train.py --demo --init hf-hub:{name}\n"
        done = subprocess.run(
            [sys.executable, "-c", script], input=line, cwd=KIT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr


def test_names_of_upstreams_sizes_are_found_in_configs():
    base = {"model_type": "vit_mae", "norm_pix_loss": True}
    assert published._of_transformers(base)["model"] == "mae_vit_base_patch16"
    assert published._of_transformers(base)["decoder_type"] is None
    assert published._of_transformers({**base, "decoder_num_hidden_layers": 4})["decoder_type"] == "dec512d4h16"
    timms = published._of_timm({"architecture": "vit_base_patch16_224", "num_classes": 0})
    assert timms == {"norm": "LayerNorm", "model": "mae_vit_base_patch16", "input_size": 224}
    assert published._of_timm({"architecture": "resnet50"}) == {}


def test_the_hub_is_asked_for_weights_and_config_and_what_it_refuses_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(SAVED[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    settings = resolved(*DEMO, "--task", "knn", "--init", "hf-hub:facebook/vit-mae-base")
    assert settings.init == str(SAVED[0] / "model.safetensors") and settings.model.name == "enc8d2h2p4"
    assert asked == [
        ("facebook/vit-mae-base", ["config.json", "*.index.json", "model.safetensors", "pytorch_model.bin"])
    ]

    def fail(name, allow_patterns):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    line = complaint(*DEMO, "--task", "knn", "--init", "hf-hub:facebook/vit-mae-base")
    assert (
        "cannot be downloaded (ConnectionError: no route to host)" in line
        and "hf download facebook/vit-mae-base" in line
    )
    assert "no name of the hub" in complaint(*DEMO, "--task", "knn", "--init", "hf-hub:vit-mae-base")


def test_features_of_a_saved_network_score_the_same_from_either_program(tmp_path):
    """k-NN of the same weights as this kit's file and as Hugging Face's."""
    file = SAVED[0] / "model.safetensors"
    mae = build_mae("enc8d2h2p4", img_size=16, decoder_type="dec8d1h2")
    checkpoint.load_weights(file, checkpoint.read_weights(file), mae)
    own = saved({"model": mae.state_dict()}, tmp_path / "own.pth")
    found = []
    for name, where in (("theirs", SAVED[0]), ("ours", own)):
        flags = ("--model", "enc8d2h2p4", "--input_size", 16, "--output_dir", tmp_path / name)
        train_here(*DEMO, "--task", "knn", "--init", where, *flags, check=0)
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["acc1"])
    assert found[0] == found[1] and np.isfinite(found[0])
