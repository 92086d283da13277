"""Between uint8 images and the normalised ones of the model."""

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Pixels:
    """Between uint8 images and the normalised ones of the model, on the device. Shapes (N, 3, H, W)."""

    def __init__(self, device):
        self.device = device
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def normalize(self, images):
        """uint8 in 0..255, anywhere -> float32 on the device, ImageNet mean and deviation removed."""
        return (images.to(self.device, non_blocking=True).float() / 255 - self.mean) / self.std

    def to_uint8(self, images):
        """The inverse, rounded and clipped to 0..255, on the CPU."""
        return ((images.float() * self.std + self.mean) * 255).round().clamp(0, 255).byte().cpu()
