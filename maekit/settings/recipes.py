"""The defaults of a run: of its task, of some models in it, and of --demo. The values are in the table of flags.

Pre-training as the original comparison scripts; fine-tuning and linear probing as upstream's FINETUNE.md, with batches of
1,024 and 16,384 images on one GPU, as it has them on 32.
"""

from .flags import DEFAULTS, FLAGS
from .tasks import FINETUNE, KNN, LINPROBE, PRETRAIN

WANDB_PROJECT = "mae-norm-comparison"  # the drivers of sweeps have names of their own

_LARGE = {"epochs": 50, "blr": 1e-3, "layer_decay": 0.75}
OF_MODEL = {
    (FINETUNE, "large"): {**_LARGE, "drop_path": 0.2},
    (FINETUNE, "huge"): {**_LARGE, "drop_path": 0.3},
    (LINPROBE, "large"): {"epochs": 50},
    (LINPROBE, "huge"): {"epochs": 50},
}
WARMUP_EPOCHS = {PRETRAIN: 10, FINETUNE: 5, LINPROBE: 10, KNN: 0}
DEMO_MIN_LR = 0.25  # of the peak rate
DEMO = {name: flag.demo for name, flag in FLAGS.items() if flag.demo is not None}


def of(task, model=None, *, demo=False, processes=1):
    """The defaults of a task for a model, None for the task's own, as a dict by the names of the flags.

    An evaluation in several processes has the images a step of its recipe all the same, accumulated over fewer passes,
    where the number of processes divides them.
    """
    chosen = {**DEFAULTS, **{name: flag.tasks[task] for name, flag in FLAGS.items() if task in flag.tasks}}
    chosen["accum_iter"] = max(1, chosen["accum_iter"] // processes)
    if demo:
        of_task = {name: flag.demo_tasks[task] for name, flag in FLAGS.items() if task in flag.demo_tasks}
        return {**chosen, **DEMO, **of_task}
    size = next((size for size in ("large", "huge") if size in (model or "")), None)
    return {**chosen, **OF_MODEL.get((task, size), {})}


def min_lr(task, lr, *, demo):
    """The rate at the end of the half-cosine where the recipe has none of its own."""
    return DEMO_MIN_LR * lr if demo and task == PRETRAIN else 0.0


def warmup_epochs(task, model, epochs):
    """The recipe's warm-up in epochs, as much less as the run is shorter than the recipe."""
    return WARMUP_EPOCHS[task] * min(1, epochs / of(task, model)["epochs"])


def warmup_of_steps(task, model, epochs):
    """The warm-up of a run whose length was given in steps, in epochs: the recipe's share of it, however many epochs."""
    return WARMUP_EPOCHS[task] * (epochs / of(task, model)["epochs"])
