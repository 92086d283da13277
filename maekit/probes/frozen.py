"""The frozen online probe: a classifier beside the training that never touches the encoder."""

import copy
import math
from collections import defaultdict

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .. import distributed
from ..settings.probes import CLS, accuracy_of
from .linear import NORM_MOMENTUM, encoder_width, lars, probe_layers
from .probe import Probe
from .readouts import read

# Of a layer-wise rate: a step moves the weight by lr / 1000 of its norm. On the demo at alpha 0, 1 reaches 51 % and 10 reaches 71 %.
PROBE_LR = 10.0
BIAS_LR = 0.001  # share of that for the bias, which has no trust ratio


class OnlineProbe:
    """A linear classifier trained beside the encoder on detached features, in float32 whatever the run's precision.

    Batch-normalised features (no affine part, as in MAE's linear probing, arXiv 2111.06377 A.1: it makes the probe
    indifferent to their scale, which differs between norms), a linear layer, LARS, half a cosine over the run.
    """

    def __init__(self, width, classes, device, seed):
        self.layers = probe_layers(width, classes, seed).to(device)
        self.optimizer = lars(self.layers[1], lr=PROBE_LR, bias_scale=BIAS_LR)
        self.steps = 0

    def step(self, features, labels, progress):
        """step_all of this one."""
        step_all([self], [features], labels, progress)

    def follow(self, mean, variance):
        """Move the moments that predictions take towards a batch's, (D,), variance unbiased: a plain mean at first."""
        self.steps += 1
        momentum, norm = max(NORM_MOMENTUM, 1 / self.steps), self.layers[0]
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance, momentum)
        norm.num_batches_tracked += 1

    def predict(self, features):
        """predict_all of this one."""
        return predict_all([self], [features])[0]

    def state_dict(self):
        return {"layers": self.layers.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.layers.load_state_dict(state["layers"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


@torch.no_grad()
def step_all(probes, features, labels, progress):
    """One optimizer step of each of K probes on features (N, D) of its own, of any dtype, of which nothing but their values
    is used.

    progress: how much of the run is over, 0 to 1; the rate is half a cosine of it. The gradient of a softmax's cross entropy
    is known, (p - y) x / N, and taken for all at once: autograd would take longer than a small encoder's step.
    """
    layers = [probe.layers[1] for probe in probes]
    with torch.autocast(labels.device.type, enabled=False):
        x = _stacked(features)
        variance, mean = torch.var_mean(x, dim=1, correction=0)
        for probe, *moments in zip(probes, mean, variance * (x.shape[1] / max(1, x.shape[1] - 1))):
            probe.follow(*moments)
        x = (x - mean[:, None]) * (variance[:, None] + probes[0].layers[0].eps).rsqrt()
        error = _scores(layers, x).softmax(dim=2)
        truth = labels[:, None] == torch.arange(error.shape[2], device=labels.device)
        error.sub_(truth.to(error.dtype)).div_(len(labels))
        for layer, *gradients in zip(layers, error.mT @ x, error.sum(dim=1)):
            layer.weight.grad, layer.bias.grad = gradients
    for probe in probes:
        for group in probe.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * PROBE_LR * 0.5 * (1 + math.cos(math.pi * progress))
        probe.optimizer.step()


@torch.no_grad()
def predict_all(probes, features):
    """Class index (N,), of each of K probes, for features (N, D) of its own, of any dtype."""
    norms, layers = zip(*(probe.layers for probe in probes))
    with torch.autocast(features[0].device.type, enabled=False):
        mean, variance = (_stacked([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var"))
        x = (_stacked(features) - mean[:, None]) * (variance[:, None] + norms[0].eps).rsqrt()
        return _scores(layers, x).argmax(dim=2).unbind()


def _stacked(tensors):
    """K of (...) of any dtype -> float32 (K, ...)."""
    return torch.stack([tensor.float() for tensor in tensors])


def _scores(layers, x):
    """(K, N, C): what each of K linear layers makes of its own x (N, D) of (K, N, D)."""
    weight, bias = (_stacked([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return torch.baddbmm(bias[:, None], x, weight.mT)


class FrozenProbes(Probe):
    """For each read-out the online probe of a run's encoder and, as its baseline, one on the same encoder as it was before
    training.

    All see the same images, crops and masks at every step. `observe` each forward pass of the training, `step` with
    each optimizer step, so that gradient accumulation equals a larger batch. `untrained` is the encoder, frozen.
    """

    @classmethod
    def of(cls, task):
        return cls(task.mae, task.classes, task.run.seed, task.run.probes.readouts)

    def __init__(self, mae, classes, seed, readouts=(CLS,)):
        self.accuracies = [accuracy_of("frozen", readout) for readout in readouts]
        self.untrained = copy.deepcopy(mae).requires_grad_(False).eval()
        self.probes = {
            name: OnlineProbe(encoder_width(mae), classes, mae.cls_token.device, seed)
            for accuracy in self.accuracies
            for name in (accuracy.column, accuracy.untrained)
        }
        self.networks = (self.untrained,)
        self.observed = defaultdict(list)
        self.known = (
            WeakIdKeyDictionary()
        )  # by the noise of a validation batch: it as it was, and features of the untrained encoder

    @torch.no_grad()
    def features(self, out, images, mask_ratio, noise):
        """Features by the name of the accuracy."""
        found = {accuracy.column: read(out.tokens, accuracy.readout) for accuracy in self.accuracies}
        return found | self._untrained_features(images, mask_ratio, noise)

    def _untrained_features(self, images, mask_ratio, noise):
        """Those of the untrained encoder; of a validation batch that stays in a CPU's memory, once."""
        before, features = self.known.get(noise, (None, None))
        if before is not None and torch.equal(before, noise):
            return features
        tokens = self.untrained.forward_encoder(images, mask_ratio, noise)[0]
        features = {accuracy.untrained: read(tokens, accuracy.readout) for accuracy in self.accuracies}
        if torch.is_inference_mode_enabled() and not noise.is_cuda:
            self.known[noise] = noise.clone(), features
        return features

    def observe(self, features, labels):
        """Keep the features of a forward pass, of all processes, for the next step."""
        for name in self.probes:
            self.observed[name].append(
                distributed.gather(features[name].clone())
            )  # the next pass of a CUDA graph is over it
        self.observed["labels"].append(distributed.gather(labels))

    def step(self, progress):
        """Train all probes on what was observed since the last step; progress of the run is 0 to 1."""
        seen = {name: torch.cat(parts) for name, parts in self.observed.items()}
        step_all(list(self.probes.values()), [seen[name] for name in self.probes], seen["labels"], progress)
        self.observed.clear()

    def predict(self, out, features):
        """{accuracy: class index (N,)} for what `features` returned."""
        return dict(zip(self.probes, predict_all(self.probes.values(), [features[name] for name in self.probes])))

    def state_dict(self):
        return {name: probe.state_dict() for name, probe in self.probes.items()}

    def load_state_dict(self, state, same_seed=True):
        for name in (name for name in state if name in self.probes):  # one of a read-out that only we have starts here
            if same_seed or not name.startswith("untrained"):
                self.probes[name].load_state_dict(state[name])
