"""Evaluations: their flags, their jobs before the first step, what they leave."""

import train as train_module
from maekit.data import sources
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.training.trainer import Trainer
from tests.support import train_here

QUICK = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
FINETUNE, LINPROBE, KNN = (("--task", task) for task in ("finetune", "linprobe", "knn"))
OPTIONS = {"AdaptiveDynamicTanh": ("--adyt_lambda", "0.3"), "DynamicTanh": ("--dyt_alpha_init", "0.7")}
CLASSES, DEPTH, WIDTH = 10, 4, 96  # of the demo and its encoder


def resolved(*flags):
    """The settings of a command."""
    return resolve(build_parser("train.py", "").parse_args([str(flag) for flag in flags]))


def open_job(*flags):
    """The job of a command, before its first step."""
    run = resolved(*flags)
    return train_module.open_task(run, sources.open_source(run.data, run.seed))


def train_epoch(job, epoch=0):
    """One epoch of a job: its log row without the clock; the weights are in job.network."""
    return Trainer(job).train_epoch(epoch)


def first_batch(job):
    job.batches.order.set_epoch(0)
    return next(iter(job.batches))


def complaint(*flags):
    """The one line that a command with bad input prints."""
    result = train_here(*flags, check=2)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def encoder(weights, without=()):
    """The encoder's part of a state dict, by the names of the paper's parts rather than by what is left out."""
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    return {k: v for k, v in weights.items() if k.startswith(parts) and not k.startswith(tuple(without))}
