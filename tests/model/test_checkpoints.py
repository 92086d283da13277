"""What a checkpoint of a model must be, and what files that are none are called."""

import numpy as np
import pytest
import torch
from torch import nn

import norms
from maekit.errors import InputError
from maekit.model.formats import encoder_weights
from maekit.training import checkpoint


def saved(path, state):
    torch.save(state, path)
    return path


def test_a_checkpoint_with_the_weights_under_model_loads_exactly(small, another, tmp_path):
    path = saved(tmp_path / "checkpoint.pth", {"model": small.state_dict()})
    checkpoint.load_model(path, checkpoint.read(path), another)
    assert another.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in another.state_dict().items())


@pytest.mark.parametrize(
    "other", ["decoder_pred.weight", "mask_token", "head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"]
)
def test_decoder_and_classifier_are_no_part_of_the_encoder(other):
    own = dict.fromkeys(
        ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "norm.weight"], 1
    )
    assert encoder_weights({**own, other: 2}) == own


def test_a_scalar_alpha_of_another_implementation_loads(tmp_path):
    state = norms.DynamicTanh(3, alpha_init=0.75).state_dict()
    path = saved(tmp_path / "checkpoint.pth", {"model": {**state, "alpha": state["alpha"].reshape(())}})
    layer = norms.DynamicTanh(3)
    checkpoint.load_model(path, checkpoint.read(path), layer)
    assert layer.alpha.tolist() == [0.75]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update({"cls_token": torch.zeros(1, 1, 80)}), "cls_token"),
        (lambda w: w.update({"blocks.0.mlp.fc1.weight": w["blocks.0.mlp.fc1.weight"].T}), "blocks.0.mlp.fc1.weight"),
    ],
    ids=["missing", "extra", "wrong size", "transposed"],
)
def test_weights_of_another_model_are_refused_by_name_and_change_nothing(small, another, tmp_path, change, named):
    weights = dict(small.state_dict())
    change(weights)
    path = saved(tmp_path / "checkpoint.pth", {"model": weights})
    before = {name: value.clone() for name, value in another.state_dict().items()}
    with pytest.raises(InputError) as raised:
        checkpoint.load_model(path, checkpoint.read(path), another)
    assert str(path) in str(raised.value) and named in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in another.state_dict().items())


def write_truncated(path):
    torch.save({"model": {"weight": torch.randn(100, 100)}}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "write",
    [
        write_truncated,
        lambda path: path.write_text("not a checkpoint\nat all\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(1000)),
        lambda path: path.write_bytes(b"\x80\x02."),
        lambda path: path.mkdir(),
        lambda path: torch.save({"weights": torch.zeros(2)}, path),
        lambda path: torch.save({"model": torch.zeros(2)}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save(nn.Linear(2, 2), path),
        lambda path: None,
    ],
    ids=[
        "truncated",
        "text",
        "empty",
        "half a header",
        "noise",
        "half a pickle",
        "folder",
        "no model",
        "tensor",
        "list",
        "whole module",
        "missing",
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_line_with_its_name(tmp_path, write):
    path = tmp_path / "checkpoint.pth"
    write(path)
    with pytest.raises(InputError) as raised:
        checkpoint.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
