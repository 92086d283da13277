"""From the flags as typed to Settings: what wins, what is worked out, what cannot be used. No torch."""

import math
import os
import re
from pathlib import Path

from .. import distributed
from ..errors import InputError
from . import recipes, start
from .architectures import DECODER_SIZES, MODELS
from .methods import OPTION_FLAGS, norm_name
from .probes import probe_names
from .recipes import FINETUNE, LINPROBE, PRETRAIN, TASKS
from .typed import (
    DataSettings,
    FinetuneSettings,
    ModelSettings,
    NormSettings,
    OptimSettings,
    ProbeSettings,
    SavingSettings,
    Settings,
)

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE = ("auto", "on", "off")
_NETWORK = ("norm", "model", "input_size", *(flag for options in OPTION_FLAGS.values() for flag in options.values()))


def resolve(typed):
    """Settings from the flags that flags.build_parser parsed. Raises InputError.

    What was typed wins, then what the run of --init had, then --demo, then the task's recipe.
    """
    given = {name: value for name, value in vars(typed).items() if value is not None}
    task = given.get("task", PRETRAIN)
    if task not in TASKS:
        raise InputError(f"--task {task}: unknown. Choose from {', '.join(TASKS)}.")
    init, stored = start.opened(given.get("init"), task, _NETWORK)
    model = given.get("model", stored.get("model"))
    recipe = recipes.of(task, model, demo=typed.demo, processes=distributed.size())
    v = {**recipe, **stored, **given}
    _check_source(typed)
    _check(v)
    lr = v["lr"] if v["lr"] is not None else v["blr"] * v["batch_size"] * v["accum_iter"] * distributed.size() / 256
    warmup = v["warmup_epochs"]
    if warmup is None:
        warmup = recipes.warmup_epochs(task, v["model"], v["epochs"])
    name = norm_name(v["norm"])
    images = None if typed.demo or typed.hf_dataset else v["imagenet_dir"]
    regularisation = {field: v[field] for field in FinetuneSettings.__dataclass_fields__}
    folder = ("output_train", name, f"seed{v['seed']}") + (() if task == PRETRAIN else (task,))
    return Settings(
        task=task,
        init=init,
        mae_dir=v["mae_dir"],
        finetune=FinetuneSettings(**regularisation) if task == FINETUNE else None,
        norm=NormSettings(name, {option: v[flag] for option, flag in OPTION_FLAGS.get(name, {}).items()}),
        model=ModelSettings(v["model"], v["input_size"], v["mask_ratio"], v["norm_pix_loss"], v["decoder_type"]),
        data=DataSettings(images, v["max_images"], v["num_workers"], v["hf_dataset"], v["hf_config"], v["cache"]),
        optim=OptimSettings(
            v["epochs"],
            v["batch_size"],
            v["accum_iter"],
            lr,
            v["min_lr"],
            warmup,
            v["weight_decay"],
            distributed.size(),
        ),
        probes=ProbeSettings(v["alpha"], probe_names(v["probes"], v["alpha"]), v["eval_every"]),
        saving=SavingSettings(v["checkpoint_every"], v["checkpoint_minutes"]),
        seed=v["seed"],
        precision=v["precision"],
        compile=v["compile"],
        grad_checkpointing=v["grad_checkpointing"],
        wandb_project=v["wandb_project"]
        or (os.environ.get("WANDB_PROJECT") or recipes.WANDB_PROJECT if v["wandb"] else None),
        output_dir=v["output_dir"] or os.path.join(*folder),
        checkpoint_dir=v["checkpoint_dir"],
        device=v["device"],
        resume=v["resume"],
        overwrite=v["overwrite"],
        dry_run=v["dry_run"],
    )


def _check_source(typed):
    """Raise InputError unless at most one source of images was typed."""
    chosen = ["--demo"] * typed.demo
    chosen += [f"--{name} {getattr(typed, name)}" for name in ("imagenet_dir", "hf_dataset") if getattr(typed, name)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)}: choose one of them.")
    if typed.hf_config and not typed.hf_dataset:
        raise InputError(f"--hf_config {typed.hf_config}: is nothing without --hf_dataset.")


def _check(v):
    """Raise InputError for the first value that cannot be used."""
    norm_name(v["norm"])
    if v["model"] not in MODELS:
        raise InputError(f"--model {v['model']}: unknown. Choose from {', '.join(MODELS)}.")
    decoder = v["decoder_type"]
    if decoder not in (None, "linear") and not re.fullmatch(rf"({'|'.join(DECODER_SIZES)})-[1-9]\d?b", decoder):
        raise InputError(f"--decoder_type {decoder}: unknown. Use linear, or <size>-<blocks>b with "
                         f"size one of {', '.join(DECODER_SIZES)}, such as base-8b.")  # fmt: skip
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", v["device"]):
        raise InputError(f"--device {v['device']}: unknown. Choose from auto, cpu, cuda, cuda:N, mps.")
    if not v["cache"]:
        raise InputError("--cache: is empty. Use auto, off, or a folder.")
    if Path(v["cache"]).is_file():
        raise InputError(f"--cache {v['cache']}: is a file. Use auto, off, or a folder.")
    if v["precision"] not in PRECISIONS:
        raise InputError(f"--precision {v['precision']}: unknown. Choose from {', '.join(PRECISIONS)}.")
    if v["compile"] not in COMPILE:
        raise InputError(f"--compile {v['compile']}: unknown. Choose from {', '.join(COMPILE)}.")

    if not math.isfinite(v["alpha"]):
        raise InputError(f"--alpha {v['alpha']}: must be finite.")
    evaluates = v["task"] == FINETUNE and v["epochs"] == 0  # a classifier as it is
    for name in ("epochs", "batch_size", "accum_iter", "max_images", "eval_every", "input_size", "lr", "blr",
                 "dyt_alpha_init", "layer_decay", "checkpoint_every", "checkpoint_minutes"):  # fmt: skip
        if v[name] is not None and not 0 < v[name] < math.inf and not (name == "epochs" and evaluates):
            raise InputError(f"--{name} {v[name]}: must be positive.")
    for name in ("min_lr", "weight_decay", "num_workers", "warmup_epochs", "adyt_lambda", "seed", "mixup", "cutmix"):
        if v[name] is not None and not 0 <= v[name] < math.inf:
            raise InputError(f"--{name} {v[name]}: must not be negative.")
    if v["seed"] >= 2**63:
        raise InputError(f"--seed {v['seed']}: must be below 2**63.")
    for name in ("drop_path", "smoothing", "reprob"):
        if not 0 <= v[name] < 1:
            raise InputError(f"--{name} {v[name]}: must be in [0, 1).")
    if v["task"] == FINETUNE and (v["mixup"] or v["cutmix"]) and v["batch_size"] % 2:
        raise InputError(f"--batch_size {v['batch_size']}: mixup and cutmix mix pairs of images, so it must be even. "
                         "Or go without: --mixup 0 --cutmix 0.")  # fmt: skip
    if v["task"] == LINPROBE and v["batch_size"] * distributed.size() < 2:
        raise InputError(
            "--batch_size 1: linear probing normalises over the images of a batch, of which it needs 2 or more."
        )
    if v["task"] != PRETRAIN and v["resume"] not in ("auto", "never"):
        raise InputError(f"--resume {v['resume']}: is for pre-training; --task {v['task']} starts from --init.")
    if not 0 <= v["adyt_smooth"] < 1:
        raise InputError(f"--adyt_smooth {v['adyt_smooth']}: must be in [0, 1); 1 would never adapt.")
    low, high = v["adyt_alpha_min"], v["adyt_alpha_max"]
    if not 0 <= low < high < math.inf:
        raise InputError(f"--adyt_alpha_min {low} --adyt_alpha_max {high}: need 0 <= min < max.")
    if v["warmup_epochs"] is not None and v["warmup_epochs"] >= v["epochs"]:
        raise InputError(
            f"--warmup_epochs {v['warmup_epochs']:g}: as long as the run or longer (--epochs {v['epochs']}). "
            "Lower it, or leave it out for the recipe's share of the run."
        )

    if "frozen" in probe_names(v["probes"], v["alpha"]) and v["batch_size"] * v["accum_iter"] < 2:
        raise InputError("--batch_size 1: the frozen probe normalises over the images of a step, of which it needs 2 or "
                         "more. Raise it or --accum_iter, or leave the probe out with --probes.")  # fmt: skip
    patch = MODELS[v["model"]]
    if v["input_size"] % patch:
        lower = max(patch, v["input_size"] // patch * patch)
        raise InputError(f"--input_size {v['input_size']}: not a multiple of the {patch}-pixel patches of "
                         f"{v['model']}. Try {lower} or {lower + patch}.")  # fmt: skip
    if not 0 < v["mask_ratio"] < 1:
        raise InputError(f"--mask_ratio {v['mask_ratio']}: must be between 0 and 1, both excluded.")
    patches = (v["input_size"] // patch) ** 2
    kept = int(patches * (1 - v["mask_ratio"]))
    if kept in (0, patches):
        raise InputError(f"--mask_ratio {v['mask_ratio']}: of {patches} patches {kept} would be visible; "
                         "at least one must be, and at least one hidden.")  # fmt: skip
