"""From the flags as typed to Settings: what wins, what is worked out, what cannot be used. No torch."""

import math
import os
from dataclasses import replace

from .. import distributed
from ..errors import InputError
from . import label_map, recipes, start
from .architectures import architecture, visible_patches
from .data_flags import ALL
from .flags import FLAGS, TRAININGS
from .methods import OPTIONS, norm_name, options_of
from .probes import evaluation_name, probe_names, readout_names
from .tasks import DECODER, FINETUNE, LINPROBE, PRETRAIN
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

_NETWORK = ("norm", "model", "input_size", "pos_embed", "crop", *OPTIONS)
_AUTOENCODER = (
    *_NETWORK,
    "decoder_type",
    "mask_ratio",
    "norm_pix_loss",
)  # what a new decoder has in common with the old
SMALL = 32  # side up to which images are not enlarged by default, --crop auto
_DATA = [field for field in DataSettings.__dataclass_fields__ if field in FLAGS]
_MODEL = [field for field in ModelSettings.__dataclass_fields__ if field != "name"]


def resolve(typed):
    """Settings from the flags that parser.build_parser parsed. Raises InputError.

    What was typed wins, then what the run of --init had, then --demo, then the task's recipe.
    """
    given = {name: value for name, value in vars(typed).items() if value is not None}
    task = given.get("task", PRETRAIN)
    _check_legal("task", task)
    own = task == PRETRAIN and not given.get("freeze")
    init, stored = start.opened(given.get("init"), task, () if own else _NETWORK if task != PRETRAIN else _AUTOENCODER)
    model = given.get("model", stored.get("model"))
    recipe = recipes.of(task, model, demo=typed.demo, processes=distributed.size())
    v = {**recipe, **stored, **given}
    _check_source(typed)
    if "steps" in given and "epochs" in given:
        raise InputError(f"--epochs {given['epochs']} and --steps {given['steps']}: choose one of them.")
    _check(v)
    name, probes = norm_name(v["norm"]), _probes(v)
    images = None if typed.demo or typed.hf_dataset else v["imagenet_dir"]
    own = {"imagenet_dir": images, "crop": _crop(v), "max_val_images": _validated(v)}
    left = {
        "crop": v["crop"] == "auto",
        "probes": v["probes"] == "all",
        "readout": "readout" not in given,
        "max_val_images": "max_val_images" not in given,
    }
    regularisation = {field: v[field] for field in FinetuneSettings.__dataclass_fields__}
    folder = ("output_train", name, f"seed{v['seed']}", *_part(task, v["freeze"], probes.readouts))
    return Settings(
        task=task,
        init=init,
        freeze=v["freeze"],
        mae_dir=v["mae_dir"],
        finetune=FinetuneSettings(**regularisation) if task == FINETUNE else None,
        norm=NormSettings(name, {o.argument: o.default if v[o.flag] is None else v[o.flag] for o in options_of(name)}),
        model=ModelSettings(**{"name": v["model"], **{field: v[field] for field in _MODEL}}),
        data=DataSettings(**{**{field: v[field] for field in _DATA}, **own}),
        optim=_optim(v, typed.demo),
        probes=probes,
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
        resume=start.resumed(v["resume"]),
        overwrite=v["overwrite"],
        dry_run=v["dry_run"],
        left=tuple(name for name, so in left.items() if so),
    )


def _optim(v, demo):
    task, processes, steps = v["task"], distributed.size(), v["steps"] if v["task"] in TRAININGS else None
    lr = v["lr"] if v["lr"] is not None else v["blr"] * v["batch_size"] * v["accum_iter"] * processes / 256
    warmup = v["warmup_epochs"]
    if warmup is None and steps is None:
        warmup = recipes.warmup_epochs(task, v["model"], v["epochs"])
    return OptimSettings(
        v["epochs"] if steps is None else None,
        v["batch_size"],
        v["accum_iter"],
        lr,
        recipes.min_lr(task, lr, demo=demo) if v["min_lr"] is None else v["min_lr"],
        warmup,
        v["weight_decay"],
        processes,
        v["clip_grad"],
        v["ema"] if task == PRETRAIN else None,
        steps,
    )


def counted(run, images):
    """Settings whose --steps are epochs, of so many training images. Raises InputError if they are less than one, or no longer
    than the warm-up."""
    optim = run.optim
    if optim.steps is None:
        return run
    epoch = images // optim.effective_batch
    if optim.steps < epoch:
        raise InputError(
            f"--steps {optim.steps}: an epoch of the {images} images has {epoch} steps. Use at least as many, or fewer images "
            "with --max_images."
        )
    epochs, warmup = round(optim.steps / epoch), optim.warmup_epochs
    if warmup is None:
        warmup = recipes.warmup_of_steps(run.task, run.model.name, epochs)
    optim = replace(optim, epochs=epochs, warmup_epochs=warmup)
    _check_warmup(warmup, epochs, optim.length)
    return replace(run, optim=optim)


def _validated(v):
    """The largest number of validation images, None for all: if nobody says, that of training images."""
    most = v["max_images"] if v["max_val_images"] is None else v["max_val_images"]
    return None if most == ALL else most


def _part(task, freeze, readouts):
    """The folder of an evaluation below that of the run that it evaluates."""
    if task == PRETRAIN:
        return (DECODER,) if freeze else ()
    return (evaluation_name(task, *readouts),)


def _probes(v):
    names, readouts = probe_names(v["probes"], v["alpha"]), readout_names(v["readout"], v["task"])
    labels = label_map.read(v["label_map"]) if v["label_map"] is not None and v["task"] == PRETRAIN else None
    return ProbeSettings(v["alpha"], names, v["eval_every"], readouts, v["joint_readout"], labels, v["layers"])


def _crop(v):
    """--crop, resolved."""
    return v["crop"] if v["crop"] != "auto" else "shifted" if v["input_size"] <= SMALL else "resized"


def _check_source(typed):
    """Raise InputError unless at most one source of images was typed."""
    chosen = ["--demo"] if typed.demo else []
    chosen += [f"--{name} {getattr(typed, name)}" for name in ("imagenet_dir", "hf_dataset") if getattr(typed, name)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)}: choose one of them.")
    if typed.hf_config and not typed.hf_dataset:
        raise InputError(f"--hf_config {typed.hf_config}: is nothing without --hf_dataset. Add that, or leave it out.")


def _check_legal(name, value):
    """Raise InputError if a flag's value is none that it can have."""
    legal = FLAGS[name].legal
    if value is not None and legal and (wrong := legal(value)):
        raise InputError(f"--{name} {value}: {wrong}")


def _check(v):
    """Raise InputError for the first value that cannot be used."""
    norm_name(v["norm"])
    for name, value in v.items():
        if value == "" and FLAGS[name].legal:
            raise InputError(f"--{name}: is empty. See --help for what it can be.")
        as_it_is = name == "epochs" and value == 0 and v["task"] == FINETUNE  # a classifier that is only validated
        if not as_it_is:
            _check_legal(name, value)
    _check_together(v)


def _check_together(v):
    """Raise InputError for the first values that cannot be used together."""
    if v["task"] == FINETUNE and (v["mixup"] or v["cutmix"]) and v["batch_size"] % 2:
        raise InputError(
            f"--batch_size {v['batch_size']}: mixup and cutmix mix pairs of images, so it must be even. "
            "Or go without: --mixup 0 --cutmix 0."
        )
    if v["task"] == LINPROBE and v["batch_size"] * distributed.size() < 2:
        raise InputError(
            "--batch_size 1: linear probing normalises over the images of a batch, of which it needs 2 or more."
        )
    if v["freeze"] and (v["task"] != PRETRAIN or v["init"] is None or v["alpha"]):
        wrong = "--alpha" if v["alpha"] else "--task" if v["task"] != PRETRAIN else "--init"
        why = {
            "--alpha": "moves encoders, of which this leaves one as it is. Leave it out",
            "--task": "trains no decoder. Leave it out",
            "--init": "is to name the encoder: a run's folder, a checkpoint, or untrained",
        }[wrong]
        raise InputError(f"--freeze {v['freeze']}: {wrong} {why}.")
    if v["task"] != PRETRAIN and v["resume"] not in ("auto", "never"):
        raise InputError(f"--resume {v['resume']}: is for pre-training; --task {v['task']} starts from --init.")
    low, high = v["adyt_alpha_min"], v["adyt_alpha_max"]
    if not 0 <= low < high < math.inf:
        raise InputError(f"--adyt_alpha_min {low} --adyt_alpha_max {high}: need 0 <= min < max.")
    if v["warmup_epochs"] is not None and v["steps"] is None:
        _check_warmup(v["warmup_epochs"], v["epochs"], f"--epochs {v['epochs']}")
    if "frozen" in probe_names(v["probes"], v["alpha"]) and v["batch_size"] * v["accum_iter"] < 2:
        raise InputError(
            "--batch_size 1: the frozen probe normalises over the images of a step, of which it needs 2 or "
            "more. Raise it or --accum_iter, or leave the probe out with --probes."
        )
    patch = architecture(v["model"]).patch
    if v["input_size"] % patch:
        lower = max(patch, v["input_size"] // patch * patch)
        raise InputError(
            f"--input_size {v['input_size']}: not a multiple of the {patch}-pixel patches of "
            f"{v['model']}. Try {lower} or {lower + patch}."
        )
    patches = (v["input_size"] // patch) ** 2
    kept = visible_patches(patches, v["mask_ratio"])
    if kept in (0, patches):
        raise InputError(
            f"--mask_ratio {v['mask_ratio']}: of {patches} patches {kept} would be visible; "
            "at least one must be, and at least one hidden."
        )


def _check_warmup(warmup, epochs, length):
    if warmup >= epochs:
        raise InputError(
            f"--warmup_epochs {warmup:g}: as long as the run or longer ({length}). "
            "Lower it, or leave it out for the recipe's share of the run."
        )
