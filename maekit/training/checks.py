"""Whether a run's settings, images and folder go together, before anything is computed. No torch."""

import os
from dataclasses import replace
from pathlib import Path

from .. import distributed, files
from ..errors import InputError
from ..settings import identities
from ..settings.probes import PROBES
from ..settings.tasks import KNN, PRETRAIN


def check_images(run, source):
    """Raise InputError unless a Source has images and labels enough for a run's Settings."""
    _check_batches(run, source)
    _check_labels(run, source)
    if distributed.size() > len(source.val):
        more = ", or --max_val_images all" if source.val_images else ""
        raise InputError(
            f"{distributed.size()} processes: there are {len(source.val)} validation images. Use fewer processes{more}."
        )


def _check_batches(run, source):
    n, optim = len(source.train), run.optim
    if run.task == KNN or optim.epochs == 0:
        return
    if optim.batch_size > n:
        raise InputError(f"--batch_size {optim.batch_size}: the data set has {n} training images. Use at most {n}.")
    if optim.effective_batch > n:
        raise InputError(
            f"--accum_iter {optim.accum_iter}: {optim.effective_batch} images a step, the data set has {n}. "
            f"Use at most {n // optim.batch_size}."
        )


def _check_labels(run, source):
    """Alpha, the probes and the evaluations need labels of two classes or more."""
    if run.probes.label_map:
        known = run.probes.label_map.of(source.classes)
        if source.train.labels is not None and not any(
            known[label] >= 0 for label in set(source.train.labels.tolist())
        ):
            raise InputError(
                f"--label_map {run.probes.label_map.typed}: no training image has a label by it. "
                "Give labels to classes that have images."
            )
        if source.val.labels is not None and not any(known[label] >= 0 for label in set(source.val.labels.tolist())):
            way = "Add --max_val_images all." if source.val_images else "Give labels to classes that have images there."
            raise InputError(f"--label_map {run.probes.label_map.typed}: no validation image has a label by it. {way}")
    wanted = _needs_labels(run)
    if wanted is None:
        return
    without = "" if run.task != PRETRAIN else " Or train without: --alpha 0 --probes none."
    if source.val.labels is None:
        raise InputError(
            f"{wanted}: the validation images in {source.val.root} have no labels. ILSVRC has them in "
            f"LOC_val_solution.csv beside Data, see docs/data.md.{without}"
        )
    if len(source.classes) < 2:
        raise InputError(
            f"{wanted}: the data set has {len(source.classes)} class, classification needs 2 or more. "
            f"Use other data.{without}"
        )


def _needs_labels(run):
    """The flag that needs them, None if none does."""
    if run.task != PRETRAIN:
        return f"--task {run.task}"
    if run.probes.alpha:
        return f"--alpha {run.probes.alpha:g}"
    names = [name for name in run.probes.names if PROBES[name].column]
    return f"--probes {' '.join(names)}" if names else None


def agree_with_folder(run, folder):
    """The settings, once --init, --resume and --overwrite agree with what is in the run's folder. Raises InputError."""
    if os.path.abspath(run.resume) == os.path.abspath(folder.checkpoint):
        if run.overwrite:
            raise InputError(f"--resume {run.resume}: --overwrite would delete it first. Copy it out of the folder.")
        run = replace(run, resume="auto")
    if run.init and Path(run.init).resolve() == folder.checkpoint.resolve():
        raise InputError(f"--init {run.init}: is the run in --output_dir itself. Choose another --output_dir.")
    if run.resume == "never" and not run.overwrite and folder.checkpoint.exists():
        raise InputError(f"--resume never: {folder.path} holds a run. Choose another --output_dir, or --overwrite.")
    stored = None if run.overwrite else folder.identity()
    return run if stored is None else identities.as_begun(run, stored)


def identity(run, source, clone):
    """Everything that decides a run's numbers, as a flat dict. source: Source; clone: upstream.Clone or None."""
    own = run.identity()
    if source.val_images is None and "max_val_images" in own:  # there are no more
        own["max_val_images"] = None
    return {
        **own,
        "init": None if run.init is None else f"sha256:{files.sha256(run.init)[:16]}",
        "mae_dir": None if clone is None else f"upstream at {clone.commit[:12]}",
        "data": source.fingerprint,
    }


def size(run, source):
    """A line on how many images and steps a run has, and what the data set has besides."""
    steps = len(source.train) // run.optim.effective_batch
    epochs = "an epoch" if run.optim.steps is None else f"in each of {run.optim.epochs} epochs"
    left_out = f" Left out {'; '.join(source.left_out)}." if source.left_out else ""
    of = f" of {source.val_images} (all with --max_val_images all)" if source.val_images else ""
    return (
        f"{len(source.train)} training images of {len(source.classes)} classes, {len(source.val)}{of} for validation; "
        f"{steps} steps of {run.optim.effective_batch} images {epochs}.{left_out}"
    )
