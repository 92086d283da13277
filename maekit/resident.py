"""Training images that live decoded in a GPU's memory, and crops of them made there, a batch at a time."""

import numpy as np
import torch

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
        parts = zip(*(tensor.split(_CHUNK) for tensor in (index, boxes, flips)))
        return torch.cat([self._crop(*part, side) for part in parts])

    def _crop(self, index, boxes, flips, side):
        device, sizes = self.pixels.device, self.sizes[index]
        first = boxes[:, :2].floor().long()
        last = torch.minimum((boxes[:, :2] + boxes[:, 2:]).ceil().long(), sizes)  # not included
        rows, columns = (last - first).amax(dim=0).tolist()
        starts, first, last, sizes, boxes, flips = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.starts[index], first, last, sizes, boxes.float(), flips)
        )
        # the pixels of the boxes, (n, rows, columns, 3); beyond a box its last ones again, which weigh nothing
        y = torch.minimum(first[:, :1] + torch.arange(rows, device=device), last[:, :1] - 1)
        x = torch.minimum(first[:, 1:] + torch.arange(columns, device=device), last[:, 1:] - 1)
        pixels = self.pixels[starts[:, None, None] + y[:, :, None] * sizes[:, 1, None, None] + x[:, None]].float()
        within, length = boxes[:, :2] - first, last - first
        down = _weights(within[:, 0], boxes[:, 2], length[:, 0], rows, side)
        across = _weights(within[:, 1], boxes[:, 3], length[:, 1], columns, side)
        across = torch.where(flips[:, None, None], across.flip(1), across)
        half = (across[:, None] @ pixels).round_().clamp_(0, 255)  # (n, rows, side, 3)
        whole = (down @ half.flatten(2)).round_().clamp_(0, 255)
        return whole.view(-1, side, side, 3).permute(0, 3, 1, 2).byte()


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
