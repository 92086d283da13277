"""A run for facebookresearch/mae: a checkpoint as its scripts read it."""

import io

import torch

from ..errors import InputError
from ..settings.tasks import LINPROBE, PRETRAIN
from .package import Package, converted


def package(trained):
    """The Package of a Trained: upstream's autoencoder or, of a classifier and where there is no decoder of its kind, its ViT.

    Raises InputError for a linear probing of the mean of patches, which upstream normalises otherwise.
    """
    if trained.task == LINPROBE and trained.reads_mean:
        raise InputError(
            f"{trained.folder}: its linear probe reads the mean of the normalised patches, which upstream's ViT does not. Use "
            "--to timm."
        )
    whole = trained.task == PRETRAIN and trained.architecture.decoder is not None
    weights = trained.weights if whole else trained.encoder
    file = io.BytesIO()
    torch.save({"model": {n: v.clone() for n, v in weights.items()}, "args": trained.told}, file)
    files, imported, conversion = converted(trained)
    module, made = ("models_mae", _autoencoder(trained)) if whole else ("models_vit", _vit(trained))
    loading = f"from functools import partial\n\nimport {module}  # of facebookresearch/mae, in its folder\nimport torch\n{imported}\n"
    loading += f"norm = partial(torch.nn.LayerNorm, eps=1e-6)\nmodel = {module}.{made}\n{conversion}"
    loading += (
        'model.load_state_dict(torch.load(FOLDER + "/checkpoint.pth", weights_only=True)["model"])\nmodel.eval()\n'
    )
    what = "a checkpoint for upstream's " + ("MaskedAutoencoderViT" if whole else "VisionTransformer")
    what += f" with {trained.norm}" if conversion else ""
    kind = "image-feature-extraction" if trained.task == PRETRAIN else "image-classification"
    return Package(what, {"checkpoint.pth": file.getvalue(), **files}, loading, "pytorch", kind, whole)


def _autoencoder(trained):
    encoder, decoder = trained.architecture.encoder, trained.architecture.decoder
    return (
        f"MaskedAutoencoderViT({trained.side}, {trained.architecture.patch}, 3, {encoder.width}, {encoder.depth}, "
        f"{encoder.heads}, {decoder.width}, {decoder.depth}, {decoder.heads}, mlp_ratio=4, norm_layer=norm, "
        f"norm_pix_loss={bool(trained.identity['norm_pix_loss'])})"
    )


def _vit(trained):
    encoder = trained.architecture.encoder
    return (
        f"VisionTransformer(img_size={trained.side}, patch_size={trained.architecture.patch}, embed_dim={encoder.width}, "
        f"depth={encoder.depth}, num_heads={encoder.heads}, mlp_ratio=4, qkv_bias=True, norm_layer=norm, "
        f"num_classes={trained.classes}, global_pool={trained.reads_mean})"
    )
