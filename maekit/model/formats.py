"""The encoder as timm's VisionTransformer, and the weights of other formats."""

import copy
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def to_timm(mae, *, num_classes=0, global_pool="token", drop_path_rate=0.0):
    """The encoder of a masked autoencoder, ours or upstream's, as timm's VisionTransformer: same weights, same norms.

    Its forward_features(images)[:, 0] is the CLS token of forward_encoder(images, mask_ratio=0). With global_pool "avg"
    the final norm is a fresh one after pooling, as in upstream's fine-tuning. The head of num_classes is timm's, new;
    position tables may be trained. No random number is drawn from the global stream.
    """
    first = mae.blocks[0]
    with torch.random.fork_rng(devices=[]):
        vit = VisionTransformer(
            img_size=mae.patch_embed.img_size,
            patch_size=mae.patch_embed.patch_size,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=mae.cls_token.shape[-1],
            depth=len(mae.blocks),
            num_heads=first.attn.num_heads,
            mlp_ratio=first.mlp.fc1.out_features / first.mlp.fc1.in_features,
            drop_path_rate=drop_path_rate,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    for ours, theirs in zip(vit.blocks, mae.blocks):
        for part in ("norm1", "norm2", "ls1", "ls2"):  # the latter two scale branches, of blocks without norms
            setattr(ours, part, copy.deepcopy(getattr(theirs, part)))
    encoder = encoder_weights(mae.state_dict())
    norm = copy.deepcopy(mae.norm)
    if global_pool == "token":
        vit.norm = norm
    else:
        norm.reset_parameters()
        vit.fc_norm = norm
        encoder = {name: value for name, value in encoder.items() if not name.startswith("norm.")}
    missing, unexpected = vit.load_state_dict(encoder, strict=False)
    missing = [name for name in missing if not name.startswith(("head.", "fc_norm."))]
    if missing or unexpected:
        raise ValueError(f"no encoder of timm's VisionTransformer: {missing} missing, {unexpected} left over")
    return vit.to(mae.cls_token.device)


def encoder_weights(state):
    """Those entries of a state dict that are the encoder's: no decoder, no classifier."""
    return {name: value for name, value in state.items() if not name.startswith(NOT_ENCODER)}


NOT_ENCODER = ("decoder_", "mask_token", "head.", "fc_norm.")
