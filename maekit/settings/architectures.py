"""Names of encoders and decoders, and their patch sizes. No torch."""

MODELS = {  # name: patch size
    "mae_vit_demo_patch8": 8,
    "mae_vit_tiny_patch16": 16,
    "mae_vit_small_patch16": 16,
    "mae_vit_base_patch16": 16,
    "mae_vit_large_patch16": 16,
    "mae_vit_huge_patch14": 14,
    "vit_tiny": 16,
    "vit_small": 16,
    "vit_base": 16,
    "vit_large": 16,
    "vit_huge": 14,
}
DECODER_SIZES = ("tiny", "small", "base", "large")


def visible_patches(patches, mask_ratio):
    """How many of an image's patches stay visible; upstream's models_mae.py, random_masking."""
    return int(patches * (1 - mask_ratio))
