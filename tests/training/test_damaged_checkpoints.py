"""Checkpoints damaged at random: refused in one line, or read with the shapes and the finite values that they should have."""

import copy
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from maekit.errors import InputError
from maekit.model import build_mae
from maekit.model.others import is_plain
from maekit.runs.folder import RunFolder
from maekit.training import checkpoint
from maekit.training.task import Task
from tests.support import train_here
from tests.support.damage import chosen_place, damaged_bytes, how_many
from tests.support.runs import QUICK

IMAGES, NOISE = torch.zeros(2, 3, 32, 32), torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
MADE = {"norm": "LayerNorm", "seed": 0}
_NOTHING = (None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "text", [], {}, [1, 2], {"a": 1}, {1: 2})


def network():
    return build_mae("enc16d1h2p8", img_size=32, decoder_type="dec16d1h2")


class Training(Task):
    """The parts of a Task that go on from a checkpoint, of a network that is made in a millisecond."""

    loss_names = ("train_loss",)

    def __init__(self, resume=None):
        self.network, self.averaged, self.probes, self.epochs = network(), network(), {}, 10
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.device = SimpleNamespace(scaler=torch.amp.GradScaler("cpu"))
        norm, optim = SimpleNamespace(name="LayerNorm"), SimpleNamespace(length="--epochs 10")
        self.run = SimpleNamespace(resume=str(resume), overwrite=False, seed=0, norm=norm, optim=optim)

    def load_more(self, path, state):
        checkpoint.load_average(path, state, self.averaged, self.network)

    def step(self):
        self.network(IMAGES, 0.5, NOISE)[0].backward()
        self.optimizer.step()

    def whole(self):
        parts = {"model": self.network, "optimizer": self.optimizer, "scaler": self.device.scaler}
        place = {"epoch": 3, "batch": 1, "sums": [1.0], "gradient_norms": None, "seconds": 1.0}
        more = {"ema": self.averaged.state_dict(), "probes": {}, "position": place, "elapsed_s": 1.0, "baselines": {}}
        return checkpoint.state_of(**parts, epoch=2, args=MADE, history={"log": [], "alphas": []}, **more)


@pytest.fixture(scope="module")
def sound():
    """{file name: bytes} of a checkpoint in every format that is read."""
    torch.manual_seed(0)
    training = Training()
    training.step()
    state, found = training.whole(), {}
    for name, value, zipped in (
        ("run.pth", state, True),
        ("bare.bin", state["model"], True),
        ("old.pth", state, False),
    ):
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
        found[name] = file.getvalue()
    found["weights.safetensors"] = safetensors.torch.save(dict(state["model"]), {"norm": "LayerNorm"})
    return found


def resumed(file, tmp_path):
    """A Training that went on from a file of --resume, and made a step."""
    training = Training(file)
    start = training.resume(RunFolder(tmp_path / "nothing"), {"data": "others"})
    assert start.position is None and 0 <= start.first_epoch < 10
    loaded = copy.deepcopy(training.network)
    training.step()  # which must be possible, whatever it comes to
    return loaded


def started(file):
    """A network with the weights of a file of --init."""
    loaded = network()
    checkpoint.load_weights(file, checkpoint.read_weights(file, say=str), loaded, "LayerNorm", say=str)
    return loaded


def outcome(file, tmp_path):
    """Whether both ways to use a file take it, (resumed, started); what comes out is finite, and nothing else is raised."""
    taken = []
    for use in (lambda: resumed(file, tmp_path), lambda: started(file)):
        try:
            loaded = use()
        except InputError as error:
            assert str(file) in str(error)
            taken.append(False)
            continue
        assert all(value.isfinite().all() for value in loaded.state_dict().values())
        taken.append(True)
    return tuple(taken)


def test_bytes_that_are_damaged_are_refused_in_one_line_or_harmless(sound, tmp_path, capfd):
    """10,000 files with DAMAGED=all."""
    rng, names, taken = np.random.default_rng(0), list(sound), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(how_many(240, 10_000)):
            name = names[i % len(names)]
            data = sound[name]
            if name.endswith("safetensors") and i % 8 < 6:  # nearly all of it are weights
                head = damaged_bytes(data[8 : 8 + int.from_bytes(data[:8], "little")], rng)
                data = len(head).to_bytes(8, "little") + head + data[8 + int.from_bytes(data[:8], "little") :]
            else:
                data = damaged_bytes(data, rng)
            file = tmp_path / name
            file.write_bytes(data)
            taken.append(outcome(file, tmp_path))
    assert {(False, False)} < set(taken)
    assert capfd.readouterr().err == ""


def damaged_state(state, rng):
    """A checkpoint in which something is of another type or shape, not finite, not there or under another name."""
    state = copy.deepcopy(state)
    inside, key = chosen_place(state, rng)
    value, kind = inside[key], int(rng.integers(5))
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[f"{key}x"] = inside.pop(key)
    elif kind == 2 and isinstance(value, torch.Tensor):
        inside[key] = value.float().flatten()[:-1] if value.numel() > 1 else value.new_zeros(2, 2)
    elif kind == 3 and isinstance(value, torch.Tensor) and value.is_floating_point():
        inside[key] = value.clone()
        inside[key].view(-1)[0] = (float("nan"), float("inf"))[rng.integers(2)]
    else:
        odd = (
            torch.zeros(3),
            torch.zeros(()),
            torch.eye(2).to_sparse(),
            torch.zeros(2, device="meta"),
            torch.zeros(2, 0),
        )
        inside[key] = (*_NOTHING, *odd)[rng.integers(len(_NOTHING) + len(odd))]
    return state


def test_other_values_in_a_checkpoint_are_refused_in_one_line_or_harmless(sound, tmp_path):
    """5,000 files with DAMAGED=all."""
    rng, taken, file = np.random.default_rng(1), [], tmp_path / "run.pth"
    state = torch.load(io.BytesIO(sound["run.pth"]), weights_only=True)
    for i in range(how_many(80, 5_000)):
        damaged = damaged_state(state, rng)
        torch.save(damaged if i % 2 else damaged_state(damaged, rng), file)
        taken.append(outcome(file, tmp_path))
    assert set(taken) >= {(True, True), (False, False), (False, True)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state["model"]["cls_token"].fill_(torch.nan), "model cls_token is not finite"),
        (lambda state: state["ema"]["cls_token"].fill_(torch.inf), "ema cls_token is not finite"),
        (
            lambda state: state["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan),
            "optimizer state.0.exp_avg is not finite",
        ),
        (lambda state: state.update(epoch="2"), "its epoch is '2', no whole number"),
        (
            lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
            "has step, exp_avg_sq of a parameter, here exp_avg",
        ),
        (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "exp_avg is (3,) of a parameter"),
        (
            lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.9, None)),
            "betas is (0.9, None), here (0.9, 0.999)",
        ),
        (lambda state: state["optimizer"]["param_groups"][0].update(capturable=True), "capturable is True, here False"),
        (lambda state: state["optimizer"]["param_groups"][0].update(foreach=torch.zeros(0)), "foreach is tensor([])"),
        (lambda state: state.update(ema=3), "'ema' in its ema is no tensor"),
        (lambda state: state.update(ema=torch.zeros(())), "'ema' in its ema is no tensor"),
        (
            lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(())),
            "exp_avg is tensor(0.) of a parameter",
        ),
        (lambda state: state["optimizer"]["state"][0]["step"].fill_(-1), "step is tensor(-1.) of a parameter"),
        (lambda state: state["model"].update(cls_token=None), "'cls_token' in its model is no tensor"),
        (
            lambda state: state["model"].update(cls_token=torch.zeros(1, 1, 16, device="meta")),
            "model.cls_token is quantized, ",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_named_to_go_on_from_is_said(change, said, sound, tmp_path):
    state = torch.load(io.BytesIO(sound["run.pth"]), weights_only=True)
    change(state)
    torch.save(state, tmp_path / "run.pth")
    with pytest.raises(InputError) as raised:
        resumed(tmp_path / "run.pth", tmp_path)
    assert said in str(raised.value) and str(raised.value).startswith(str(tmp_path / "run.pth"))


def test_a_flipped_bit_of_a_checkpoint_named_to_go_on_from_is_noticed(sound, tmp_path):
    data = bytearray(sound["run.pth"])
    weight = torch.load(io.BytesIO(data), weights_only=True)["model"]["decoder_pred.weight"]
    data[data.index(weight.numpy().tobytes()) + 3] ^= 0x10
    (tmp_path / "run.pth").write_bytes(data)
    assert torch.load(io.BytesIO(data), weights_only=True)
    with pytest.raises(
        InputError, match=r"damaged, the checksum of .* is wrong\. Name another file, or copy it again\.$"
    ):
        resumed(tmp_path / "run.pth", tmp_path)


def test_a_quantized_weight_to_start_from_is_named(sound, tmp_path):
    state = torch.load(io.BytesIO(sound["bare.bin"]), weights_only=True)
    torch.save({**state, "mask_token": state["mask_token"].to_sparse()}, tmp_path / "weights.pth")
    assert not is_plain(state["mask_token"].to_sparse())
    with pytest.raises(InputError, match="mask_token is quantized, sparse or without values"):
        started(tmp_path / "weights.pth")


def test_damaged_files_end_the_commands_that_name_them_with_one_line(sound, tmp_path):
    rng = np.random.default_rng(3)
    for i in range(4):
        file = tmp_path / f"{i}.pth"
        file.write_bytes(damaged_bytes(sound["old.pth"][:400], rng))
        for use in (("--resume", file), ("--task", "knn", "--init", file)):
            result = train_here(*QUICK, "--output_dir", tmp_path / "out", *use, check=2)
            lines = [
                line for line in result.stderr.splitlines() if line and "img/s" not in line and "cache" not in line
            ]
            assert len(lines) == 1 and lines[0].startswith(f"error: {file}: ")
