"""Make the folder that transformers saves of a small ViTMAE, and what it computes: python tests/golden/hugging_face.py FOLDER

FOLDER/model.safetensors and config.json are as save_pretrained writes them; expected.safetensors has images, noise, and loss,
predictions, mask and the encoder's tokens of them. Made once by transformers 4 and once by 5, whose names differ.
"""

import sys

import torch
import transformers
from safetensors.torch import save_file

torch.manual_seed(0)
sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
config = transformers.ViTMAEConfig(
    **sizes,
    **decoder,
    decoder_intermediate_size=32,
    image_size=16,
    patch_size=4,
    norm_pix_loss=True,
    layer_norm_eps=1e-6,
)
model = transformers.ViTMAEForPreTraining(config).eval()
with torch.no_grad():
    for name, value in model.state_dict().items():
        if "pos" not in name:  # tables of sines and cosines
            value += 0.2 * torch.randn_like(value)
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    out = model(images, noise=noise)
    tokens = model.vit(images, noise=noise).last_hidden_state
model.save_pretrained(sys.argv[1])
expected = {
    "images": images,
    "noise": noise,
    "loss": out.loss[None],
    "pred": out.logits,
    "mask": out.mask,
    "tokens": tokens,
}
save_file({name: tensor.contiguous() for name, tensor in expected.items()}, f"{sys.argv[1]}/expected.safetensors")
