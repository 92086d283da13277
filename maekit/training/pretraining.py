"""Masked autoencoding, with a weighted classification beside it and probes that watch."""

import copy
import math
from functools import partial

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import distributed, files
from ..errors import InputError
from ..model import compiling
from ..model.formats import encoder_weights
from ..probes.accuracy import ByClass
from ..probes.joint import JointMAE
from ..probes.knn import by_output, features_of
from ..probes.probe import open_probes
from ..runs import measures
from ..settings.probes import READOUTS
from . import baselines, checkpoint, failures, validation
from .task import Task


class Pretraining(Task):
    """reconstruction + alpha x classification by AdamW, scored by reconstruction and by the probes of the settings.

    build: function without arguments that makes the masked autoencoder as it is before training.
    """

    columns = measures.LOG_COLUMNS
    loss_names = ("train_loss", "train_loss_rec", "train_loss_cls")
    keeps_trajectory = True
    compiles = True

    def __init__(self, run, source, build, norms):
        super().__init__(run, source, norms, with_labels=bool(run.probes.names))
        self.build = build
        self.batches = self.loaders.training()
        self.network = self.mae = build().to(self.device.torch)
        joint = self.classes if "joint" in run.probes.names else None
        self.label_of = run.probes.label_map.of(source.classes) if run.probes.label_map and self.classes else None
        labels = {} if joint is None or self.label_of is None else self._labels()
        self.model = JointMAE(self.mae, run.probes.alpha, joint, run.seed, run.probes.joint_readout, **labels)
        self.by_class = None  # accuracy.ByClass of the last validation
        self.probes = open_probes(run.probes.names, self)
        if run.init is not None:  # after the probes, whose baseline is the untrained encoder
            load = checkpoint.load_encoder if run.freeze else checkpoint.load_weights
            load(run.init, checkpoint.read_weights(run.init), self.mae, norm=run.norm.name)
        # begins with the weights that training begins with; torch's AveragedModel would have each step wait for a GPU
        self.averaged = None if run.optim.ema is None else copy.deepcopy(self.mae).requires_grad_(False)
        if run.freeze:
            encoder = encoder_weights(dict(self.mae.named_parameters()))
            for parameter in encoder.values():
                parameter.requires_grad_(False)
            self.keeps_trajectory = False  # it is no point of the gap
        self.captured, self.to_capture = None, False  # the CUDA graph of a step; whether there is to be one
        self.found = None  # what `validation_features` found since the last step
        self.captured_validation, self.whole = None, None  # that of a batch of validation images; how large these are
        self.scoring = False  # whether probes score after this validation
        groups = param_groups_weight_decay(self.model, run.optim.weight_decay)
        fused = self.device.torch.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=run.optim.lr, betas=(0.9, 0.95), fused=fused)

    def _labels(self):
        """What JointMAE takes of --label_map."""
        known = np.array(self.label_of)[self.source.train.labels] >= 0
        return {"label_of": self.label_of, "labelled": float(known.mean())}

    def prepare(self):
        super().prepare()
        if self.compiled:
            for network in (network for probe in self.probes.values() for network in probe.networks):
                compiling.compile_blocks(network, suppress_errors=self.run.compile == "auto")
        self.to_capture = self.epochs > 0 and compiling.captures(self.run, self.device, self.steps)

    def gradients(self, batch, epoch, i):
        inputs, self.found = (batch["images"], batch["noise"], batch["labels"]), None
        if self.to_capture:
            self.to_capture = False
            self.captured = self.capture(self.forward_backward, inputs, self.model.parameters())
        losses, features = (self.captured or self.forward_backward)(*inputs)
        for probe in self.probes.values():
            probe.observe(features, batch["labels"])
        return losses

    def forward_backward(self, images, noise, labels):
        """Losses of uint8 images and the probes' features of them; the gradients are added to the parameters'."""
        images, mask_ratio = self.pixels.normalize(images), self.run.model.mask_ratio
        with self.device.autocast():
            out = self.trained(images, mask_ratio, noise, labels)
            features = validation.features_for(self.probes, out, images, mask_ratio, noise)
        self.backward(out.loss)
        losses = [part for part in (out.loss, out.reconstruction, out.classification) if part is not None]
        return [loss.detach() for loss in losses], features

    def capture(self, function, inputs, parameters=()):
        """compiling.Captured of a function; where that cannot be, and nobody insisted, None, which is said."""
        try:
            return compiling.Captured(function, inputs, parameters)
        except RuntimeError as error:
            if failures.is_out_of_memory(error):
                raise
            without = f"without a CUDA graph ({compiling.first_line(error)})."
            if self.run.compile == "on":
                raise InputError(f"--compile on: cannot go on {without} Use auto, which can.") from error
            distributed.say(f"--compile auto: goes on {without}")
            self.optimizer.zero_grad(set_to_none=True)
            return None

    def after_step(self, at):
        if self.averaged is not None:
            self.average()
        for probe in self.probes.values():
            probe.step(at / self.epochs)

    def validate(self, epoch):
        self.model.eval()
        self.whole, self.by_class, self.scoring = None, ByClass(self.classes), self.scores(epoch)
        for probe in self.probes.values() if self.measures_means else ():
            probe.prepare()
        means, row = validation.validate(self.loaders.validation, self.measure, self.device, self.by_class)
        self.flat = self.flat_norms() if self.scoring and distributed.is_main() else {}
        if self.averaged is not None:
            self.averaged.eval()
            average, _ = validation.validate(self.loaders.validation, self.measure_average, self.device)
            row["ema_val_mse"] = average["val_mse"]
        if self.scoring and math.isfinite(means["val_mse"]):  # else the run has diverged, and features are no numbers
            for probe in self.probes.values():
                row |= probe.score(means)
        return {"val_mse": means["val_mse"], **row}

    @property
    def measures_means(self):
        """Whether this validation takes the probes' means; a CUDA graph, which is one for all epochs, always does."""
        return self.scoring or self.captured is not None

    def scores(self, epoch):
        """Whether probes score after an epoch: every few, and after the last."""
        return epoch + 1 == self.epochs or (epoch + 1) % self.run.probes.eval_every == 0

    def flat_norms(self):
        """validation.flat_shares of the run's norm layers."""
        how = self.pixels, self.run.model.mask_ratio, self.norm_layers()
        with compiling.eagerly(self.compiled):
            return validation.flat_shares(self.mae, self.loaders.validation.dataset, self.device, *how)

    def validation_features(self, mae):
        """{read-out: features (N, D)} of this process's validation images, whole, and their classes (N,).

        Of the run's own encoder they are computed once between two steps, whoever asks.
        """
        if mae is self.mae and self.found is not None:
            return self.found
        mae.eval()
        with compiling.eagerly(self.compiled):
            known = features_of(mae, self.loaders.validation, self.device, self.pixels, by_output(READOUTS))
        self.found = known if mae is self.mae else self.found
        return known

    def measure(self, images, noise, labels):
        """validation.measured of a batch: by the CUDA graph if there is one; not compiled if it is not as large as the first."""
        of = self.model, self.probes, self.device, self.pixels, self.run.model.mask_ratio
        measured = partial(validation.measured, *of, scoring=self.measures_means)
        self.whole = self.whole or len(images)
        if len(images) != self.whole:
            with compiling.eagerly(self.compiled):
                return measured(images, noise, labels)
        if self.captured and self.captured_validation is None:
            self.captured_validation = self.capture(measured, (images, noise, labels)) or measured
        return (self.captured_validation or measured)(images, noise, labels)

    @torch.no_grad()
    def average(self):
        """Move the averaged weights towards those of now; buffers are those of now."""
        update = get_ema_multi_avg_fn(self.run.optim.ema)
        update(list(self.averaged.parameters()), list(self.mae.parameters()), None)
        for kept, now in zip(self.averaged.buffers(), self.mae.buffers()):
            kept.copy_(now)

    def measure_average(self, images, noise, labels):
        """As `measure`, the loss of the averaged weights alone."""
        with self.device.autocast():
            loss, _, _ = self.averaged(self.pixels.normalize(images), self.run.model.mask_ratio, noise)
        return {"val_mse": loss}, {}

    def state(self, **extra):
        averaged = {} if self.averaged is None else {"ema": self.averaged.state_dict()}
        return super().state(**averaged, **extra)

    def load_more(self, path, state):
        if self.averaged is not None:
            checkpoint.load_average(path, state, self.averaged, self.mae)

    def baselines(self):
        """What takes no training: losses of trivial predictions, and the probes' of the untrained encoder."""
        return baselines.shared(self, self.measure_baselines)

    def measure_baselines(self):
        """As `baselines`, by this run itself."""
        known = validation.baselines(self.loaders.validation, self.pixels, self.mae, self.run.model.mask_ratio)
        for probe in self.probes.values():
            known |= probe.baseline()
        return known

    def pictures(self, epoch):
        """Every few epochs: image, masked image and reconstruction under each other, for some validation images."""
        if not self.scores(epoch):
            return None
        drawn, _ = self.reconstruct(n=validation.N_DRAWN, measured=False)
        return np.concatenate([drawn[name] for name in ("image", "masked", "reconstruction")], axis=1)

    def ending(self, folder):
        """Draw reconstructions; their quality, in the main process alone. What the probes leave."""
        if self.probes and self.by_class is None:  # nothing was left to train
            self.validate(self.epochs - 1)
        for probe in self.probes.values():
            probe.ending(folder)
        self.write_by_class(folder)
        if not distributed.is_main():
            return {}
        pictures, quality = self.reconstruct()
        with compiling.eagerly(self.compiled):
            maps = validation.maps_of(self.mae, pictures["image"], self.device, self.pixels)
        files.write_arrays(folder.reconstructions, pictures | maps)
        return quality

    def write_by_class(self, folder):
        """Accuracies of the last validation class by class: class, label (empty for none), images, and their columns."""
        if not distributed.is_main() or not self.by_class or not self.by_class.percent:
            return
        label_of, names = self.label_of or range(self.classes), self.source.classes
        rows = [
            {"class": name, "label": label if label >= 0 else None, "images": n}
            | {column: values[i] for column, values in self.by_class.percent.items()}
            for i, (name, label, n) in enumerate(zip(names, label_of, self.by_class.images))
        ]
        files.write_csv(folder.by_class, list(rows[0]), rows)

    def reconstruct(self, **how):
        """validation.reconstruct of the run's validation images."""
        dataset, mask_ratio = self.loaders.validation.dataset, self.run.model.mask_ratio
        with compiling.eagerly(self.compiled):
            return validation.reconstruct(self.mae, dataset, self.device, self.pixels, mask_ratio, **how)
