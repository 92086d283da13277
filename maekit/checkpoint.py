"""Saving and loading training checkpoints in upstream's format: {model, optimizer, epoch, scaler, args}.

Tensors and plain values only, so that torch.load(weights_only=True) reads them, upstream's scripts included.
"""

import pickle

import torch

from .errors import InputError
from .files import atomic_write

# What torch.load raises for bytes that are no checkpoint, or none any more.
UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, ValueError, AttributeError, pickle.UnpicklingError)


def save(path, *, model, optimizer, scaler, epoch, args, **extra):
    """Write a checkpoint atomically. args: flat dict of plain values; extra: tensors or plain values."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "scaler": scaler.state_dict(),
        "args": args,
        **extra,
    }
    with atomic_write(path) as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # torch's writer hides the system's error, a full disk say, in its own
            f.flush()
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def read(path):
    """A checkpoint's dict, on the CPU; at least `model` is in it. Raises InputError if the file is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"--resume {path}: no such file. Use auto, never, or the path of a checkpoint.") from error
    except UNREADABLE as error:
        raise InputError(
            f"{path}: truncated, damaged or no checkpoint; torch.load(weights_only=True) cannot read it "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f"{path}: no checkpoint; expected a dict with the weights under 'model'.")
    return state


def load_model(path, state, model):
    """Load a checkpoint's weights strictly. Raises InputError naming the first parameter that does not fit."""
    theirs, ours = state["model"], model.state_dict()
    for name in [*ours, *theirs]:
        if name not in theirs:
            raise InputError(f"{path}: belongs to another model, has no {name}. See --model, --norm, --decoder_type.")
        if name not in ours:
            raise InputError(f"{path}: belongs to another model, has {name}. See --model, --norm, --decoder_type.")
        if theirs[name].shape != ours[name].shape and not theirs[name].numel() == ours[name].numel() == 1:
            raise InputError(
                f"{path}: belongs to another model, {name} is {tuple(theirs[name].shape)} there and "
                f"{tuple(ours[name].shape)} here. See --model, --input_size, --decoder_type."
            )
    model.load_state_dict({name: theirs[name].reshape(ours[name].shape) for name in ours})


def probe_states(head, frozen):
    """What a checkpoint keeps of a run's joint classifier (a module or None) and FrozenProbes (or None)."""
    return {name: part.state_dict() for name, part in (("joint", head), ("frozen", frozen)) if part is not None}


def load_probes(path, state, head, frozen, seed):
    """Load those probes that both the checkpoint and the run have.

    The baseline probe belongs to the untrained encoder of its seed: one of another seed is left out.
    """
    stored = dict(state.get("probes", {}))
    if "frozen" in stored and state.get("args", {}).get("seed") != seed:
        stored["frozen"] = {name: part for name, part in stored["frozen"].items() if not name.startswith("untrained")}
    for name, part in (("joint", head), ("frozen", frozen)):
        if part is not None and name in stored:
            try:
                part.load_state_dict(stored[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise InputError(f"{path}: its {name} probe is of another encoder or other classes.") from error


def load_training(path, state, optimizer, scaler):
    """Load optimizer and scaler, if the checkpoint has them; returns the number of finished epochs."""
    if "optimizer" not in state or "epoch" not in state:
        return 0
    try:
        optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler") and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: its optimizer has other parameters ({error}). Was it trained with another --alpha, where the "
            "classifier is one more? A file with nothing but its 'model' starts a run from these weights."
        ) from error
    return state["epoch"] + 1
