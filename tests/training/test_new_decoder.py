"""A new decoder on a frozen encoder: --freeze encoder."""

import json

import pytest
import torch

from maekit.model.formats import encoder_weights
from maekit.runs.reading import evaluation_column, evaluation_result, is_evaluation, load_runs
from tests.support import train_here
from tests.support.commands import complaint, resolved
from tests.support.runs import same, state, summary

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["LayerNorm", "AdaptiveDynamicTanh"])
def test_the_encoder_stays_as_it_is_and_the_decoder_is_new(norm, tmp_path):
    """Also what an AdaptiveDynamicTanh knows of its gradients, which would decay where there are none."""
    train_here(*QUICK, "--norm", norm, "--output_dir", tmp_path / "run", check=0)
    train_here(*QUICK, "--freeze", "encoder", "--init", tmp_path / "run", "--output_dir", tmp_path / "new", check=0)
    before, after = (state(tmp_path / name)["model"] for name in ("run", "new"))
    ours, theirs = encoder_weights(after), encoder_weights(before)
    assert same(ours, theirs) and len(ours) > 20
    moved = {name for name in after if name not in ours and not torch.equal(after[name], before[name])}
    assert {"decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight", "decoder_pred.weight", "mask_token"} <= moved
    assert state(tmp_path / "new")["args"]["norm"] == norm and not (tmp_path / "new/trajectory.json").exists()
    losses = [row["val_mse"] for row in state(tmp_path / "new")["history"]["log"]]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_it_goes_on_after_an_interruption_as_if_there_had_been_none(tmp_path):
    train_here(*QUICK, "--output_dir", tmp_path / "run", check=0)
    flags = (*QUICK, "--freeze", "encoder", "--init", tmp_path / "run")
    train_here(*flags, "--output_dir", tmp_path / "whole", check=0)
    half = ("--output_dir", tmp_path / "halves")
    train_here(*flags, *half, check=0)
    for name in ("summary.json", "checkpoint.pth"):
        (tmp_path / "halves" / name).unlink()
    (tmp_path / "halves/checkpoint.previous.pth").rename(tmp_path / "halves/checkpoint.pth")
    out = train_here(*flags, *half, check=0).stdout
    assert "goes on with epoch 1 of 2" in out
    assert same(state(tmp_path / "whole")["model"], state(tmp_path / "halves")["model"])


def test_it_has_the_autoencoder_of_the_run_that_it_starts_from(tmp_path):
    flags = ("--demo", "--norm", "dyt", "--decoder_type", "dec32d1h2", "--mask_ratio", "0.5", "--input_size", "32")
    identity = {**resolved(*flags).identity(), "init": None}
    (tmp_path / "config.json").write_text(json.dumps({"identity": identity}))
    for name in ("checkpoint.pth", "summary.json"):
        (tmp_path / name).write_text("{}")
    run = resolved("--demo", "--freeze", "encoder", "--init", str(tmp_path))
    assert (run.norm.name, run.model.decoder_type, run.model.mask_ratio, run.model.input_size) == (
        "DynamicTanh",
        "dec32d1h2",
        0.5,
        32,
    )
    assert run.output_dir.endswith("/DynamicTanh/seed0/decoder") and run.identity()["freeze"] == "encoder"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--freeze", "encoder"), "--init is to name the encoder"),
        (("--freeze", "encoder", "--init", "untrained", "--alpha", "0.5"), "--alpha moves encoders"),
        (("--freeze", "encoder", "--init", "untrained", "--task", "knn"), "--task trains no decoder"),
        (("--freeze", "decoder", "--init", "untrained"), "Choose from encoder"),
    ],
    ids=str,
)
def test_what_cannot_be_frozen_is_one_line(flags, said):
    error = complaint(*flags)
    assert error.startswith("error: --freeze") and said in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_it_is_an_evaluation_of_its_encoder_trained_or_not(tmp_path):
    train_here(*QUICK, "--output_dir", tmp_path / "run", check=0)
    for init, folder in ((tmp_path / "run", "run/decoder"), ("untrained", "untrained/decoder")):
        train_here(*QUICK, "--freeze", "encoder", "--init", init, "--output_dir", tmp_path / folder, check=0)
    found = {run["path"].relative_to(tmp_path).as_posix(): run for run in load_runs(tmp_path)[0]}
    assert {name: is_evaluation(run) for name, run in found.items()} == {
        "run": False,
        "run/decoder": True,
        "untrained/decoder": True,
    }
    assert evaluation_column(found["run/decoder"]) == "decoder_mse"
    assert evaluation_column(found["untrained/decoder"]) == "untrained_decoder_mse"
    assert evaluation_result(found["run/decoder"]) == summary(tmp_path / "run/decoder")["val_mse"]
