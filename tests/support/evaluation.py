"""Evaluations: their flags, their jobs before the first step, what they leave."""

import train as train_module
from maekit.data import sources
from maekit.training.trainer import Trainer
from tests.support.commands import resolved

MODEL = ("--model", "enc96d4h3p8", "--decoder_type", "dec64d2h2")
QUICK = ("--demo", *MODEL, "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
FINETUNE, LINPROBE, KNN = (("--task", task) for task in ("finetune", "linprobe", "knn"))
OPTIONS = {"AdaptiveDynamicTanh": ("--adyt_lambda", "0.3"), "DynamicTanh": ("--dyt_alpha_init", "0.7")}
CLASSES, DEPTH, WIDTH = 10, 4, 96  # of the demo and the encoder of MODEL


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


def encoder(weights, without=()):
    """The encoder's part of a state dict, by the names of the paper's parts rather than by what is left out."""
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    return {k: v for k, v in weights.items() if k.startswith(parts) and not k.startswith(tuple(without))}
