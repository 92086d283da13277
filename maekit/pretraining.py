"""Masked autoencoding, with a weighted classification beside it and probes that watch."""

import numpy as np
import torch
from timm.optim import param_groups_weight_decay

from . import checkpoint, data, files, parallel, probes, resident, runs, validation
from .jobs import Job


class Pretraining(Job):
    """reconstruction + alpha x classification by AdamW, scored by reconstruction and by the probes of the settings.

    build: function without arguments that makes the masked autoencoder as it is before training.
    """

    columns = runs.LOG_COLUMNS
    loss_names = ("train_loss", "train_loss_rec", "train_loss_cls")
    keeps_trajectory = True
    compiles = True

    def __init__(self, run, source, build, adapt):
        super().__init__(run, source, adapt, with_labels=bool(run.probes.names))
        self.build = build
        self.resident = resident.place(source.train, self.device.torch)
        self.batches = data.train_batches(
            source.train, run.model, run.optim, seed=run.seed, boxes_only=self.resident is not None, **self.loading
        )
        self.network = self.mae = build().to(self.device.torch)
        joint = self.classes if "joint" in run.probes.names else None
        self.model = probes.JointMAE(self.mae, run.probes.alpha, joint, run.seed)
        self.frozen = None
        if "frozen" in run.probes.names:
            self.frozen = probes.FrozenProbes(self.mae, self.classes, run.seed)
        if run.init is not None:  # after the probes, whose baseline is the untrained encoder
            checkpoint.load_weights(run.init, checkpoint.read(run.init), self.mae)
        groups = param_groups_weight_decay(self.model, run.optim.weight_decay)
        fused = self.device.torch.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95), fused=fused)

    def losses(self, batch, epoch, i):
        images, mask_ratio = self.train_images(batch), self.run.model.mask_ratio
        noise, labels = (batch[name].to(self.device.torch, non_blocking=True) for name in ("noise", "labels"))
        with self.device.autocast():
            out = self.trained(images, mask_ratio, noise, labels)
            if self.frozen:
                self.frozen.observe(self.frozen.features(out.cls_token, images, mask_ratio, noise), labels)
        return [part for part in (out.loss, out.reconstruction, out.classification) if part is not None]

    def after_step(self, at):
        if self.frozen:
            self.frozen.step(at / self.epochs)

    def validate(self, epoch):
        row = validation.validate(
            self.model,
            self.val_batches,
            self.device,
            self.pixels,
            self.run.model.mask_ratio,
            self.frozen,
            self.compiled,
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
        known = data.whole_batches(self.source.train, self.run, self.loading)
        return probes.knn_accuracy(mae, known, self.val_batches, self.classes, self.device, self.pixels)

    def pictures(self, epoch):
        """Every few epochs: image, masked image and reconstruction under each other, for some validation images."""
        every = self.run.probes.eval_every
        if epoch + 1 != self.epochs and (epoch + 1) % every:
            return None
        drawn, _ = validation.reconstruct(
            self.mae,
            self.val_batches.dataset,
            self.device,
            self.pixels,
            self.run.model.mask_ratio,
            n=validation.N_DRAWN,
        )
        return np.concatenate([drawn[name] for name in ("image", "masked", "reconstruction")], axis=1)

    def ending(self, folder):
        """Draw reconstructions; their quality. In the main process alone."""
        if not parallel.is_main():
            return {}
        pictures, quality = validation.reconstruct(
            self.mae, self.val_batches.dataset, self.device, self.pixels, self.run.model.mask_ratio
        )
        files.write_arrays(folder.reconstructions, pictures)
        return quality

    def probe_states(self):
        return checkpoint.probe_states(self.model.head, self.frozen)

    def load_probes(self, path, state):
        checkpoint.load_probes(path, state, self.model.head, self.frozen, self.run.seed)
