"""The defaults of every flag of train.py: of each task, of some models in it, and of --demo. Every default is here and nowhere else.

Pre-training as the original comparison scripts; fine-tuning and linear probing as upstream's FINETUNE.md.
None: worked out in resolution.resolve().
"""

PRETRAIN, FINETUNE, LINPROBE, KNN = TASKS = ("pretrain", "finetune", "linprobe", "knn")
EVALUATIONS = (FINETUNE, LINPROBE, KNN)

WANDB_PROJECT = "mae-norm-comparison"  # the drivers of sweeps have names of their own

DEFAULTS = {
    "task": PRETRAIN,
    "init": None,
    "mae_dir": None,
    "norm": "LayerNorm",
    "dyt_alpha_init": 0.5,
    "adyt_lambda": 0.1,
    "adyt_smooth": 0.9,
    "adyt_alpha_min": 0.1,
    "adyt_alpha_max": 2.0,
    "model": "mae_vit_base_patch16",
    "decoder_type": None,
    "input_size": 224,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "epochs": 100,
    "batch_size": 64,
    "accum_iter": 1,
    "lr": None,
    "blr": 1e-3,
    "min_lr": 0.0,
    "warmup_epochs": None,
    "weight_decay": 0.05,
    "alpha": 0.0,
    "probes": "none",
    "eval_every": 5,
    "layer_decay": 0.65,
    "drop_path": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "reprob": 0.25,
    "aa": "rand-m9-mstd0.5-inc1",
    "imagenet_dir": "ILSVRC",
    "hf_dataset": None,
    "hf_config": None,
    "max_images": None,
    "num_workers": None,
    "cache": "auto",
    "output_dir": None,
    "checkpoint_dir": None,
    "checkpoint_every": 1,
    "checkpoint_minutes": 30.0,
    "seed": 0,
    "device": "auto",
    "precision": "auto",
    "compile": "auto",
    "grad_checkpointing": False,
    "wandb": False,
    "wandb_project": None,
    "resume": "auto",
    "overwrite": False,
    "dry_run": False,
}
# What a task changes. Batches of 1,024 and 16,384 images on one GPU, as FINETUNE.md has them on 32.
OF_TASK = {
    FINETUNE: {"epochs": 100, "batch_size": 128, "accum_iter": 8, "blr": 5e-4, "min_lr": 1e-6},
    LINPROBE: {"epochs": 90, "batch_size": 512, "accum_iter": 32, "blr": 0.1, "weight_decay": 0.0},
}
_LARGE = {"epochs": 50, "blr": 1e-3, "layer_decay": 0.75}
OF_MODEL = {
    (FINETUNE, "large"): {**_LARGE, "drop_path": 0.2},
    (FINETUNE, "huge"): {**_LARGE, "drop_path": 0.3},
    (LINPROBE, "large"): {"epochs": 50},
    (LINPROBE, "huge"): {"epochs": 50},
}
WARMUP_EPOCHS = {PRETRAIN: 10, FINETUNE: 5, LINPROBE: 10, KNN: 0}
# What --demo changes: a model, sizes and rates that teach something on two cores in minutes.
DEMO = {
    "model": "mae_vit_demo_patch8",
    "input_size": 64,
    "epochs": 20,
    "lr": 4e-3,
}
DEMO_OF_TASK = {
    FINETUNE: {"epochs": 5, "batch_size": 32, "accum_iter": 1, "lr": 1e-3},
    LINPROBE: {"epochs": 20, "batch_size": 64, "accum_iter": 1, "lr": 4.0},  # of 1, 4, 10, 30 the least validation loss
}


def of(task, model=None, *, demo=False, processes=1):
    """The defaults of a task for a model, None for the task's own, as a dict by the names of the flags.

    An evaluation in several processes has the images a step of its recipe all the same, accumulated over fewer passes,
    where the number of processes divides them.
    """
    chosen = {**DEFAULTS, **OF_TASK.get(task, {})}
    chosen["accum_iter"] = max(1, chosen["accum_iter"] // processes)
    if demo:
        return {**chosen, **DEMO, **DEMO_OF_TASK.get(task, {})}
    size = next((size for size in ("large", "huge") if size in (model or "")), None)
    return {**chosen, **OF_MODEL.get((task, size), {})}


def warmup_epochs(task, model, epochs):
    """The recipe's warm-up in epochs, as much less as the run is shorter than the recipe."""
    return WARMUP_EPOCHS[task] * min(1, epochs / of(task, model)["epochs"])
