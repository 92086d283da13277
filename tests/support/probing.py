"""What the tests of several probes ask of models and folders."""

from maekit.data import loader
from maekit.data.pixels import Pixels
from maekit.settings.typed import ModelSettings
from maekit.training.device import Device

QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
MODEL = ModelSettings("mae_vit_demo_patch8", 64, 0.75, False, None)
CPU = Device("cpu", "float32")
PIXELS = Pixels(CPU.torch)
CLASSES = 10


def val_batches(images, batch_size=8):
    broken = loader.BrokenImages(print)
    return loader.val_batches(images, MODEL, batch_size=batch_size, broken=broken, workers=0, with_labels=True)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
