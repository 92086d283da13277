"""Checkpoints: what comes back of them, which of two is taken, and damage that must not go unnoticed."""

import os

import pytest
import torch
from torch import nn

from maekit.errors import InputError
from maekit.runs.folder import RunFolder
from maekit.training import checkpoint

IDENTITY = {"norm": "LayerNorm", "seed": 0}


class Training:
    """A model so small that its checkpoint has two kilobytes, with optimizer and GradScaler."""

    def __init__(self):
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scaler = torch.amp.GradScaler("cpu")

    def step(self, factor=1.0):
        self.scaler.scale(self.model(torch.ones(4, 3)).square().sum() * factor).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def save(self, folder, epoch, identity=IDENTITY):
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        checkpoint.write(folder, checkpoint.state_of(**parts, epoch=epoch, args=identity))


@pytest.fixture
def folder(tmp_path):
    """A RunFolder with the checkpoints of epochs 0 and 1."""
    folder, training = RunFolder(tmp_path), Training()
    for epoch in range(2):
        training.step()
        training.save(folder, epoch)
    return folder


def flip(file):
    """Change a bit of a weight, where torch.load would not notice."""
    content = bytearray(file.read_bytes())
    content[content.index(checkpoint.read(file)["model"]["weight"].numpy().tobytes()) + 3] ^= 0x10
    file.write_bytes(content)
    torch.load(file, weights_only=True)


def test_the_newest_of_two_checkpoints_is_taken(folder):
    path, state = checkpoint.read_newest(folder, IDENTITY)
    assert (path, state["epoch"]) == (folder.checkpoint, 1)
    assert checkpoint.read(folder.previous_checkpoint)["epoch"] == 0


def test_a_run_killed_between_the_two_renames_of_a_checkpoint_goes_on_from_the_one_before(folder, monkeypatch):
    replace, done = os.replace, []

    def one_rename(*paths):
        if done:
            raise KeyboardInterrupt
        done.append(paths)
        replace(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", one_rename)
        Training().save(folder, 2)
    assert not folder.checkpoint.exists()
    path, state = checkpoint.read_newest(folder, IDENTITY)
    assert (path, state["epoch"]) == (folder.previous_checkpoint, 1)


def test_of_a_damaged_checkpoint_and_a_whole_one_before_it_the_whole_one_is_taken(folder, capsys):
    flip(folder.checkpoint)
    path, state = checkpoint.read_newest(folder, IDENTITY)
    assert (path, state["epoch"]) == (folder.previous_checkpoint, 0)
    assert not folder.checkpoint.exists() and folder.damaged_checkpoint.exists()
    assert "It is checkpoint.damaged.pth now, and the checkpoint before it is taken." in capsys.readouterr().out


def test_a_checkpoint_before_it_that_is_damaged_as_well_is_not_gone_on_from(folder):
    for file in (folder.checkpoint, folder.previous_checkpoint):
        flip(file)
    way = r" --overwrite trains the run anew\.$"
    with pytest.raises(
        InputError, match=r"checkpoint.previous.pth: damaged, the checksum of .* in it is wrong\." + way
    ):
        checkpoint.read_newest(folder, IDENTITY)
    assert folder.checkpoint.exists() and folder.previous_checkpoint.exists()


@pytest.mark.parametrize("what", ["damaged", "of another run"])
def test_overwrite_deletes_all_files_of_what_cannot_be_gone_on_from(what, folder, capsys):
    folder.log.touch()
    if what == "damaged":
        flip(folder.checkpoint)
        flip(folder.previous_checkpoint)
    identity = IDENTITY if what == "damaged" else {**IDENTITY, "seed": 1}
    with pytest.raises(InputError):
        checkpoint.read_newest(folder, identity)
    assert checkpoint.read_newest(folder, identity, overwrite=True) == (None, None)
    assert "Deleted, as --overwrite asks." in capsys.readouterr().out
    assert not list(folder.path.iterdir())


@pytest.mark.parametrize(
    ("start", "at", "value"),
    [
        (b"PK\x01\x02", 10, b"\x08"),  # as if it were deflated
        (b"PK\x03\x04", 28, b"\xff\xff"),  # a field so long that the content is behind the end
        (b"PK\x03\x04", 30, b"\xff"),  # a name that is no text
        (b"PK\x01\x02", 46, b"\xff"),
    ],
    ids=["compression", "length", "name", "name in the directory"],
)
def test_a_flipped_field_of_the_archive_is_damage(start, at, value, folder):
    content = bytearray(folder.checkpoint.read_bytes())
    at += content.index(start)
    content[at : at + len(value)] = value
    folder.checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pth: (truncated, )?damaged"):
        checkpoint.verified(folder.checkpoint)
    assert checkpoint.read_newest(folder, IDENTITY)[0] == folder.previous_checkpoint


def test_a_resumed_float16_run_has_the_scale_that_its_gradients_were_found_to_bear(folder):
    training = Training()
    training.step()
    training.step(factor=1e38)  # overflows: no step, and half the scale from now on
    assert training.scaler.get_scale() == 2.0**15
    training.save(folder, 2)
    resumed = Training()
    path, state = checkpoint.read_newest(folder, IDENTITY)
    checkpoint.load_model(path, state, resumed.model)
    assert checkpoint.load_training(path, state, resumed.optimizer, resumed.scaler) == 3
    assert resumed.scaler.get_scale() == 2.0**15
    for each in (training, resumed):
        each.step()
    assert torch.equal(training.model.weight, resumed.model.weight)
