"""Weights that others publish: a folder with config.json and the weights of Hugging Face's transformers or of timm, here or on the
hub. No torch, and never code."""

import re
from pathlib import Path

from .. import files
from ..errors import InputError
from .architectures import MODELS, UPSTREAM_DECODER, Architecture, Transformer
from .methods import OPTIONS

HUB = "hf-hub:"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def downloaded(typed):
    """The folder of hf-hub:owner/name, from the hub or its cache. Raises InputError where it cannot be had."""
    name = name_of(typed)
    import huggingface_hub

    wanted = {"allow_patterns": ["config.json", "*.index.json", *WEIGHTS]}
    try:
        return Path(huggingface_hub.snapshot_download(name, **wanted))
    except Exception as error:  # of whichever HTTP library there is
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"GatedRepoError", "RepositoryNotFoundError"}:
            raise InputError(
                f"--init {typed}: no such repository, or one that asks for a login: hf auth login ({text})."
            ) from error
        raise InputError(
            f"--init {typed}: cannot be downloaded ({text}). Where there is a network: hf download {name} --local-dir DIR, then "
            "--init DIR."
        ) from error


def name_of(typed):
    """owner/name of hf-hub:owner/name. Raises InputError for another name."""
    name = typed.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"--init {typed}: no name of the hub. Give {HUB}owner/name, such as {HUB}facebook/vit-mae-base."
        )
    return name


def weights_in(folder, typed):
    """(file of weights, network, by the names of flags) of a folder that others have saved; None if there are none in it.

    The network is what its config.json says of it: empty where that says nothing that is understood here. Raises InputError for
    a network that this kit has not.
    """
    found, config = [folder / name for name in WEIGHTS if (folder / name).is_file()], folder / "config.json"
    told = files.read_json(config, way="Get it again, or name a file of weights.") if config.is_file() else {}
    if not isinstance(told, dict):
        raise InputError(f"{config}: is no description of a network or a run. Name a file of weights.")
    if not found:
        if any(folder.glob("*.index.json")):
            raise InputError(f"--init {typed}: its weights are in several files. Save them as one {WEIGHTS[0]}.")
        if "identity" not in told and told.keys() & {"model_type", "architecture"}:  # no run of this kit
            raise InputError(
                f"--init {typed}: has a config.json, but neither {' nor '.join(WEIGHTS)}. Save them as one of these."
            )
        return None
    try:
        return found[0], _of_transformers(told) if "model_type" in told else _of_timm(told)
    except ValueError as error:
        raise InputError(f"--init {typed}: {error}.") from error


def _of_transformers(told):
    """The network of a config.json of ViT or ViTMAE. Raises ValueError for another one."""
    if told["model_type"] not in ("vit", "vit_mae"):
        raise ValueError(f"is of model_type {told['model_type']!s:.60}, where vit and vit_mae are read")
    width = _size(told, "hidden_size", 768)
    side, patch = (_side(told, *what) for what in (("image_size", 224), ("patch_size", 16)))
    for key, wanted in {
        "hidden_act": "gelu",
        "num_channels": 3,
        "intermediate_size": 4 * width,
        "qkv_bias": True,
    }.items():
        if told.get(key, wanted) != wanted:
            raise ValueError(f"its {key} is {told[key]!s:.60}, here it is {wanted}")
    encoder = Transformer(width, _size(told, "num_hidden_layers", 12), _size(told, "num_attention_heads", 12))
    decoder = UPSTREAM_DECODER
    if told["model_type"] == "vit_mae":
        decoder = Transformer(
            _size(told, "decoder_hidden_size", 512),
            _size(told, "decoder_num_hidden_layers", 8),
            _size(told, "decoder_num_attention_heads", 16),
        )
    network = _named(Architecture(patch, encoder, decoder))
    if told["model_type"] == "vit_mae":
        network["norm_pix_loss"] = bool(told.get("norm_pix_loss", False))
    return {"norm": "LayerNorm", "input_size": side, **network}


def _side(told, key, default):
    """A side in pixels, which may be told twice. Raises ValueError where these differ."""
    value = told.get(key, default)
    sides = value if isinstance(value, list) else [value]
    if not sides or not all(_is_size(side) and side == sides[0] for side in sides):
        raise ValueError(f"its {key} is {value!r:.60}, here they are square")
    return sides[0]


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20


def _size(told, key, default):
    """A number of a config.json that says how large the network is. Raises ValueError for what cannot be one."""
    value = told.get(key, default)
    if not _is_size(value):
        raise ValueError(f"its {key} is {value!r:.60}, no size of a network")
    return value


def _of_timm(told):
    """The network of a config.json of timm, {} where it says nothing of it: what its name says, but for model_args.

    norm and norm_options, by the names of flags, are there if this kit has written it.
    """
    match = re.fullmatch(r"vit_(\w+)_patch(\d+)_(\d+)(\..*)?", str(told.get("architecture", "")))
    name = match and f"mae_vit_{match[1]}_patch{match[2]}"
    if name not in MODELS:
        return {}
    usual, own = MODELS[name], told.get("model_args") or {}
    encoder = Transformer(
        own.get("embed_dim", usual.encoder.width),
        own.get("depth", usual.encoder.depth),
        own.get("num_heads", usual.encoder.heads),
    )
    network = _named(Architecture(_side(own, "patch_size", usual.patch), encoder, UPSTREAM_DECODER))
    options = {flag: value for flag, value in (told.get("norm_options") or {}).items() if flag in OPTIONS}
    side = _side(own, "img_size", int(match[3]))
    return {"norm": told.get("norm", "LayerNorm"), **options, "model": network["model"], "input_size": side}


def _named(architecture):
    """--model and --decoder_type of an Architecture: its name, where it has one, else its numbers."""
    known = next(
        (name for name, a in MODELS.items() if (a.patch, a.encoder) == (architecture.patch, architecture.encoder)), ""
    )
    encoder, decoder = architecture.encoder, architecture.decoder
    own = known and MODELS[known].decoder == decoder
    return {
        "model": known or f"enc{encoder.width}d{encoder.depth}h{encoder.heads}p{architecture.patch}",
        "decoder_type": None if own else f"dec{decoder.width}d{decoder.depth}h{decoder.heads}",
    }
