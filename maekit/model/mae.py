"""The masked autoencoder of He et al. (arXiv 2111.06377) on timm's blocks, with upstream's parameter names.

Images are (N, 3, H, W), square, normalised. L = (H / patch)^2 patches; a patch as a vector has patch^2 * 3 values,
rows first, channels last. Masks are (N, L) with 1 where a patch is hidden.
"""

from functools import partial

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn

from ..settings.architectures import Transformer, architecture
from .patches import (
    in_order_of_noise,
    mask_of,
    patch_statistics,
    patches_at,
    patchify,
    random_masking,
    rows_at,
    sincos_positions,
    unpatchify,
)


def build_mae(name, *, img_size=224, decoder_type=None, norm_pix_loss=False, pos_embed="sincos", upstream=None):
    """A MaskedAutoencoder by name, freshly initialised from torch's global generator.

    name, decoder_type: as settings.architectures.architecture has them: "vit_tiny", "base-8b", or by their numbers,
    "enc192d12h3p16", "dec512d8h8". pos_embed: "sincos" for fixed position tables, "learned" for trained ones.
    upstream: the module models_mae of a clone of facebookresearch/mae; the model is then of its class, with the weights
    that ours would have. Raises ValueError for an unknown name and for an img_size that patches do not tile.
    """
    try:
        sizes = architecture(name, decoder_type)
    except ValueError as error:
        raise ValueError(f"model {name!r}, decoder {decoder_type!r}: {error}") from None
    parts = img_size, sizes.patch, sizes.encoder, sizes.decoder
    mae = ours = MaskedAutoencoder(*parts, norm_pix_loss=norm_pix_loss)
    if pos_embed == "learned":
        ours.learn_positions()
    if upstream is not None:
        mae = upstream_mae(upstream, *parts, norm_pix_loss=norm_pix_loss)
        mae.load_state_dict(ours.state_dict())
        for table in ("pos_embed", "decoder_pos_embed"):
            getattr(mae, table).requires_grad_(getattr(ours, table).requires_grad)
    return mae


class MaskedAutoencoder(nn.Module):
    """Encoder over the visible patches, decoder over all, mean squared error on the hidden ones.

    Parameter names, forward signature and arithmetic are upstream's (facebookresearch/mae models_mae.py); `noise`
    is in addition, so that a caller can decide the masks. decoder None is a single linear layer.
    """

    def __init__(self, img_size, patch_size, encoder, decoder, *, mlp_ratio=4.0, norm_pix_loss=False):
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of the patch size {patch_size}")
        self.patch_size = patch_size
        self.norm_pix_loss = norm_pix_loss
        norm = partial(nn.LayerNorm, eps=1e-6)

        # encoder
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, encoder.width)
        positions = self.patch_embed.num_patches + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, encoder.width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(encoder.width, encoder.heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(encoder.depth)
        )
        self.norm = norm(encoder.width)

        # decoder; the linear one works at the encoder's width and has neither embedding, blocks nor norm
        width = decoder.width if decoder else encoder.width
        self.decoder_embed = nn.Linear(encoder.width, width) if decoder else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, positions, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, decoder.heads, mlp_ratio, qkv_bias=True, norm_layer=norm)
            for _ in range(decoder.depth if decoder else 0)
        )
        self.decoder_norm = norm(width) if decoder else nn.Identity()
        self.decoder_pred = nn.Linear(width, patch_size**2 * 3)

        self.initialize_weights()

    def initialize_weights(self):
        """Sine-cosine position tables, Xavier-uniform linear layers, tokens N(0, 0.02), as upstream."""
        grid = self.patch_embed.grid_size[0]
        for table in (self.pos_embed, self.decoder_pos_embed):
            table.data.copy_(sincos_positions(table.shape[-1], grid))
        self.apply(_initialize_linear)
        projection = self.patch_embed.proj.weight  # a convolution, initialised as the linear layer it is
        nn.init.xavier_uniform_(projection.data.view(projection.shape[0], -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def learn_positions(self):
        """Position tables that are trained, N(0, 0.02) at the start, in place of the sines and cosines."""
        for table in (self.pos_embed, self.decoder_pos_embed):
            nn.init.normal_(table.requires_grad_(), std=0.02)

    def patchify(self, images):
        """(N, 3, H, W) -> (N, L, patch^2 * 3)."""
        return patchify(images, self.patch_size)

    def unpatchify(self, patches):
        """(N, L, patch^2 * 3) -> (N, 3, H, W)."""
        return unpatchify(patches, self.patch_size)

    def embed(self, images, ids_keep):
        """(N, 3, H, W), patches (N, kept) as in_order_of_noise has them -> (N, kept, D), each by itself, with its position.

        The convolution of patch_embed as the matrix product that it is, of these patches alone.
        """
        if tuple(images.shape[-2:]) != self.patch_embed.img_size:
            raise ValueError(f"images {tuple(images.shape[-2:])} for a model of {self.patch_embed.img_size} pixels")
        positions = self.pos_embed[0, 1:]
        if ids_keep.shape[1] == len(positions) and not images.is_cuda:  # all, in place; on CUDA the convolution is slow
            return self.patch_embed(images) + positions
        projection = self.patch_embed.proj
        patches = patches_at(images, self.patch_size, ids_keep)
        x = nn.functional.linear(patches, projection.weight.flatten(1), projection.bias)
        return x + nn.functional.embedding(ids_keep, positions)

    def forward_encoder(self, images, mask_ratio, noise=None):
        """(N, 3, H, W) -> latent (N, 1 + kept, D) with the CLS token first, mask (N, L), ids_restore (N, L)."""
        if noise is None:
            noise = torch.rand(len(images), self.patch_embed.num_patches, device=images.device)
        ids_keep, ids_restore = in_order_of_noise(noise, mask_ratio)
        x = self.embed(images, ids_keep)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat((cls_token.to(x.dtype), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask_of(ids_restore, ids_keep.shape[1]), ids_restore

    def forward_decoder(self, latent, ids_restore):
        """latent (N, 1 + kept, D), ids_restore (N, L) -> prediction of every patch (N, L, patch^2 * 3)."""
        x = self.decoder_embed(latent)
        n, length = ids_restore.shape
        hidden = self.mask_token.to(x.dtype).expand(n, length + 1 - x.shape[1], -1)
        patches = torch.cat((x[:, 1:], hidden), dim=1)  # visible ones first, still shuffled
        x = torch.cat((x[:, :1], rows_at(patches, ids_restore)), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, images, pred, mask):
        """Mean squared error over the hidden patches, in the space the decoder predicts in; a scalar."""
        target = self.patchify(images)
        if self.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        loss = nn.functional.mse_loss(pred, target, reduction="none").mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def forward(self, images, mask_ratio=0.75, noise=None):
        """loss (scalar), pred (N, L, patch^2 * 3), mask (N, L)."""
        latent, mask, ids_restore = self.forward_encoder(images, mask_ratio, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(images, pred, mask), pred, mask

    def reconstruct(self, images, pred):
        """Predictions as images (N, 3, H, W) in the space of `images`.

        With norm_pix_loss the decoder predicts each patch normalised by its own mean and deviation, which the patch
        itself must lend to draw it; drawn raw it looks like noise.
        """
        if self.norm_pix_loss:
            mean, std = patch_statistics(self.patchify(images))
            pred = pred * std + mean
        return self.unpatchify(pred)


def norms_before_linear(mae):
    """The norm layers of a masked autoencoder, upstream's too, whose values linear layers alone read: all but the encoder's
    last, whose values are features as well."""
    blocks = [*mae.blocks, *mae.decoder_blocks]
    return [norm for block in blocks for norm in (block.norm1, block.norm2)] + [mae.decoder_norm]


def upstream_mae(module, img_size, patch_size, encoder, decoder, *, norm_pix_loss=False):
    """A model of upstream's own class, for any Transformer sizes, that takes `noise` and draws pictures as ours does.

    module: models_mae of a clone. Of upstream's arithmetic only the place where the mask's noise comes from is changed.
    """

    class UpstreamMAE(module.MaskedAutoencoderViT):
        noise = None

        def random_masking(self, x, mask_ratio):
            noise = torch.rand(x.shape[:2], device=x.device) if self.noise is None else self.noise
            return random_masking(x, mask_ratio, noise)

        def forward_encoder(self, images, mask_ratio, noise=None):
            self.noise = noise
            try:
                return super().forward_encoder(images, mask_ratio)
            finally:
                self.noise = None

        def forward(self, images, mask_ratio=0.75, noise=None):
            latent, mask, ids_restore = self.forward_encoder(images, mask_ratio, noise)
            pred = self.forward_decoder(latent, ids_restore)
            return self.forward_loss(images, pred, mask), pred, mask

        reconstruct = MaskedAutoencoder.reconstruct

    sizes = decoder or Transformer(encoder.width, 0, 1)
    mae = UpstreamMAE(
        img_size,
        patch_size,
        3,
        encoder.width,
        encoder.depth,
        encoder.heads,
        sizes.width,
        sizes.depth,
        sizes.heads,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=norm_pix_loss,
    )
    if decoder is None:  # upstream has no linear decoder
        mae.decoder_embed, mae.decoder_norm = nn.Identity(), nn.Identity()
    return mae


def _initialize_linear(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
