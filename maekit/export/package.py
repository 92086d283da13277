"""What is written for another program, and the code that reads it."""

import json
from dataclasses import dataclass

from ..files import KIT


@dataclass(frozen=True)
class Package:
    """files: {name: bytes}. what: they are, a phrase. loading: Python that makes `model` of them in their folder, in which FOLDER
    is to be its path. library, pipeline: of the hub's card. whole: whether the decoder is in it."""

    what: str
    files: dict
    loading: str
    library: str
    pipeline: str
    whole: bool = False


def as_json(value):
    return (json.dumps(value, indent=2) + "\n").encode()


def safetensors_of(weights, norm):
    """Bytes of a .safetensors file, whose metadata name the norm."""
    from safetensors.torch import save

    return save({name: value.contiguous().clone() for name, value in weights.items()}, {"format": "pt", "norm": norm})


def converted(trained):
    """(files, import, line) with which the norm comes into `model`: {norms.py: its bytes} and code; nothing of LayerNorm."""
    if trained.norm == "LayerNorm":
        return {}, "", ""
    told = {
        name: value
        for name, value in trained.norm_arguments.items()
        if (name, value) != ("alpha_before_attention", None)
    }
    arguments = "".join(f", {name}={value!r}" for name, value in told.items())
    imported = "from norms import convert_norms  # the file beside the weights\n"
    return (
        {"norms.py": (KIT / "norms.py").read_bytes()},
        imported,
        f'model = convert_norms(model, "{trained.norm}"{arguments})\n',
    )
