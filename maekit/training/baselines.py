"""Baselines, which take no training: measured by the first of all runs that have the same, and kept beside the cache.

Those of a sweep's alphas and learning rates are the same: they depend on images, masks, seed, model and norm alone.
"""

import hashlib
import json
from dataclasses import asdict

import torch

from .. import distributed, files
from ..data.cache import CachedImages
from ..errors import InputError
from ..model.mae import MaskedAutoencoder
from ..probes.probe import Probe
from ..runs.versions import package_versions


def shared(task, measure):
    """{name: number} of a Pretraining's baselines, None where one is nothing to it: as another run has measured them to
    the last bit, else measured. measure: function without arguments. Called by all processes."""
    file, of = distributed.on_main(lambda: _place(task))
    known = distributed.on_main(lambda: _read(file, of))
    if known is None:
        known = measure()
        if file is not None and distributed.is_main():
            _write(file, of, known)
    return known


def _place(task):
    """The file of a task's baselines and what they depend on; (None, None) where they cannot be shared."""
    images = task.source.train, task.source.val
    if not all(isinstance(each, CachedImages) for each in images) or not isinstance(task.mae, MaskedAutoencoder):
        return None, None
    run, device = task.run, task.device
    of = {
        "images": [each.store.path.name for each in images],  # named after what the files are
        "labels": [_digest(b"" if each.labels is None else each.labels.tobytes()) for each in images],
        "probes": [name for name, probe in task.probes.items() if type(probe).baseline is not Probe.baseline],
        "readouts": list(run.probes.readouts),
        "seed": run.seed,
        "model": asdict(run.model),
        "crop": run.data.crop,
        "norm": asdict(run.norm),
        "batch_size": run.optim.batch_size,
        "processes": distributed.size(),
        "device": [device.torch.type, device.describe(), device.precision],
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "code": _digest(*(path.read_bytes() for path in _code())),
    }
    name = f"baselines-{_digest(json.dumps(of, sort_keys=True).encode())}.json"
    return images[0].store.path.with_name(name), of


def _code():
    """All Python files that may have a part in a baseline, in a fixed order; a change of any is another baseline."""
    return [files.KIT / "norms.py", *sorted((files.KIT / "maekit").rglob("*.py"))]


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _read(file, of):
    """What another run has left; None if there is nothing, or nothing that can be used."""
    if file is None:
        return None
    try:
        kept = files.read_json(file)
    except (OSError, InputError):
        return None
    return kept.get("baselines") if isinstance(kept, dict) and kept.get("of") == of else None


def _write(file, of, known):
    try:
        files.write_json(file, {"of": of, "baselines": known})
    except OSError:
        pass  # a cache that others made, or a full disk: the next run measures them anew
