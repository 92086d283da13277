"""Images that live in memory: training images decoded in a GPU's, where crops are made of them; validation images cropped."""

import numpy as np
import torch

from ..machine import matrix_products

SHARE_OF_MEMORY = 0.25  # of what a GPU has free, that training images may take
SHARE_OF_CROPS = 0.1  # likewise, a set of validation images
MOST_CROPS = 2**29  # bytes of such a set that stay in a CPU's memory: 43,000 images at 64 pixels, 3,500 at 224
_CHUNK = 64  # images cropped at a time, so that what lies between stays small


def place(images, device, setting="auto"):
    """ResidentImages of an image set on a CUDA device; None where it has no cache, does not fit, or setting is "off"."""
    store = getattr(images, "store", None)
    if device.type != "cuda" or store is None or setting == "off":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return ResidentImages(store, device) if store.offsets[-1] <= SHARE_OF_MEMORY * free else None


def keep(batches, device, images=None, setting="auto"):
    """Batches of a validation set that stay in the memory of the run's device; as they are where there is no room for them,
    or setting is "off".

    images: ResidentImages of the set, if they are there already.
    """
    if setting == "off":
        return batches
    needed = 3 * batches.dataset.input_size**2 * len(batches) * batches.loader.batch_size
    room = SHARE_OF_CROPS * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else MOST_CROPS
    return KeptBatches(batches, device, images) if needed <= room else batches


class KeptBatches:
    """Batches of a set of validation images, which are the same in every pass, on a device: made at the first pass.

    There if their decoded images can be brought there, else as the batches themselves have them, by the CPU.
    """

    def __init__(self, batches, device, images=None):
        self.batches, self.device, self.images, self.dataset = batches, device, images, batches.dataset
        self.kept = None

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.kept is not None:
            yield from self.kept
            return
        kept = []
        for batch in self._made() or self.batches:
            kept.append({name: values.to(self.device, non_blocking=True) for name, values in batch.items()})
            yield kept[-1]
        self.kept = kept
        self.batches.end_workers()

    def _made(self):
        """The batches made on the device, None if they cannot be."""
        dataset, store = self.dataset, getattr(self.dataset.images, "store", None)
        if store is None or not store.stored.all():
            return None
        images = self.images or place(dataset.images, self.device)
        return None if images is None or images.kernels is None else self._crops(images, dataset)

    def _crops(self, images, dataset):
        for indices in self.batches.loader.batch_sampler:
            index = torch.tensor(indices)
            labels = (
                index.new_full((len(index),), -1) if dataset.labels is None else torch.as_tensor(dataset.labels)[index]
            )
            yield {
                "images": images.center_crop(index, dataset.short_side, dataset.input_size),
                "labels": labels,
                "noise": torch.from_numpy(np.stack([dataset.noise(i) for i in indices])),
                "index": index,
            }


class ResidentImages:
    """The pixels of a cache.Store on a device, in one piece.

    kernels: the module resampling, None to make crops of matrix products.
    """

    def __init__(self, store, device):
        pixels = torch.from_file(str(store.path), shared=False, size=int(store.offsets[-1]), dtype=torch.uint8)
        self.pixels = pixels.to(device).view(-1, 3)
        # on the CPU, so that no crop waits for the device
        self.sizes, self.original = (torch.from_numpy(of.astype(np.int64)) for of in (store.stored, store.original))
        self.starts = torch.from_numpy(np.asarray(store.offsets)[:-1] // 3)
        self.kernels = _kernels(device)

    def crop(self, index, boxes, flips, side):
        """uint8 (N, 3, side, side) on the device: boxes (N, 4) of the images `index` (N,), mirrored where flips (N,) is.

        Boxes are top, left, height and width in stored pixels, and may lie between them. Bicubic and antialiased, as PIL:
        its filter along rows, then along columns, and its rounding after each.
        """
        boxes = boxes.double()
        first = boxes[:, :2].floor().long()
        last = torch.minimum((boxes[:, :2] + boxes[:, 2:]).ceil().long(), self.sizes[index])  # not included
        return self._resampled(index, first, last, boxes, flips, side)

    def center_crop(self, index, short, side):
        """uint8 (N, 3, side, side) on the device: the middles of images `index` (N,) with their shorter sides resized to
        `short`, as decoding.Picture's."""
        sizes, original = self.sizes[index], self.original[index]
        resized = short * original // original.amin(dim=1, keepdim=True)
        corners = ((resized - side) / 2).round()
        boxes = torch.cat([corners, torch.full_like(corners, side)], dim=1).double() * (
            sizes.double() / resized
        ).repeat(1, 2)
        return self._resampled(index, torch.zeros_like(sizes), sizes, boxes, torch.zeros(len(index)), side)

    def _resampled(self, index, first, last, boxes, flips, side):
        """Crops of boxes whose filter reaches from the pixel `first` (N, 2), row and column, to `last`, not included."""
        sizes = self.sizes[index]
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
        with matrix_products("highest"):
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

        pixels, box = (
            torch.zeros(1, 3, dtype=torch.uint8, device=device),
            torch.tensor([[0, 0, 1, 1, 0]], device=device),
        )
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
