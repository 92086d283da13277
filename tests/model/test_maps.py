"""Attention and tokens of whole images, in the order of the patches."""

import torch

from maekit.model import build_mae
from maekit.model.maps import maps


def test_attention_is_that_of_cls_in_the_last_block_and_tokens_are_the_encoders():
    """Against the blocks written out, images as they are: no patch hidden, none out of its place."""
    torch.manual_seed(0)
    mae = build_mae("enc48d3h4p8", img_size=32, decoder_type="dec32d1h2").eval()
    images = torch.randn(2, 3, 32, 32)
    attention, tokens = maps(mae, images)
    with torch.no_grad():
        x = mae.patch_embed(images) + mae.pos_embed[:, 1:]
        x = torch.cat(((mae.cls_token + mae.pos_embed[:, :1]).expand(2, -1, -1), x), dim=1)
        for block in mae.blocks[:-1]:
            x = block(x)
        last = mae.blocks[-1]
        q, k, _ = last.attn.qkv(last.norm1(x)).reshape(2, 17, 3, 4, 12).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1)
        expected = mae.norm(last(x))[:, 1:]
    assert torch.allclose(attention, weights[:, :, 0, 1:].mean(1), atol=1e-6) and attention.shape == (2, 16)
    assert torch.allclose(attention.sum(1) + weights[:, :, 0, 0].mean(1), torch.ones(2), atol=1e-6)
    assert torch.allclose(tokens, expected, atol=1e-5) and tokens.shape == (2, 16, 48)
    assert not mae.blocks[-1].attn.qkv._forward_hooks
