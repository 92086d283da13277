"""What an encoder attends to, and its patch tokens, image by image: for looking at."""

import torch


@torch.inference_mode()
def maps(mae, images):
    """Attention of the CLS token over the patches in the last block, and the patch tokens, of whole images.

    images (N, 3, H, W), normalised. Returns attention (N, L), the mean over heads, which adds up to 1 with what CLS pays to
    itself, and tokens (N, L, D) behind the encoder's last norm; float32, patches row by row. Of upstream's models as well.
    """
    attention, seen = mae.blocks[-1].attn, []
    hook = attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    noise = torch.zeros(len(images), mae.pos_embed.shape[1] - 1, device=images.device)
    try:
        latent, _, ids_restore = mae.forward_encoder(images, 0.0, noise)
    finally:
        hook.remove()
    query, key, _ = seen[-1].float().unflatten(-1, (3, attention.num_heads, -1)).unbind(2)  # (N, 1 + L, heads, width)
    with torch.autocast(images.device.type, enabled=False):
        weights = torch.einsum("nhd,nlhd->nhl", query[:, 0], key) / query.shape[-1] ** 0.5
    attended = weights.softmax(-1).mean(1)[:, 1:].gather(1, ids_restore)
    tokens = latent[:, 1:].float().gather(1, ids_restore[:, :, None].expand(-1, -1, latent.shape[2]))
    return attended, tokens
