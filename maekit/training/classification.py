"""What a pre-trained encoder is worth for classification: fine-tuning, linear probing, k-NN.

Recipes are upstream's (facebookresearch/mae FINETUNE.md, main_finetune.py, main_linprobe.py; arXiv 2111.06377 A.1), on
timm's VisionTransformer, mixup, augmentation, layer-wise rates and LARS, for any norm.
"""

import torch
import torch.nn.functional as F

from .. import distributed
from ..model import compiling
from ..runs import measures
from .task import Task


class Classification(Task):
    """A classifier on the encoder, `network`: timm's VisionTransformer."""

    columns = measures.EVALUATION_COLUMNS

    @torch.inference_mode()
    def validate(self, epoch=None):
        """Cross entropy, top-1 and top-5 in percent over the validation images, each counted once."""
        self.network.eval()
        sums, n = 0.0, 0
        for batch in self.loaders.validation:
            labels = batch["labels"].to(self.device.torch)
            logits = self.logits(self.pixels.normalize(batch["images"])).float()
            best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            measured = (F.cross_entropy(logits, labels, reduction="sum"), best[:, 0].sum(), best.sum())
            sums = sums + torch.stack([value.to(self.device.sum_dtype) for value in measured])
            n += len(labels)
        n = distributed.add(sums.new_tensor(n))
        loss, top1, top5 = (distributed.add(sums) / n).tolist()
        return {"val_loss": loss, "acc1": 100 * top1, "acc5": 100 * top5}

    def logits(self, images, classifier=None):
        """(N, 3, H, W) normalised -> (N, classes). classifier: self.trained in a training step, else as it is."""
        odd = classifier is None and len(images) != self.run.optim.batch_size  # the last batch of a validation
        with compiling.eagerly(self.compiled and odd), self.device.autocast():
            return (classifier or self.network)(images)
