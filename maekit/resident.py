"""Training images that live decoded in a GPU's memory, and crops of them made there, a batch at a time."""

import numpy as np
import torch

from .device import exact_products

SHARE_OF_MEMORY = 0.25  # of what a GPU has free, that images may take
_CHUNK = 64  # images cropped at a time, so that what lies between stays small


def place(images, device):
    """ResidentImages of an image set on a CUDA device; None where it has no cache, or does not fit."""
    store = getattr(images, "store", None)
    if device.type != "cuda" or store is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return ResidentImages(store, device) if store.offsets[-1] <= SHARE_OF_MEMORY * free else None


class ResidentImages:
    """The pixels of a cache.Store on a device, in one piece."""

    def __init__(self, store, device):
        pixels = torch.from_file(str(store.path), shared=False, size=int(store.offsets[-1]), dtype=torch.uint8)
        self.pixels = pixels.to(device).view(-1, 3)
        self.sizes = torch.from_numpy(store.stored.astype(np.int64))  # on the CPU, so that no crop waits for the device
        self.starts = torch.from_numpy(np.asarray(store.offsets)[:-1] // 3)

    def crop(self, index, boxes, flips, side):
        """uint8 (N, 3, side, side) on the device: boxes (N, 4) of the images `index` (N,), mirrored where flips (N,) is.

        Boxes are top, left, height and width in stored pixels, and may lie between them. Bicubic and antialiased, as PIL:
        its filter, as two matrix products per image, and its rounding after each.
        """
        sizes = self.sizes[index]
        first = boxes[:, :2].floor().long()
        last = torch.minimum((boxes[:, :2] + boxes[:, 2:]).ceil().long(), sizes)  # not included
        wide = (last - first)[:, 1].argsort()  # images of a chunk are padded to its largest
        # one transfer a batch; doubles are exact for whole numbers
        known = torch.cat([self.starts[index, None], sizes[:, 1:], first, last, boxes, flips[:, None]], dim=1).double()
        known = torch.cat([known[wide], wide[:, None].double()], dim=1)
        if self.pixels.is_cuda:
            known = known.pin_memory()
        moved, crops = known.to(self.pixels.device, non_blocking=True), []
        for part, here in zip(known.split(_CHUNK), moved.split(_CHUNK)):
            rows, columns = (part[:, 4:6] - part[:, 2:4]).amax(dim=0).long().tolist()
            crops.append(self._crop(here, rows, columns, side))
        crops = torch.cat(crops)
        return torch.empty_like(crops).index_copy_(0, moved[:, -1].long(), crops)

    def _crop(self, known, rows, columns, side):
        device = self.pixels.device
        starts, widths, *_ = whole = known[:, :6].long().unbind(1)
        first, last, boxes, flips = torch.stack(whole[2:4], 1), torch.stack(whole[4:6], 1), known[:, 6:10], known[:, 10]
        # the pixels of the boxes, (n, columns, rows, 3); beyond a box its last ones again, which weigh nothing
        y = torch.minimum(first[:, :1] + torch.arange(rows, device=device), last[:, :1] - 1)
        x = torch.minimum(first[:, 1:] + torch.arange(columns, device=device), last[:, 1:] - 1)
        at = (starts[:, None] + x)[:, :, None] + (y * widths[:, None])[:, None]
        pixels = self.pixels[at].float()
        within, length = (boxes[:, :2] - first).float(), (last - first).float()
        lengths = boxes[:, 2:].float()
        down = _weights(within[:, 0], lengths[:, 0], length[:, 0], rows, side)
        across = _weights(within[:, 1], lengths[:, 1], length[:, 1], columns, side)
        across = torch.where(flips[:, None, None] > 0, across.flip(1), across)
        with exact_products():
            half = across @ pixels.flatten(2)  # (n, side, rows * 3)
            half = half.round_().clamp_(0, 255).view(-1, side, rows, 3)
            half = half.transpose(1, 2).reshape(-1, rows, side * 3)
            whole = down @ half
        return whole.round_().clamp_(0, 255).view(-1, side, side, 3).permute(0, 3, 1, 2).byte()


def _weights(start, length, pixels, most, side):
    """Weights (n, side, most) of an axis's pixels in the output's: a cubic (a = -0.5), wider where the box is reduced.

    start, length (n,): of the boxes; pixels (n,): how many of `most` each has.
    """
    scale = (length / side)[:, None, None]
    centre = start[:, None, None] + (torch.arange(side, device=start.device)[:, None] + 0.5) * scale
    place = torch.arange(most, device=start.device)
    x = ((place + 0.5 - centre) / scale.clamp(min=1)).abs()
    weight = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weight = weight * (x < 2) * (place < pixels[:, None, None])
    return weight / weight.sum(dim=2, keepdim=True)
