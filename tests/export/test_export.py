"""Weights out: what timm, transformers and this kit make of an export is what the run computes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import norms
from maekit.export import hugging_face, trained
from maekit.model import build_mae, to_timm
from maekit.probes.readouts import read
from tests.support import KIT, export_here, train_here
from tests.support.exporting import MODEL, RUN

METHODS = {
    "LayerNorm": (),
    "RMSNorm": (),
    "DynamicTanh": ("--dyt_alpha_init", 0.7, "--dyt_alpha_attn", 0.9),
    "AdaptiveDynamicTanh": ("--adyt_lambda", 0.3, "--adyt_alpha_max", 1.4),
    "DynamicErf": ("--dyt_shift_init", 0.1),
    "BHyT": (),
    "NoNorm": (),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{method: folder of a run of one epoch}, two of LayerNorm's with other seeds, evaluations below two of them."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for method, options in METHODS.items():
        found[method] = root / method / "seed0"
        train_here(*RUN, "--norm", method, *options, "--ema", 0.9, "--output_dir", found[method], check=0)
    for seed in (1, 2):
        flags = ("--norm", "ln", "--ema", 0.9, "--seed", seed, "--output_dir", root / f"LayerNorm/seed{seed}")
        train_here(*RUN, *flags, check=0)
    for method in ("LayerNorm", "DynamicTanh"):
        for task in ("finetune", "linprobe"):
            for readout in ("cls", "mean"):
                name = f"{method} {task} {readout}"
                found[name] = found[method] / f"{task}_{readout}"
                flags = ("--task", task, "--readout", readout, "--init", found[method], "--output_dir", found[name])
                train_here(*RUN, *flags, check=0)
    return found


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def autoencoder(run, weights="model"):
    """The autoencoder of a run's checkpoint, put together here."""
    known = trained.read(run)
    mae = norms.convert_norms(
        build_mae(MODEL, img_size=32, decoder_type="dec16d1h2"), known.norm, **known.norm_arguments
    )
    mae.load_state_dict(torch.load(run / "checkpoint.pth", weights_only=True)[weights])
    return mae.eval()


def classifier(run):
    """A function of images to the logits of an evaluation's checkpoint."""
    known = trained.read(run)
    state = torch.load(run / "checkpoint.pth", weights_only=True)["model"]
    mae = norms.convert_norms(build_mae(MODEL, img_size=32), known.norm, **known.norm_arguments)
    if known.task == "finetune":
        vit = to_timm(mae, num_classes=10, global_pool="avg" if known.reads_mean else "token").eval()
        vit.load_state_dict(state)
        return vit
    vit = to_timm(mae).eval()
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(32, eps=1e-6, affine=False), torch.nn.Linear(32, 10)).eval()
    head.load_state_dict(
        {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    )
    vit.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    return lambda images: head(read(vit.forward_features(images), "mean" if known.reads_mean else "cls").float())


def exported(run, folder, to, *flags):
    export_here(run, folder, "--to", to, *flags, check=0)
    return folder


def loaded(folder):
    """`model` of the lines in the card, run in a process of its own in the folder, as who reads the card does."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    more = "import torch\nmodel.eval()\ntorch.save(model, 'loaded.pt')\n"
    done = subprocess.run([sys.executable, "-c", code + more], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr and "MISSING" not in done.stderr, done.stderr
    model = torch.load(folder / "loaded.pt", weights_only=False)
    (folder / "loaded.pt").unlink()
    return model


# timm


@pytest.mark.parametrize("weights", ["model", "ema"])
@pytest.mark.parametrize("method", METHODS)
def test_timm_computes_the_features_of_the_run(runs, images, tmp_path, method, weights):
    folder = exported(runs[method], tmp_path / "out", "timm", *(["--ema"] if weights == "ema" else []))
    known = json.loads((folder / "config.json").read_text())
    import timm

    vit = timm.create_model(known["architecture"], num_classes=0, **known["model_args"])
    arguments = trained.read(runs[method]).norm_arguments
    vit = norms.convert_norms(vit, known["norm"], **arguments).eval()
    vit.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    with torch.no_grad():
        expected = to_timm(autoencoder(runs[method], weights)).eval()(images)
        torch.testing.assert_close(vit(images), expected, rtol=0, atol=1e-6)
        other = to_timm(autoencoder(runs[method], {"model": "ema", "ema": "model"}[weights])).eval()(images)
    assert (other - expected).abs().max() > 2e-6  # so that the test would see the wrong weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh", "NoNorm"])
def test_the_lines_in_the_card_load_it_into_timm(runs, images, tmp_path, name):
    sys.modules.pop("norms", None)
    model = loaded(exported(runs[name], tmp_path / "out", "timm"))
    with torch.no_grad():
        torch.testing.assert_close(model(images), to_timm(autoencoder(runs[name])).eval()(images), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["cls", "mean"])
@pytest.mark.parametrize("task", ["finetune", "linprobe"])
@pytest.mark.parametrize("method", ["LayerNorm", "DynamicTanh"])
def test_classifiers_keep_their_logits_in_timm(runs, images, tmp_path, method, task, readout):
    run = runs[f"{method} {task} {readout}"]
    model = loaded(exported(run, tmp_path / "out", "timm"))
    with torch.no_grad():
        expected = classifier(run)(images)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_timm_reads_the_folder_itself_and_refuses_another_norm(runs, images, tmp_path):
    import timm

    try:
        timm.models._factory.parse_model_name("local-dir:x")
    except AssertionError:
        pytest.skip(f"timm {timm.__version__} reads such folders from the hub alone")
    folder = exported(runs["LayerNorm"], tmp_path / "ln", "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(images), to_timm(autoencoder(runs["LayerNorm"])).eval()(images), rtol=0, atol=1e-6
        )
    folder = exported(runs["DynamicTanh"], tmp_path / "dyt", "timm")
    with pytest.raises(RuntimeError, match="alpha"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


# transformers


@pytest.mark.slow
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_transformers_computes_what_the_run_does(tmp_path, images, norm_pix_loss):
    t = pytest.importorskip("transformers")
    flags = ["--norm_pix_loss"] if norm_pix_loss else []
    train_here(*RUN, *flags, "--output_dir", tmp_path / "run", check=0)
    folder = exported(tmp_path / "run", tmp_path / "out", "huggingface")
    mae = autoencoder(tmp_path / "run").double()
    mae.norm_pix_loss = norm_pix_loss
    theirs, report = t.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        found = theirs.eval().double()(images.double(), noise=noise)
        loss, pred, mask = mae(images.double(), noise=noise)
        assert torch.equal(mask.bool(), found.mask.bool())
        torch.testing.assert_close(found.logits, pred, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.loss, loss, rtol=1e-12, atol=0)
        classifies = t.ViTForImageClassification.from_pretrained(folder).eval().double()
        tokens = to_timm(mae).eval().double().forward_features(images.double())
        torch.testing.assert_close(classifies.vit(images.double()).last_hidden_state, tokens, rtol=0, atol=1e-6)
        torch.testing.assert_close(loaded(folder).vit.layernorm.weight, mae.norm.weight.float())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["finetune", "linprobe"])
def test_classifiers_keep_their_logits_in_transformers(runs, images, tmp_path, task):
    pytest.importorskip("transformers")
    run = runs[f"LayerNorm {task} cls"]
    model = loaded(exported(run, tmp_path / "out", "huggingface"))
    assert model.config.id2label[0] == min(model.config.label2id) != "LABEL_0"
    with torch.no_grad():
        expected = classifier(run)(images)
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
def test_a_linear_decoder_leaves_the_encoder(tmp_path, images):
    t = pytest.importorskip("transformers")
    train_here(*(w if w != "dec16d1h2" else "linear" for w in RUN), "--output_dir", tmp_path / "run", check=0)
    folder = exported(tmp_path / "run", tmp_path / "out", "huggingface")
    model = loaded(folder)
    assert isinstance(model, t.ViTModel) and model.pooler is None
    mae = build_mae(MODEL, img_size=32, decoder_type="linear")
    mae.load_state_dict(torch.load(tmp_path / "run/checkpoint.pth", weights_only=True)["model"])
    with torch.no_grad():
        expected = to_timm(mae).eval().forward_features(images)
        torch.testing.assert_close(model.eval()(images).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["resized", "whole"])
def test_their_image_processor_sees_the_validation_images_of_the_run(tmp_path, crop):
    t = pytest.importorskip("transformers")
    from PIL import Image

    from maekit.data.crops import CROPS
    from maekit.data.decoding import Picture

    train_here(*RUN, "--crop", crop, "--output_dir", tmp_path / "run", check=0)
    folder = exported(tmp_path / "run", tmp_path / "out", "huggingface")
    path = next(Path(json.loads((tmp_path / "run/config.json").read_text())["data"]["val"]).rglob("*.*"))
    found = t.AutoImageProcessor.from_pretrained(folder)(Image.open(path), return_tensors="pt")["pixel_values"]
    with Image.open(path) as file:
        ours = Picture(np.asarray(file.convert("RGB"))).center_crop(CROPS[crop].short_side(32), 32)
    from maekit.data.pixels import Pixels

    difference = (found - Pixels("cpu").normalize(ours[None])).abs()
    assert found.shape == (1, 3, 32, 32) and difference.mean() < 0.02, difference.mean()


def test_names_are_those_that_transformers_4_saves(tmp_path):
    known = safetensors.torch.load_file(KIT / "tests/golden/transformers4/model.safetensors")
    mae = build_mae("enc8d2h2p4", img_size=16, decoder_type="dec8d1h2")
    ours = hugging_face.renamed(mae.state_dict())
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in known.items()}


# This kit


@pytest.mark.parametrize(
    ("method", "to"),
    [("LayerNorm", "huggingface"), ("LayerNorm", "timm"), ("LayerNorm", "upstream"), ("AdaptiveDynamicTanh", "timm")],
)
def test_an_export_scores_here_what_the_run_scores(runs, tmp_path, method, to):
    folder = exported(runs[method], tmp_path / "out", to)
    init = (folder / "checkpoint.pth", "--norm", method, "--model", MODEL) if to == "upstream" else (folder,)
    summaries, identities = [], []
    for name, where in (("run", (runs[method],)), ("export", init)):
        flags = ("--demo", "--task", "knn", "--max_images", 64, "--num_workers", 0, "--cache", "off", "--device", "cpu")
        size = ("--input_size", 32) if name == "export" and to == "upstream" else ()
        train_here(*flags, *size, "--init", *where, "--output_dir", tmp_path / name, check=0)
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text())["acc1"])
        identities.append(json.loads((tmp_path / name / "config.json").read_text())["identity"])
    assert summaries[0] == summaries[1]
    own, theirs = ({k: v for k, v in i.items() if k.startswith(("adyt", "norm", "model"))} for i in identities)
    assert own == theirs
