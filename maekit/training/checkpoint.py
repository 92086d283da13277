"""Saving and loading training checkpoints in upstream's format: {model, optimizer, epoch, scaler, args}.

Tensors and plain values only, so that torch.load(weights_only=True) reads them, upstream's scripts included.
"""

import argparse
import copy
import os
import pathlib
import re
import warnings
import zipfile

import torch

from .. import distributed
from ..errors import InputError
from ..files import atomic_write
from ..model import others
from ..model.formats import encoder_weights
from ..model.patches import interpolate_positions
from ..settings import identities, methods
from . import optimizer_state


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


# What upstream's scripts put into a checkpoint beside tensors and plain values: their arguments, in which may be paths,
# of any system and by the names that any Python has for them.
_UPSTREAMS = [argparse.Namespace] + [
    (pathlib.PurePath, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath")
]


def read(path):
    """A checkpoint's dict, on the CPU; at least `model` is in it. Raises InputError if the file is none."""
    state = _loaded(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise InputError(f"{path}: no checkpoint; expected a dict with the weights under 'model'.")
    for part in ("model", "ema"):
        weights = state.get(part, {})
        for name, value in weights.items() if isinstance(weights, dict) else [(part, weights)]:
            if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
                raise InputError(f"{path}: no checkpoint; {name!r:.60} in its {part} is no tensor.")
    for name, value in _tensors(state):
        if not others.is_plain(value):
            raise InputError(f"{path}: no checkpoint; {name} is quantized, sparse or without values.")
    return state


def read_weights(path, say=distributed.say):
    """{"model": weights under this kit's names, "args": what the file says of its training, if it does} of any file of weights.

    What it is, if no checkpoint of this kit or of upstream, is said. Raises InputError if it holds no weights that can be used.
    """
    try:
        state = _of_safetensors(path) if str(path).endswith(".safetensors") else _loaded(path)
        weights, how = others.named_as_here(state)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error
    if how:
        say(f"{path}: weights {how}{'' if others.has_decoder(weights) else ', an encoder without decoder'}.")
    args = state.get("args")
    return {"model": weights, **({"args": args} if isinstance(args, dict) else {})}


def _of_safetensors(path):
    """What a .safetensors file holds: its tensors, and as `args` what its metadata say."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            names = file.keys()  # of which it is no iterable
            return {"model": {name: file.get_tensor(name) for name in names}, "args": file.metadata() or {}}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Give the path of a checkpoint.") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated, damaged or no safetensors file ({error}).") from error


def _loaded(path):
    """What torch.save wrote. Nothing in the file is executed: besides tensors and plain values, only upstream's
    argparse.Namespace is let in."""
    try:
        with torch.serialization.safe_globals(_UPSTREAMS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a damaged file
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Give the path of a checkpoint.") from error
    except Exception as error:  # bytes that are no checkpoint, or none any more, may raise anything
        wanted = _python_object(error)
        if wanted:
            raise InputError(
                f"{path}: needs the Python object {wanted}, and unpickling objects can run any code, so it is refused. If "
                "you trust the file, keep its weights: python -c \"import torch; torch.save({'model': torch.load("
                f"'{path}', weights_only=False)['model']}}, 'weights.pth')\"."
            ) from error
        raise InputError(
            f"{path}: truncated, damaged or no checkpoint; torch.load(weights_only=True) cannot read it "
            f"({type(error).__name__})."
        ) from error


def read_named(path):
    """What `read` returns, of a file that was named for --resume: whole, as far as its checksums tell, and finite."""
    state = verified(path) if zipfile.is_zipfile(path) else read(path)
    for part in ("model", "ema", "optimizer"):
        for name, value in _tensors(state.get(part)):
            if value.is_floating_point() and not value.isfinite().all():
                raise InputError(
                    f"{path}: {part} {name} is not finite (NaN or infinite). Name a checkpoint from before that."
                )
    epoch = state.get("epoch", 0)
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < -1:
        raise InputError(f"{path}: its epoch is {epoch!r:.40}, no whole number. Start from its weights: --init {path}.")
    return state


def _tensors(state, name=""):
    """(name, tensor) of all tensors in dicts and lists in each other."""
    if isinstance(state, torch.Tensor):
        yield name, state
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, part in parts:
        yield from _tensors(part, f"{name}.{key}" if name else str(key))


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
            if not overwrite:
                raise
            distributed.say(f"{error} Deleted, as --overwrite asks.")
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
        distributed.say(f"{error} It is {aside.name} now, and the checkpoint before it is taken.")
        os.replace(path, aside)
        return previous, state


def _check_own(path, state, identity):
    if not isinstance(state.get("args"), dict):
        raise InputError(
            f"{path}: is no checkpoint of a run. Move it away; --init {path.name} starts from its weights."
        )
    identities.check(state["args"], identity, f"{path}: is of")


def verified(path):
    """What `read` returns, of a file whose checksums hold; torch.load does not look at them. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged directory of the archive may have anything raised
        if isinstance(error, OSError) and not os.path.exists(path):
            raise
        raise InputError(f"{path}: truncated, damaged or no checkpoint ({error}).") from error
    if broken is not None:
        raise InputError(f"{path}: damaged, the checksum of {broken} in it is wrong.")
    return read(path)


def _python_object(error):
    """Name of the object that torch.load(weights_only=True) refused to make, or None if that was not the reason."""
    found = re.search(r"[Uu]nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
    return found.group(1) if found else None


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
                raise InputError(f"{path}: its {name} probe is of another encoder or other classes.") from error


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
            "classifier is one more? A file with nothing but its 'model' starts a run from these weights."
        ) from error
    return state["epoch"] + 1
