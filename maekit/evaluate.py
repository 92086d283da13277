"""What a pre-trained encoder is worth for classification: fine-tuning, linear probing, k-NN.

Recipes are upstream's (facebookresearch/mae FINETUNE.md, main_finetune.py, main_linprobe.py; arXiv 2111.06377 A.1), on
timm's VisionTransformer, mixup, augmentation, layer-wise rates and LARS, for any norm.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import nn

from . import checkpoint, compiling, data, parallel, probes, recipes, resident, runs
from .errors import InputError
from .jobs import Job
from .model import to_timm


class Classification(Job):
    """A classifier on the encoder, `network`: timm's VisionTransformer."""

    columns = runs.EVALUATION_COLUMNS

    @torch.inference_mode()
    def validate(self, epoch=None):
        """Cross entropy, top-1 and top-5 in percent over the validation images, each counted once."""
        self.network.eval()
        sums, n = 0.0, 0
        for batch in self.val_batches:
            labels = batch["labels"].to(self.device.torch)
            logits = self.logits(self.pixels.normalize(batch["images"])).float()
            best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            measured = (F.cross_entropy(logits, labels, reduction="sum"), best[:, 0].sum(), best.sum())
            sums = sums + torch.stack([value.to(self.device.sum_dtype) for value in measured])
            n += len(labels)
        n = parallel.add(sums.new_tensor(n))
        loss, top1, top5 = (parallel.add(sums) / n).tolist()
        return {"val_loss": loss, "acc1": 100 * top1, "acc5": 100 * top5}

    def logits(self, images, classifier=None):
        """(N, 3, H, W) normalised -> (N, classes). classifier: self.trained in a training step, else as it is."""
        odd = classifier is None and len(images) != self.run.optim.batch_size  # the last batch of a validation
        with compiling.eagerly(self.compiled and odd), self.device.autocast():
            return (classifier or self.network)(images)


class Finetuning(Classification):
    """All weights trained: AdamW with layer-wise rates, drop path, mixup and cutmix, random augmentation and erasing,
    label smoothing; patch tokens pooled, then normed.

    mae: the masked autoencoder with random weights. An --init of 0 epochs is a classifier already, and only validated.
    """

    compiles = True

    def __init__(self, run, source, mae, adapt):
        super().__init__(run, source, adapt, with_labels=True)
        state = None if run.init is None else checkpoint.read(run.init)
        if self.epochs == 0:
            self.network = self.model = self.classifier(mae, state)
            return
        if state is not None:
            checkpoint.load_encoder(run.init, state, mae, needs_norm=False)
        vit = to_timm(mae, num_classes=self.classes, global_pool="avg", drop_path_rate=run.finetune.drop_path)
        # Nearly zero, upstream's value
        nn.init.trunc_normal_(vit.head.weight, std=2e-5, generator=torch.Generator().manual_seed(run.seed))
        nn.init.zeros_(vit.head.bias)
        self.network = self.model = vit.to(self.device.torch)

        options = run.finetune
        self.batches = data.train_batches(
            source.train, run.model, run.optim, seed=run.seed, transform=augmentation(run), **self.loading
        )
        self.mixup = None
        if options.mixup or options.cutmix:
            self.mixup = Mixup(
                options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=self.classes
            )
        self.criterion = (
            SoftTargetCrossEntropy() if self.mixup
            else LabelSmoothingCrossEntropy(options.smoothing) if options.smoothing
            else nn.CrossEntropyLoss()
        )  # fmt: skip
        groups = param_groups_layer_decay(
            vit, run.optim.weight_decay, vit.no_weight_decay(), layer_decay=options.layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, fused=self.device.torch.type != "mps")

    def classifier(self, mae, state):
        """The network of a fine-tuned checkpoint, head included."""
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
        vit = to_timm(mae, num_classes=len(head), global_pool="avg")
        checkpoint.load_model(path, state, vit)
        return vit.to(self.device.torch)

    def losses(self, batch, epoch, i):
        seed = self.run.seed
        images, labels = (batch[name].to(self.device.torch, non_blocking=True) for name in ("images", "labels"))
        if self.mixup:
            with data.seeded(data.MIXING, seed, epoch, i):
                images, labels = self.mixup(images, labels)
        torch.manual_seed(
            data.seed_of(data.DROPPING, seed, epoch, i, parallel.rank())
        )  # of drop path: equal after a resume
        return [self.criterion(self.logits(images, self.trained).float(), labels)]

    def ending(self, folder):
        return self.validate() if self.epochs == 0 else {}


class LinearProbing(Classification):
    """A linear classifier of the batch-normalised CLS token of a frozen encoder: LARS, crops and flips only.

    mae: the masked autoencoder with random weights.
    """

    def __init__(self, run, source, mae, adapt):
        super().__init__(run, source, adapt, with_labels=True)
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read(run.init), mae)
        self.network = to_timm(mae).requires_grad_(False)
        self.network.head = probes.probe_layers(mae.cls_token.shape[-1], self.classes, run.seed)
        layer = self.network.head[1]
        # Small: upstream's value, from MoCo v3
        nn.init.trunc_normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(run.seed))
        self.network.eval().to(self.device.torch)
        self.model = self.network.head  # what train() and eval() are called on; the encoder stays in eval mode
        self.resident = resident.place(source.train, self.device.torch)
        self.batches = data.train_batches(
            source.train, run.model, run.optim, seed=run.seed, crop_box=data.single_try_crop_box,
            boxes_only=self.resident is not None, **self.loading,
        )  # fmt: skip
        self.optimizer = probes.lars(layer, lr=run.optim.lr, weight_decay=run.optim.weight_decay)

    def logits(self, images, classifier=None):
        with torch.no_grad(), self.device.autocast():
            features = self.network.forward_features(images)
        return (classifier or self.network.head)(features[:, 0].float())  # in float32, whatever the encoder's precision

    def losses(self, batch, epoch, i):
        labels = batch["labels"].to(self.device.torch, non_blocking=True)
        return [F.cross_entropy(self.logits(self.pixels.normalize(self.crops(batch)), self.trained), labels)]


class Knn(Job):
    """k-nearest neighbours among the training images, no training at all; see probes.knn_predict.

    mae: the masked autoencoder with random weights.
    """

    columns = runs.EVALUATION_COLUMNS

    def __init__(self, run, source, mae, adapt):
        super().__init__(run, source, adapt, with_labels=True)
        if run.init is not None:
            checkpoint.load_encoder(run.init, checkpoint.read(run.init), mae)
        self.network = self.model = mae.to(self.device.torch)
        self.epochs = 0

    def ending(self, folder):
        known = data.whole_batches(self.source.train, self.run, self.loading)
        accuracy = probes.knn_accuracy(self.network, known, self.val_batches, self.classes, self.device, self.pixels)
        return {"acc1": accuracy}


def augmentation(run):
    """timm's training transform as upstream's util/datasets.py asks for it: PIL image -> float tensor, normalised."""
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize_increasing
    policy = None if run.finetune.aa == "none" else run.finetune.aa
    try:
        return create_transform(
            run.model.input_size,
            is_training=True,
            color_jitter=None,
            auto_augment=policy,
            interpolation="bicubic",
            re_prob=run.finetune.reprob,
            re_mode="pixel",
            re_count=1,
            mean=data.IMAGENET_MEAN,
            std=data.IMAGENET_STD,
        )
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"--aa {policy}: timm makes no augmentation of it ({error}). Use none, or such as "
                         f"{recipes.DEFAULTS['aa']}, augmix-m5-w4, original.") from error  # fmt: skip


def posterize_increasing(image, bits, **_):
    """timm's operation of this name, for 0 bits as well: black, which Pillow 13 refuses to draw and earlier ones drew."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)
