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
    """The pixels of a cache.Store on a device, in one piece.

    kernels: the module resampling, None to make crops of matrix products.
    """

    def __init__(self, store, device):
        pixels = torch.from_file(str(store.path), shared=False, size=int(store.offsets[-1]), dtype=torch.uint8)
        self.pixels = pixels.to(device).view(-1, 3)
        self.sizes = torch.from_numpy(store.stored.astype(np.int64))  # on the CPU, so that no crop waits for the device
        self.starts = torch.from_numpy(np.asarray(store.offsets)[:-1] // 3)
        self.kernels = _kernels(device)

    def crop(self, index, boxes, flips, side):
        """uint8 (N, 3, side, side) on the device: boxes (N, 4) of the images `index` (N,), mirrored where flips (N,) is.

        Boxes are top, left, height and width in stored pixels, and may lie between them. Bicubic and antialiased, as PIL:
        its filter along rows, then along columns, and its rounding after each.
        """
        sizes, boxes = self.sizes[index], boxes.double()
        first = boxes[:, :2].floor().long()
        last = torch.minimum((boxes[:, :2] + boxes[:, 2:]).ceil().long(), sizes)  # not included
        whole = torch.cat([self.starts[index, None], sizes[:, 1:], first, last], dim=1)
        exact = torch.cat([boxes[:, :2] - first, boxes[:, 2:], flips[:, None]], dim=1)
        if self.kernels is not None:
            scale = (boxes[:, 2:].amax(dim=0) / side).clamp(min=1)
            taps = tuple(int(n) for n in reversed((4 * scale).ceil().long() + 2))
            rows = int((last - first)[:, 0].max())
            return self.kernels.crops(self.pixels, *self._move(whole, exact), rows, taps, side)
        wide = (last - first)[:, 1].argsort()  # images of a chunk are padded to its largest
        whole, exact, crops = whole[wide], exact[wide], []
        for part, *moved in zip(whole.split(_CHUNK), *(tensor.split(_CHUNK) for tensor in self._move(whole, exact))):
            rows, columns = (part[:, 4:] - part[:, 2:4]).amax(dim=0).tolist()
            crops.append(self._crop(*moved, rows, columns, side))
        return torch.cat(crops)[wide.argsort().to(self.pixels.device)]

    def _move(self, whole, exact):
        """Both on the device, int64 and float32, in one transfer: doubles are exact for whole numbers."""
        both = torch.cat([whole.double(), exact], dim=1)
        if self.pixels.is_cuda:
            both = both.pin_memory().to(self.pixels.device, non_blocking=True)
        return both[:, :6].long(), both[:, 6:].float()

    def _crop(self, whole, exact, rows, columns, side):
        """Crops of a chunk: two matrix products an image. rows, columns: of its highest and its widest box."""
        device = self.pixels.device
        starts, widths, first, last = whole[:, 0], whole[:, 1], whole[:, 2:4], whole[:, 4:]
        # the pixels of the boxes, (n, columns, rows, 3); beyond a box its last ones again, which weigh nothing
        y = torch.minimum(first[:, :1] + torch.arange(rows, device=device), last[:, :1] - 1)
        x = torch.minimum(first[:, 1:] + torch.arange(columns, device=device), last[:, 1:] - 1)
        at = (starts[:, None] + x)[:, :, None] + (y * widths[:, None])[:, None]
        pixels = self.pixels[at].float()
        length = (last - first).float()
        down = _weights(exact[:, 0], exact[:, 2], length[:, 0], rows, side)
        across = _weights(exact[:, 1], exact[:, 3], length[:, 1], columns, side)
        across = torch.where(exact[:, 4, None, None] > 0, across.flip(1), across)
        with exact_products():
            half = (across @ pixels.flatten(2)).round_().clamp_(0, 255)  # (n, side, rows * 3)
            half = half.view(-1, side, rows, 3).transpose(1, 2).reshape(-1, rows, side * 3)
            crops = (down @ half).round_().clamp_(0, 255)
        return crops.view(-1, side, side, 3).permute(0, 3, 1, 2).byte()


def _kernels(device):
    """The module resampling, None where Triton does not work."""
    if device.type != "cuda":
        return None
    try:
        from . import resampling

        pixels, box = torch.zeros(1, 3, dtype=torch.uint8, device=device), torch.tensor([[0, 0, 1, 1, 0]], device=device)
        resampling.crops(pixels, torch.tensor([[0, 1, 0, 0, 1, 1]], device=device), box.float(), 1, (6, 6), 1)
    except Exception:  # noqa: BLE001 - no Triton, no C compiler for it, a GPU that it does not know: its errors have no class
        return None
    return resampling


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
