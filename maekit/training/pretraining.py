"""Masked autoencoding, with a weighted classification beside it and probes that watch."""

from functools import partial

import numpy as np
import torch
from timm.optim import param_groups_weight_decay

from .. import distributed, files
from ..data import loader, resident
from ..model import compiling
from ..probes import knn
from ..probes.frozen import FrozenProbes
from ..probes.joint import JointMAE
from ..runs import measures
from . import checkpoint, validation
from .trainer import Job


class Pretraining(Job):
    """reconstruction + alpha x classification by AdamW, scored by reconstruction and by the probes of the settings.

    build: function without arguments that makes the masked autoencoder as it is before training.
    """

    columns = measures.LOG_COLUMNS
    loss_names = ("train_loss", "train_loss_rec", "train_loss_cls")
    keeps_trajectory = True
    compiles = True

    def __init__(self, run, source, build, adapt):
        super().__init__(run, source, adapt, with_labels=bool(run.probes.names))
        self.build = build
        self.resident = resident.place(source.train, self.device.torch)
        self.batches = loader.train_batches(
            source.train, run.model, run.optim, seed=run.seed, boxes_only=self.resident is not None, **self.loading
        )
        self.network = self.mae = build().to(self.device.torch)
        joint = self.classes if "joint" in run.probes.names else None
        self.model = JointMAE(self.mae, run.probes.alpha, joint, run.seed)
        self.frozen = None
        if "frozen" in run.probes.names:
            self.frozen = FrozenProbes(self.mae, self.classes, run.seed)
        if run.init is not None:  # after the probes, whose baseline is the untrained encoder
            checkpoint.load_weights(run.init, checkpoint.read(run.init), self.mae, run.norm.name)
        self.captured, self.to_capture = None, False  # the CUDA graph of a step; whether there is to be one
        self.captured_validation = None
        self.known = None  # training images as k-NN takes them
        groups = param_groups_weight_decay(self.model, run.optim.weight_decay)
        fused = self.device.torch.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95), fused=fused)

    def prepare(self):
        super().prepare()
        if self.compiled and self.frozen:
            compiling.compile_blocks(self.frozen.untrained, suppress_errors=self.run.compile == "auto")
        self.to_capture = self.epochs > 0 and compiling.captures(self.run, self.device, self.steps)

    def gradients(self, batch, epoch, i):
        noise, labels = (batch[name].to(self.device.torch, non_blocking=True) for name in ("noise", "labels"))
        inputs = self.crops(batch), noise, labels
        if self.to_capture:
            self.to_capture = False
            self.captured = self.capture(self.forward_backward, inputs, self.model.parameters())
        losses, features = (self.captured or self.forward_backward)(*inputs)
        if self.frozen:
            self.frozen.observe(features, labels)
        return losses

    def forward_backward(self, images, noise, labels):
        """Losses of uint8 images and, for the frozen probes, features; the gradients are added to the parameters'."""
        images, mask_ratio = self.pixels.normalize(images), self.run.model.mask_ratio
        with self.device.autocast():
            out = self.trained(images, mask_ratio, noise, labels)
            features = self.frozen.features(out.cls_token, images, mask_ratio, noise) if self.frozen else {}
        self.backward(out.loss)
        losses = [part for part in (out.loss, out.reconstruction, out.classification) if part is not None]
        return [loss.detach() for loss in losses], features

    def capture(self, function, inputs, parameters=()):
        """compiling.Captured of a function; where that cannot be, and nobody insisted, None, which is said."""
        try:
            return compiling.Captured(function, inputs, parameters)
        except RuntimeError as error:
            if self.run.compile == "on" or "out of memory" in str(error):
                raise
            distributed.say(f"--compile auto: goes on without a CUDA graph ({str(error).splitlines()[0]}).")
            self.optimizer.zero_grad(set_to_none=True)
            return None

    def capture_validation(self, measure, inputs):
        """The CUDA graph of a batch of validation images, made at the first; `measure` itself where it cannot be."""
        if self.captured_validation is None:
            self.captured_validation = self.capture(measure, inputs) or measure
        return self.captured_validation

    def after_step(self, at):
        if self.frozen:
            self.frozen.step(at / self.epochs)

    def validate(self, epoch):
        device, mask_ratio = self.device, self.run.model.mask_ratio
        measure = partial(validation.measured, self.model, self.frozen, device, self.pixels, mask_ratio)
        row = validation.validate(
            self.model,
            self.val_batches,
            device,
            measure,
            self.compiled,
            self.capture_validation if self.captured else None,
        )
        every = self.run.probes.eval_every
        if "knn" in self.run.probes.names and (epoch + 1 == self.epochs or (epoch + 1) % every == 0):
            row["knn_accuracy"] = self.knn_accuracy(self.mae)
        return row

    def baselines(self):
        """What takes no training: losses of trivial predictions, and k-NN on the untrained encoder."""
        known = validation.baselines(self.val_batches, self.pixels, self.mae, self.run.model.mask_ratio)
        if "knn" in self.run.probes.names:
            known["untrained_knn_accuracy"] = self.knn_accuracy(self.build().to(self.device.torch))
        return known

    def knn_accuracy(self, mae):
        """Percent of the validation images that k-NN among the training images gets right."""
        if self.known is None:
            whole = loader.whole_batches(self.source.train, self.run, self.loading)
            self.known = resident.keep(whole, self.device.torch, self.resident)
        with compiling.eagerly(self.compiled):
            return knn.knn_accuracy(mae, self.known, self.val_batches, self.classes, self.device, self.pixels)

    def pictures(self, epoch):
        """Every few epochs: image, masked image and reconstruction under each other, for some validation images."""
        every = self.run.probes.eval_every
        if epoch + 1 != self.epochs and (epoch + 1) % every:
            return None
        drawn, _ = self.reconstruct(n=validation.N_DRAWN, measured=False)
        return np.concatenate([drawn[name] for name in ("image", "masked", "reconstruction")], axis=1)

    def ending(self, folder):
        """Draw reconstructions; their quality. In the main process alone."""
        if not distributed.is_main():
            return {}
        pictures, quality = self.reconstruct()
        files.write_arrays(folder.reconstructions, pictures)
        return quality

    def reconstruct(self, **how):
        dataset, mask_ratio = self.val_batches.dataset, self.run.model.mask_ratio
        with compiling.eagerly(self.compiled):
            return validation.reconstruct(self.mae, dataset, self.device, self.pixels, mask_ratio, **how)

    def probe_states(self):
        return checkpoint.probe_states(self.model.head, self.frozen)

    def load_probes(self, path, state):
        checkpoint.load_probes(path, state, self.model.head, self.frozen, self.run.seed)
