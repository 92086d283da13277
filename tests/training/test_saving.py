"""Checkpoints that are written while the training goes on: what is in them, and what becomes of a writing that fails."""

import errno
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maekit.errors import Stopped
from maekit.runs.folder import RunFolder
from maekit.training import checkpoint, saving
from maekit.training.saving import Saver


class Task:
    """A model and its optimizer, as a Task is to a Saver."""

    epochs = 100

    def __init__(self):
        self.run = SimpleNamespace(saving=SimpleNamespace(epochs=1, minutes=1e9))
        self.network = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)

    def step(self):
        self.network(torch.ones(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self, **extra):
        scaler = torch.amp.GradScaler("cpu")
        return checkpoint.state_of(model=self.network, optimizer=self.optimizer, scaler=scaler, **extra)


class Journal:
    """What a Journal is to a Saver; its history grows."""

    def __init__(self):
        self.history, self.written = {"log": []}, []
        self.status = SimpleNamespace(write_sometimes=lambda *_: None, write=lambda *args: self.written.append(args))

    def state(self):
        return {"args": {"seed": 0}, "history": self.history}


@pytest.fixture
def held(monkeypatch):
    """A writing that waits: an event that lets it go on."""
    go, write = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *args: go.wait(30) and write(*args))
    yield go
    go.set()


@pytest.fixture
def saver(tmp_path):
    stop = SimpleNamespace(name=None, agreed=lambda: False)
    return Saver(Task(), RunFolder(tmp_path), Journal(), stop)


def tensors(part):
    if isinstance(part, torch.Tensor):
        return [part]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [tensor for each in parts for tensor in tensors(each)]


def test_what_is_written_is_the_state_of_the_moment_whatever_is_trained_meanwhile(saver, held):
    saver.task.step()
    expected = [tensor.clone() for tensor in tensors(saver.task.state(epoch=3, args={}))]
    with saver:
        saver.save(3)
        saver.task.step()
        saver.journal.history["log"].append("of a later epoch")
        assert not saver.folder.checkpoint.exists(), "training does not wait"
        held.set()
    state = checkpoint.verified(saver.folder.checkpoint)
    assert state["epoch"] == 3 and state["history"] == {"log": []}
    assert all(map(torch.equal, tensors({**state, "history": {}}), expected)) and len(expected) == 8
    now = tensors(saver.task.state(epoch=3, args={}))
    assert not all(map(torch.equal, now, expected))


def test_a_state_keeps_what_its_modules_say_of_themselves(tmp_path):
    state = nn.BatchNorm1d(2).state_dict()
    copied = checkpoint.copied(state)
    assert type(copied) is type(state) and copied._metadata == state._metadata
    assert all(torch.equal(copied[name], state[name]) and copied[name] is not state[name] for name in state)


def test_the_next_state_is_written_after_the_one_before(saver):
    with saver:
        for epoch in range(3):
            saver.save(epoch)
    assert checkpoint.read(saver.folder.checkpoint)["epoch"] == 2
    assert checkpoint.read(saver.folder.previous_checkpoint)["epoch"] == 1


@pytest.mark.parametrize("how", ["last epoch", "signal after an epoch", "signal within an epoch"])
def test_at_the_end_and_before_a_run_gives_way_it_is_whole(how, saver, monkeypatch):
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *args: time.sleep(0.2) or write(*args))
    with pytest.raises(Stopped) if "signal" in how else saver:
        if how == "last epoch":
            saver.after_epoch(saver.task.epochs - 1)
        else:
            saver.stop.name, saver.stop.agreed = "SIGTERM", lambda: True
            saver.after_epoch(5) if "after" in how else saver.after_step(lambda: {"epoch": 6}, 6, 0.5)
        assert saver.folder.checkpoint.exists()
    assert checkpoint.read(saver.folder.checkpoint)["epoch"] == (99 if how == "last epoch" else 5)
    assert [args[0] for args in saver.journal.written] == ([] if how == "last epoch" else ["preempted"])


@pytest.mark.parametrize("when", ["step", "epoch", "save", "leaving"])
def test_a_writing_that_fails_ends_the_run_as_soon_as_it_is_seen(when, saver, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.pth")

    monkeypatch.setattr(checkpoint, "write", fail)
    saver.save(0)
    saver.thread.submit(lambda: None).result()  # the writing is over by now
    with pytest.raises(OSError, match="No space left"):
        if when == "leaving":
            with saver:
                pass
        else:
            {"step": lambda: saver.after_step(None, 1, 0.5), "epoch": lambda: saver.after_epoch(1)}.get(
                when, lambda: saver.save(1)
            )()


def test_what_has_ended_the_training_is_told_and_what_was_being_written_is_whole(saver, held):
    threading.Timer(0.2, held.set).start()
    with pytest.raises(KeyError, match="why"), saver:
        saver.save(7)
        raise KeyError("why")
    assert checkpoint.read(saver.folder.checkpoint)["epoch"] == 7


def test_a_writing_that_fails_besides_is_not_told_in_its_place(saver, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_: 1 / 0)
    with pytest.raises(KeyError, match="why"), saver:
        saver.save(7)
        raise KeyError("why")


def test_no_state_is_taken_while_one_is_being_written(saver, held, monkeypatch):
    """A disk that takes longer than an epoch does not stop the training; the next state waits for its turn."""
    monkeypatch.setattr(saving, "SHARE_OF_TIME", 1e9)
    with saver:
        for epoch in range(3):
            saver.after_epoch(epoch)
        held.set()
        saver.finish()
        assert checkpoint.read(saver.folder.checkpoint)["epoch"] == 0
        saver.after_epoch(3)
    assert checkpoint.read(saver.folder.checkpoint)["epoch"] == 3
