"""Fine-tuning: all weights of the encoder trained to classify."""

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision import transforms

from .. import distributed
from ..data import streams
from ..data.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..errors import InputError
from ..model.formats import to_timm
from ..settings.flags import DEFAULTS
from ..settings.probes import CLS, MEAN
from . import checkpoint
from .classification import Classification


class Finetuning(Classification):
    """All weights trained: AdamW with layer-wise rates, drop path, mixup and cutmix, random augmentation and erasing,
    label smoothing; patch tokens pooled, then normed, or, with --readout cls, the CLS token of the encoder's own norm.

    build: function that makes the masked autoencoder with random weights. An --init of 0 epochs is a classifier already, and only validated.
    """

    compiles = True

    def __init__(self, run, source, build, norms):
        super().__init__(run, source, norms, with_labels=True)
        mae = build()
        state = None if run.init is None else checkpoint.read_weights(run.init)
        (self.readout,) = run.probes.readouts
        pool = {"global_pool": "token" if self.readout == CLS else "avg"}
        if self.epochs == 0:
            self.network = self.model = self.classifier(mae, state, pool)
            return
        if state is not None:
            checkpoint.load_encoder(run.init, state, mae, needs_norm=self.readout == CLS, norm=run.norm.name)
        vit = to_timm(mae, num_classes=self.classes, drop_path_rate=run.finetune.drop_path, **pool)
        # Nearly zero, upstream's value
        nn.init.trunc_normal_(vit.head.weight, std=2e-5, generator=torch.Generator().manual_seed(run.seed))
        nn.init.zeros_(vit.head.bias)
        self.network = self.model = vit.to(self.device.torch)

        options = run.finetune
        self.batches = self.loaders.training(transform=augmentation(run))
        self.mixup = None
        if options.mixup or options.cutmix:
            self.mixup = Mixup(
                options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=self.classes
            )
        self.criterion = (
            SoftTargetCrossEntropy()
            if self.mixup
            else LabelSmoothingCrossEntropy(options.smoothing)
            if options.smoothing
            else nn.CrossEntropyLoss()
        )
        groups = param_groups_layer_decay(
            vit, run.optim.weight_decay, vit.no_weight_decay(), layer_decay=options.layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, fused=self.device.torch.type != "mps")

    def classifier(self, mae, state, pool):
        """The network of a fine-tuned checkpoint, head included. pool: as to_timm takes it."""
        path = self.run.init
        head = None if state is None else state["model"].get("head.weight")
        if head is None:
            raise InputError(
                f"--epochs 0: {path or '--init untrained'} has no head to classify with. Fine-tune it first."
            )
        if len(head) < self.classes:
            raise InputError(
                f"--init {path}: its head knows {len(head)} classes, the data set has {self.classes}. Use the data it was "
                "fine-tuned on, or fine-tune it with --epochs 1 or more, which gives it a new head."
            )
        theirs = MEAN if "fc_norm.weight" in state["model"] else CLS
        if theirs != self.readout:
            raise InputError(f"--readout {self.readout}: {path} was fine-tuned with --readout {theirs}. Add that.")
        vit = to_timm(mae, num_classes=len(head), **pool)
        checkpoint.load_model(path, state, vit, self.run.norm.name)
        return vit.to(self.device.torch)

    def losses(self, batch, epoch, i):
        seed = self.run.seed
        images, labels = batch["images"], batch["labels"]
        if self.mixup:
            with streams.seeded(streams.MIXING, seed, epoch, i):
                images, labels = self.mixup(images, labels)
        torch.manual_seed(
            streams.seed_of(streams.DROPPING, seed, epoch, i, distributed.rank())
        )  # of drop path: equal after a resume
        return [self.criterion(self.logits(images, self.trained).float(), labels)]

    def ending(self, folder):
        return self.validate() if self.epochs == 0 else {}


def augmentation(run):
    """timm's training transform as upstream's util/datasets.py asks for it: PIL image -> float tensor, normalised.

    Images that are not to be enlarged are moved, not cropped, as DeiT does it with CIFAR's; whole ones are not mirrored either.
    """
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize_increasing
    policy = None if run.finetune.aa == "none" else run.finetune.aa
    side, crop = run.model.input_size, run.data.crop
    try:
        made = create_transform(
            side,
            is_training=True,
            hflip=0.0 if crop == "whole" else 0.5,
            color_jitter=None,
            auto_augment=policy,
            interpolation="bicubic",
            re_prob=run.finetune.reprob,
            re_mode="pixel",
            re_count=1,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise InputError(
            f"--aa {policy}: timm makes no augmentation of it ({error}). Use none, or such as "
            f"{DEFAULTS['aa']}, augmix-m5-w4, original."
        ) from error
    if crop != "resized":
        whole = [transforms.Resize(side, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(side)]
        moved = [transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect")] if crop == "shifted" else []
        made.transforms[0] = transforms.Compose([*whole, *moved])
    return made


def posterize_increasing(image, bits, **_):
    """timm's operation of this name, for 0 bits as well: black, which Pillow 13 refuses to draw and earlier ones drew."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)
