"""Encoders and decoders, by name or by their numbers. No torch."""

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Transformer:
    """Width, number of blocks and of attention heads of an encoder or decoder."""

    width: int
    depth: int
    heads: int

    def __str__(self):
        return f"{self.width} wide, {_counted(self.depth, 'block')}, {_counted(self.heads, 'head')}"


@dataclass(frozen=True)
class Architecture:
    """Side of the patches in pixels, the encoder, and the decoder, None for one linear layer."""

    patch: int
    encoder: Transformer
    decoder: Transformer | None

    def __str__(self):
        return f"patch {self.patch}; encoder {self.encoder}; decoder {self.decoder or 'one linear layer'}"


UPSTREAM_DECODER = Transformer(512, 8, 16)
MODELS = {
    "mae_vit_demo_patch8": Architecture(8, Transformer(64, 2, 4), Transformer(128, 1, 8)),
    "mae_vit_tiny_patch16": Architecture(16, Transformer(192, 12, 3), UPSTREAM_DECODER),
    "mae_vit_small_patch16": Architecture(16, Transformer(384, 12, 6), UPSTREAM_DECODER),
    "mae_vit_base_patch16": Architecture(16, Transformer(768, 12, 12), UPSTREAM_DECODER),
    "mae_vit_large_patch16": Architecture(16, Transformer(1024, 24, 16), UPSTREAM_DECODER),
    "mae_vit_huge_patch14": Architecture(14, Transformer(1280, 32, 16), UPSTREAM_DECODER),
}
MODELS |= {name[4:].partition("_patch")[0]: MODELS[name] for name in list(MODELS)[1:]}  # vit_tiny ... vit_huge
DECODER_WIDTHS = {"tiny": 192, "small": 384, "base": 512, "large": 768}
HEAD_WIDTH = 64  # of the decoders of these sizes

ENCODER_NAME, DECODER_NAME = "enc<width>d<depth>h<heads>p<patch>", "dec<width>d<depth>h<heads>"
_NUMBERS = r"([1-9]\d{0,4})d([1-9]\d{0,2})h([1-9]\d{0,3})"


def architecture(model, decoder_type=None):
    """The Architecture of a model's name and a decoder's, None for the model's own. Raises ValueError with what is wrong.

    A model is a key of MODELS or enc<width>d<depth>h<heads>p<patch>, such as enc192d12h3p16, whose own decoder is upstream's;
    a decoder is linear, <size>-<blocks>b with a size of DECODER_WIDTHS, such as base-8b, or dec<width>d<depth>h<heads>.
    """
    found = MODELS.get(model) or _by_numbers(model)
    return found if decoder_type is None else Architecture(found.patch, found.encoder, _decoder(decoder_type))


def _by_numbers(model):
    match = re.fullmatch(f"enc{_NUMBERS}p([1-9]\\d{{0,2}})", model)
    if not match:
        raise ValueError(f"unknown. Choose from {', '.join(MODELS)}, or {ENCODER_NAME}, such as enc192d12h3p4.")
    *sizes, patch = map(int, match.groups())
    return Architecture(patch, _checked(Transformer(*sizes), "enc"), UPSTREAM_DECODER)


def _decoder(name):
    if name == "linear":
        return None
    if match := re.fullmatch(f"dec{_NUMBERS}", name):
        return _checked(Transformer(*map(int, match.groups())), "dec")
    if match := re.fullmatch(rf"({'|'.join(DECODER_WIDTHS)})-([1-9]\d?)b", name):
        width = DECODER_WIDTHS[match[1]]
        return Transformer(width, int(match[2]), width // HEAD_WIDTH)
    raise ValueError(
        f"unknown. Use linear, <size>-<blocks>b with size one of {', '.join(DECODER_WIDTHS)}, such as base-8b, or "
        f"{DECODER_NAME}, such as dec512d8h8."
    )


def _checked(transformer, kind):
    """A Transformer. Raises ValueError if its width does not divide among its heads and the four parts of a position."""
    unit = math.lcm(4, transformer.heads)
    if transformer.width % unit == 0:
        return transformer
    lower = transformer.width // unit * unit
    ways = [f"{kind}{width}d{transformer.depth}h{transformer.heads}" for width in (lower, lower + unit) if width]
    raise ValueError(
        f"its width {transformer.width} must be a multiple of its {_counted(transformer.heads, 'head')} and of 4 "
        f"(sines and cosines of rows and columns). Try {' or '.join(ways)}."
    )


def visible_patches(patches, mask_ratio):
    """How many of an image's patches stay visible; upstream's models_mae.py, random_masking."""
    return int(patches * (1 - mask_ratio))


def _counted(n, noun):
    return f"{n} {noun}{'s' * (n != 1)}"
