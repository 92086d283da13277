"""Weights of other programs under this kit's names: upstream's as they are, wrapped and compiled ones, timm's VisionTransformer,
Hugging Face's ViT and ViTMAE. Equal weights, equal numbers; see docs/weights.md."""

import re

import torch

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "network")  # where weights are kept
_KNOWN_PREFIXES = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}

# transformers 4 and 5 name blocks and their parts differently, and what they save as 4 did, nearly
_OUTSIDE = (
    (r"^vit\.", ""),
    (r"^embeddings\.(cls_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.", "decoder_blocks."),
    (r"^decoder\.(?=mask_token|decoder_)", ""),
    (r"^classifier\.", "head."),
)
_INSIDE = (  # of a block
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def named_as_here(state):
    """(weights, what they were): of what a file holds the state dict of a masked autoencoder, or its encoder, under this kit's
    names, and a phrase on how they were named there, None where just so.

    Raises ValueError with what is wrong: no weights, none of a ViT with a class token, several networks, values that are not
    finite, a table of positions that is not square.
    """
    weights, told = _stripped(_found(state))
    if any(name.startswith(("vit.embeddings.", "embeddings.")) for name in weights):
        weights = _of_hugging_face(weights)
        told.append(f"as Hugging Face's {'ViTMAE' if has_decoder(weights) else 'ViT'} names them")
    for name, value in weights.items():
        if not is_plain(value):
            raise ValueError(f"{name} is quantized, sparse or without values, where plain tensors are read")
        if value.is_floating_point() and not value.isfinite().all():
            bad = int((~value.isfinite()).sum())
            raise ValueError(f"{bad} of the {value.numel()} values of {name} are not finite (NaN or infinite)")
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in weights:
            _check_square(name, weights[name])
    return weights, ", ".join(told) or None


def is_plain(tensor):
    """Whether a tensor has its values in memory, one for each place: neither quantized nor sparse nor nested nor empty of them."""
    odd = tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided
    return not odd and tensor.device.type == "cpu"


def has_decoder(weights):
    """Whether weights, under this kit's names, have a decoder; the official files for fine-tuning have none."""
    return any(name.startswith("decoder_") for name in weights)


def _found(state):
    """The state dict in what was loaded."""
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, no dict of weights")  # noqa: TRY004 - of a file
    inside = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)]
    for weights in [*inside, state]:
        tensors = {n: t for n, t in weights.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
        if tensors and (weights is not state or not inside):
            return tensors
    raise ValueError(
        f"has no weights: expected them under one of {', '.join(WRAPPERS)}, or bare; there is {_some(state)}"
    )


def _stripped(weights):
    """Weights without the prefix that all of the network's have, and phrases on it."""
    ends = re.compile(r"(?:(?:vit\.)?embeddings\.)?cls_token$")
    prefixes = sorted({name[: found.start()] for name in weights if (found := ends.search(name))})
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if not prefixes:
        raise ValueError(
            f"has no cls_token among its {len(weights)} tensors ({_some(weights)}): no ViT with a class token"
        )
    if len(prefixes) > 1:
        named = " and ".join(f"{prefix or 'no prefix'}" for prefix in prefixes)
        raise ValueError(f"holds several networks ({named}): keep the weights of one in a file of its own")
    (prefix,) = prefixes
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    told = []
    if prefix:
        whose = [program for known, program in _KNOWN_PREFIXES.items() if known in prefix]
        told.append(f"with {prefix} before each name" + (f", as {' and '.join(whose)} has it" if whose else ""))
        if others := [name for name in weights if not name.startswith(prefix)]:
            told.append(f"{len(others)} tensors of others left out ({_some(others)})")
    return own, told


def _of_hugging_face(weights):
    """Weights of ViT or ViTMAE of transformers under this kit's names: query, key and value are joined."""
    renamed = {}
    for name, value in weights.items():
        for pattern, ours in _OUTSIDE:
            name = re.sub(pattern, ours, name)
        if name.startswith(("blocks.", "decoder_blocks.")):
            for pattern, ours in _INSIDE:
                name = re.sub(pattern, ours, name)
        renamed[name] = value
    joined = {}
    for name, value in renamed.items():
        if name.startswith("pooler."):
            continue  # of its own training, behind the encoder
        if not (part := re.fullmatch(r"(.*\.attn\.)q\.(weight|bias)", name)):
            if not re.search(r"\.attn\.[kv]\.(weight|bias)$", name):
                joined[name] = value
            continue
        three = [renamed.get(f"{part[1]}{letter}.{part[2]}") for letter in "qkv"]
        if any(one is None or one.shape != value.shape for one in three):
            raise ValueError(f"has query, key and value of {part[1]} that do not go together")
        joined[f"{part[1]}qkv.{part[2]}"] = torch.cat(three)
    return joined


def _check_square(name, table):
    if table.dim() != 3 or table.shape[1] < 2:
        raise ValueError(f"{name} is {tuple(table.shape)}, where (1, patches + 1, width) is expected")
    patches = table.shape[1] - 1
    if round(patches**0.5) ** 2 != patches:
        raise ValueError(
            f"{name} has {patches + 1} positions, one of the class token and {patches} of patches, which make no square: images "
            "that are not square, or more tokens than one, are not read"
        )


def _some(names):
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
