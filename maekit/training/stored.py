"""What is in a file of weights or of a training's state, read without running any code of it."""

import argparse
import os
import pathlib
import re
import warnings
import zipfile

import torch

from ..errors import InputError
from ..model import others


class Unreadable(InputError):
    """A file is no checkpoint, or none any more. what: the text without the way out, which a run's own files have another of."""

    def __init__(self, path, what):
        super().__init__(f"{path}: {what}. Name another file, or copy it again.")
        self.what = f"{path}: {what}."


# What upstream's scripts put into a checkpoint beside tensors and plain values: their arguments, in which may be paths,
# of any system and by the names that any Python has for them.
_UPSTREAMS = [argparse.Namespace] + [
    (pathlib.PurePath, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath")
]


def read(path):
    """A checkpoint's dict, on the CPU; at least `model` is in it. Raises InputError if the file is none."""
    state = loaded(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise Unreadable(path, "no checkpoint; expected a dict with the weights under 'model'")
    for part in ("model", "ema"):
        weights = state.get(part, {})
        for name, value in weights.items() if isinstance(weights, dict) else [(part, None)]:
            if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
                raise Unreadable(path, f"no checkpoint; {name!r:.60} in its {part} is no tensor")
    for name, value in tensors(state):
        if not others.is_plain(value):
            raise Unreadable(path, f"no checkpoint; {name} is quantized, sparse or without values")
    return state


def verified(path):
    """What `read` returns, of a file whose checksums hold; torch.load does not look at them. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged directory of the archive may have anything raised
        if isinstance(error, OSError) and not os.path.exists(path):
            raise
        raise Unreadable(path, f"truncated, damaged or no checkpoint ({error})") from error
    if broken is not None:
        raise Unreadable(path, f"damaged, the checksum of {broken} in it is wrong")
    return read(path)


def of_safetensors(path):
    """What a .safetensors file holds: its tensors, and as `args` what its metadata say."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            names = file.keys()  # of which it is no iterable
            return {"model": {name: file.get_tensor(name) for name in names}, "args": file.metadata() or {}}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Give the path of a checkpoint.") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise Unreadable(path, f"truncated, damaged or no safetensors file ({error})") from error


def loaded(path):
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
        raise Unreadable(
            path, f"truncated, damaged or no checkpoint; torch.load cannot read it ({type(error).__name__})"
        ) from error


def tensors(state, name=""):
    """(name, tensor) of all tensors in dicts and lists in each other."""
    if isinstance(state, torch.Tensor):
        yield name, state
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, part in parts:
        yield from tensors(part, f"{name}.{key}" if name else str(key))


def _python_object(error):
    """Name of the object that torch.load(weights_only=True) refused to make, or None if that was not the reason."""
    found = re.search(r"[Uu]nsupported (?:global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
    return found.group(1) if found else None
