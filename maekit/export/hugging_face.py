"""A run for Hugging Face's transformers, 4 and 5: ViTMAE, or ViT where there is a classifier or no decoder of ViTMAE's kind."""

import re

from ..errors import InputError
from ..settings.tasks import PRETRAIN
from . import pictures
from .package import Package, as_json, safetensors_of

_OUTSIDE = (  # beginnings of names here and there; the first that fits
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("norm.", "vit.layernorm."),
    ("blocks.", "vit.encoder.layer."),
    ("decoder_blocks.", "decoder.decoder_layers."),
    ("decoder_", "decoder.decoder_"),
    ("mask_token", "decoder.mask_token"),
    ("head.", "classifier."),
)
_INSIDE = {  # of a block
    ".attn.q.": ".attention.attention.query.",
    ".attn.k.": ".attention.attention.key.",
    ".attn.v.": ".attention.attention.value.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
}


def package(trained):
    """The Package of a Trained. Raises InputError for a network that transformers has no layers for."""
    if trained.norm != "LayerNorm":
        raise InputError(
            f"{trained.folder}: its norm is {trained.norm}, and Hugging Face's ViT has LayerNorm alone. --to timm writes it "
            "with norms.py and the lines that load it."
        )
    if trained.reads_mean:
        raise InputError(
            f"{trained.folder}: classifies by the mean of the patches, and Hugging Face's ViT by the CLS token. Use --to timm."
        )
    whole = trained.task == PRETRAIN and trained.architecture.decoder is not None
    name = "ViTMAEForPreTraining" if whole else "ViTModel" if trained.task == PRETRAIN else "ViTForImageClassification"
    config = {"architectures": [name], "model_type": "vit_mae" if whole else "vit", **_network(trained)}
    if whole:
        config |= _decoder(trained)
    elif trained.task != PRETRAIN:
        names = pictures.class_names(trained) or [f"LABEL_{i}" for i in range(trained.classes)]
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    files = {
        "model.safetensors": safetensors_of(renamed(trained.weights if whole else trained.encoder), trained.norm),
        "config.json": as_json(config),
        "preprocessor_config.json": as_json(_preprocessor(trained)),
    }
    more = ", add_pooling_layer=False" if name == "ViTModel" else ""
    loading = f"from transformers import {name}\n\nmodel = {name}.from_pretrained(FOLDER{more})\n"
    what = f"{name} of transformers" + (", the encoder without its linear decoder" if name == "ViTModel" else "")
    kind = "image-feature-extraction" if trained.task == PRETRAIN else "image-classification"
    return Package(what, files, loading, "transformers", kind, whole)


def renamed(weights):
    """Weights by this kit's names under transformers' of version 4, which 5 reads as well: query, key and value apart."""
    new = {}
    for name, value in weights.items():
        ours, theirs = next(pair for pair in _OUTSIDE if name.startswith(pair[0]))
        name = theirs + name.removeprefix(ours)
        if part := re.fullmatch(r"(.*)\.attn\.qkv\.(weight|bias)", name):
            for letter, values in zip("qkv", value.chunk(3)):
                new[f"{part[1]}{_INSIDE[f'.attn.{letter}.']}{part[2]}"] = values
            continue
        for ours, theirs in _INSIDE.items():
            name = name.replace(ours, theirs)
        new[name] = value
    return new


def _network(trained):
    encoder = trained.architecture.encoder
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": 4 * encoder.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "image_size": trained.side,
        "patch_size": trained.architecture.patch,
        "num_channels": 3,
        "qkv_bias": True,
    }


def _decoder(trained):
    decoder = trained.architecture.decoder
    return {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
        "mask_ratio": trained.identity["mask_ratio"],
        "norm_pix_loss": bool(trained.identity["norm_pix_loss"]),
    }


def _preprocessor(trained):
    side = trained.side
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": pictures.short_side(trained)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pictures.MEAN,
        "image_std": pictures.STD,
    }
