"""Saving and loading training checkpoints in upstream's format: {model, optimizer, epoch, scaler, args}.

Tensors and plain values only, so that torch.load(weights_only=True) reads them, upstream's scripts included.
"""

import copy
import os
import zipfile

import torch

from .. import distributed
from ..errors import InputError
from ..files import atomic_write
from ..model import others
from ..model.formats import encoder_weights
from ..model.patches import interpolate_positions
from ..settings import identities, methods
from . import optimizer_state, stored
from .stored import Unreadable, read, verified


def state_of(*, model, optimizer, scaler, epoch, args, **extra):
    """What a checkpoint holds. epoch: the last finished one. args: flat dict of plain values; extra: tensors or plain values."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "scaler": scaler.state_dict(),
        "args": args,
        **extra,
    }


def copied(state):
    """A state, tensors copied to the CPU, that stays what it is while its training goes on."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        new = copy.copy(state)  # with what a state dict says of the versions of its modules
        new.update((name, copied(part)) for name, part in state.items())
        return new
    if isinstance(state, (list, tuple)):
        return type(state)(map(copied, state))
    return state


def write(folder, state):
    """Write a RunFolder's checkpoint atomically; the one before stays as folder.previous_checkpoint."""
    with atomic_write(folder.checkpoint, previous=folder.previous_checkpoint) as f:
        try:
            torch.save(state, f)
        except RuntimeError as error:  # torch's writer hides the system's error, a full disk say, in its own
            f.flush()
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def read_weights(path, say=distributed.say):
    """{"model": weights under this kit's names, "args": what the file says of its training, if it does} of any file of weights.

    What it is, if no checkpoint of this kit or of upstream, is said. Raises InputError if it holds no weights that can be used.
    """
    try:
        state = stored.of_safetensors(path) if str(path).endswith(".safetensors") else stored.loaded(path)
        weights, how = others.named_as_here(state)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error
    if how:
        say(f"{path}: weights {how}{'' if others.has_decoder(weights) else ', an encoder without decoder'}.")
    args = state.get("args")
    return {"model": weights, **({"args": args} if isinstance(args, dict) else {})}


def read_named(path):
    """What `read` returns, of a file that was named for --resume: whole, as far as its checksums tell, and finite."""
    state = verified(path) if zipfile.is_zipfile(path) else read(path)
    for part in ("model", "ema", "optimizer"):
        for name, value in stored.tensors(state.get(part)):
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(
                    f"{path}: {part} {name} is not finite (NaN or infinite). Name a checkpoint from before that."
                )
    epoch = state.get("epoch", 0)
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < -1:
        raise InputError(f"{path}: its epoch is {epoch!r:.40}, no whole number. Start from its weights: --init {path}.")
    return state


def read_newest(folder, identity, overwrite=False):
    """(path, dict) of a RunFolder's newest checkpoint whose bytes are those that were written; (None, None) without one.

    A damaged one is put aside as checkpoint.damaged.pth and the one before is taken, which is said. Raises InputError if
    there is none left, or if it is not of the run of this identity; `overwrite` deletes the run in these cases. All
    processes of a run call it, and the main one decides.
    """
    found = {}

    def choose():
        try:
            path, found["state"] = _newest(folder)
            if path is not None:
                _check_own(path, found["state"], identity)
        except InputError as error:
            what = getattr(error, "what", str(error))
            if not overwrite:
                way = " --overwrite trains the run anew." if isinstance(error, Unreadable) else ""
                raise InputError(what + way) from error
            distributed.say(f"{what} Deleted, as --overwrite asks.")
            folder.clear()
            return None
        return path

    path = distributed.on_main(choose)
    return path, None if path is None else found.get("state") or read(path)


def _newest(folder):
    path, previous = folder.checkpoint, folder.previous_checkpoint
    if not path.exists():
        return (previous, read(previous)) if previous.exists() else (None, None)
    try:
        return path, verified(path)
    except InputError as error:
        if not previous.exists():
            raise
        state = verified(previous)
        aside = folder.damaged_checkpoint
        distributed.say(
            f"{getattr(error, 'what', error)} It is {aside.name} now, and the checkpoint before it is taken."
        )
        os.replace(path, aside)
        return previous, state


def _check_own(path, state, identity):
    if not isinstance(state.get("args"), dict):
        raise InputError(
            f"{path}: is no checkpoint of a run. Move it away; --init {path.name} starts from its weights."
        )
    identities.check(state["args"], identity, f"{path}: is of")


def load_model(path, state, model, norm=None):
    """Load a checkpoint's weights strictly. Raises InputError naming the first parameter that does not fit.

    norm: name of the model's norm. A checkpoint that says it has another one is refused, whatever its parameters are
    called; of None only these are compared.
    """
    _check_norm(path, state, norm)
    _load(path, state, state["model"], model, model.state_dict())


def load_encoder(path, state, mae, *, needs_norm=True, norm=None, say=print):
    """Load the encoder of any MAE checkpoint, position tables interpolated for another input size, which is said.

    Decoder and classifier of the file are left alone. needs_norm: whether the final norm has to be in it; a network that
    upstream fine-tuned has none. norm: as of load_model. Raises InputError naming the first parameter that does not fit.
    """
    _check_norm(path, state, norm)
    theirs, ours = encoder_weights(state["model"]), encoder_weights(mae.state_dict())
    if not needs_norm:
        theirs, ours = ({k: v for k, v in w.items() if not k.startswith("norm.")} for w in (theirs, ours))
    _load(path, state, _resized(path, theirs, ours, say), mae, ours)


def load_weights(path, state, mae, norm=None, say=print):
    """Load encoder and, if it is there, decoder of any MAE checkpoint, for pre-training; what is special is said.

    norm: as of load_model.
    """
    _check_norm(path, state, norm)
    theirs, ours = dict(state["model"]), mae.state_dict()
    if not others.has_decoder(theirs):
        load_encoder(path, state, mae, say=say)
        say(
            f"{path}: an encoder without decoder. The decoder starts from random weights: losses and reconstructions mean "
            "nothing until it is trained."
        )
        return
    theirs = {name: value for name, value in theirs.items() if not name.startswith(("head.", "fc_norm."))}
    _load(path, state, _resized(path, theirs, ours, say), mae, ours)


def _resized(path, theirs, ours, say):
    """Their weights with the position tables of our input size."""
    theirs = dict(theirs)
    for name in ("pos_embed", "decoder_pos_embed"):
        if name not in theirs or name not in ours or theirs[name].shape[2:] != ours[name].shape[2:]:
            continue
        old, new = (round((table[name].shape[1] - 1) ** 0.5) for table in (theirs, ours))
        if old != new:
            say(f"{path}: {name} is interpolated from {old} x {old} patches to {new} x {new}.")
            theirs[name] = interpolate_positions(theirs[name], new)
    return theirs


def _load(path, state, theirs, model, ours):
    """Load the entries named in `ours`, part of the model's state dict, from `theirs`, which must have no others."""
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            what = f"has no {name}" if name in ours else f"has {name}"
            raise InputError(
                f"{path}: belongs to another model, {what}{_other_norm(theirs, state, ours)}. "
                "See --model, --norm, --decoder_type."
            )
        if theirs[name].shape != ours[name].shape and not theirs[name].numel() == ours[name].numel() == 1:
            raise InputError(
                f"{path}: belongs to another model, {name} is {tuple(theirs[name].shape)} there and "
                f"{tuple(ours[name].shape)} here. See --model, --input_size, --decoder_type."
            )
    model.load_state_dict({name: theirs[name].reshape(ours[name].shape) for name in ours}, strict=False)


# Whose parameters and buffers these are, for weights that come without a name of their norm.
_PARTS = {
    "LayerNorm": {"weight", "bias"},
    "RMSNorm": {"weight"},
    "DynamicTanh": {"alpha", "weight", "bias"},
    "AdaptiveDynamicTanh": {"alpha_base", "grad_norm_smoothed", "weight", "bias"},
    "DynamicErf or another point-wise norm with a shift": {"alpha", "shift", "weight", "bias"},
    "BHyT": {"lam", "weight"},
}


def _parts(weights):
    return {name.rpartition(".")[2] for name in weights if name.startswith("blocks.0.norm1.")}


def norm_of(weights, args=None):
    """Name of the norm of a checkpoint's weights: the one that its args have, else the one whose parameters they are.

    weights: a state dict; args: a checkpoint's. None where no norm of the kit has such parameters in the first block.
    """
    return _stored_norm(args) or next((norm for norm, own in _PARTS.items() if own == _parts(weights)), None)


def _stored_norm(args):
    """The norm that a checkpoint's args name; None in files of others, upstream's among them."""
    stored = args.get("norm") if isinstance(args, dict) else None
    return stored if isinstance(stored, str) else None


def _check_norm(path, state, norm):
    """Raise InputError if a checkpoint says that its norm is another one than `norm`, None: whatever it is."""
    stored = _stored_norm(state.get("args"))
    if norm is not None and stored not in (None, norm):
        raise InputError(
            f"{path}: belongs to another model, its norm layers are {_named(stored)}, here they are {norm}. See --norm."
        )


def _other_norm(theirs, state, ours):
    """What a message adds where weights of a checkpoint have another norm than ours; "" where that cannot be told."""
    there, here = norm_of(theirs, state.get("args")), norm_of(ours)
    blocks = any(name.startswith("blocks.0.norm1.") for name in theirs)
    if _parts(theirs) == _parts(ours) or here is None or not (there or blocks):
        return ""
    return f" (its norm layers are {_named(there)}, here they are {here})"


def _named(norm):
    if norm is None:
        return "of a norm that this kit does not know"
    return norm if norm in methods.NORMS or norm in _PARTS else f"{norm}, a norm that this kit does not know"


def load_probes(path, state, probes, seed):
    """Load the states of those {name: Probe} that both the checkpoint and the run of this seed have."""
    for name, probe in probes.items():
        known = state.get("probes")
        if stored := known.get(name) if isinstance(known, dict) else None:
            try:
                probe.load_state_dict(stored, same_seed=_seed(state) == seed)
            except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{path}: its {name} probe is of another encoder or other classes. "
                    f"--init {path} starts from its weights alone."
                ) from error


def load_average(path, state, averaged, model):
    """Load the moving average of the weights; of a checkpoint without one it begins with those of the model."""
    if "ema" not in state:
        averaged.load_state_dict(model.state_dict())
        return
    _load(path, state, state["ema"], averaged, averaged.state_dict())


def _seed(state):
    args = state.get("args", {})
    return args.get("seed") if isinstance(args, dict) else None


def load_training(path, state, optimizer, scaler):
    """Load optimizer and scaler, if the checkpoint has them; returns the number of finished epochs."""
    if "optimizer" not in state or "epoch" not in state:
        return 0
    try:
        optimizer_state.load(optimizer, state["optimizer"])
        if state.get("scaler") and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: its optimizer has other parameters ({' '.join(str(error).split())}). Was it trained with another --alpha, where the "
            f"classifier is one more? --init {path} starts a run from its weights alone."
        ) from error
    return state["epoch"] + 1
