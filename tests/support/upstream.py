"""Pictures, noise and logs that comparisons with upstream share."""

import json

import torch
from PIL import Image
from torchvision import transforms

from maekit.data import demo

TOLERANCE = 1e-5  # float32 on the CPU
STEPS = 5
BASE = "mae_vit_base_patch16"
SHORT = (
    "--model",
    BASE,
    "--epochs",
    "1",
    "--batch_size",
    "4",
    "--accum_iter",
    "1",
    "--num_workers",
    "0",
    "--device",
    "cpu",
)


def pictures(n, side=224):
    """n crops of photographs, normalised, (n, 3, side, side); the corner of the first is flat, as an overexposed sky."""
    images = []
    for name in demo.PHOTOGRAPHS[:n]:
        photo = Image.open(demo.photograph(name)).convert("RGB")
        images.append(transforms.functional.to_tensor(transforms.functional.resize(photo, [side, side])))
    images = (torch.stack(images) - 0.45) / 0.225
    images[0, :, : side // 4, : side // 4] = images.max()
    return images


class GivenNoise:
    """torch.rand in upstream's random_masking, which gets our noise instead; counts how often it is asked."""

    def __init__(self, monkeypatch):
        self.asked, self.noise = 0, None
        monkeypatch.setattr(torch, "rand", self)

    def __call__(self, *shape, device=None):
        assert shape == self.noise.shape
        self.asked += 1
        return self.noise


def without_key_bias(name, tensor):
    """qkv.bias without the keys': adding one vector to all keys changes no attention, so its gradient is what rounding
    leaves, and Adam makes whole steps of that."""
    if not name.endswith("qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def difference(ours, theirs):
    """Largest ‖a - b‖ / ‖b‖ over the tensors of two dicts, and the name of that tensor."""
    assert ours.keys() == theirs.keys()
    worst = (0.0, None)
    for name, b in theirs.items():
        a, b = without_key_bias(name, ours[name]), without_key_bias(name, b)
        assert a.shape == b.shape, name
        if not torch.equal(a, b):
            assert a.isfinite().all() and b.isfinite().all(), name
            a, b = a.double(), b.double()
            worst = max(worst, (((a - b).norm() / b.norm()).item(), name))
    return worst


def trained_by(folder):
    """What config.json says of the model's source."""
    return json.loads((folder / "config.json").read_text())["model_source"]
