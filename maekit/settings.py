"""The settings of a training run: defaults, what --demo changes, checks, and the objects that the parts take. No torch."""

import math
import os
import re
from dataclasses import asdict, dataclass

from .errors import InputError

# Plain lists, so that flags are checked before torch is imported; the tests hold them equal to the registries.
NORMS = {  # name: alias
    "LayerNorm": "ln",
    "RMSNorm": "rms",
    "DynamicTanh": "dyt",
    "AdaptiveDynamicTanh": "adyt",
    "DynamicErf": "derf",
}
MODELS = {  # name: patch size
    "mae_vit_demo_patch8": 8,
    "mae_vit_tiny_patch16": 16,
    "mae_vit_small_patch16": 16,
    "mae_vit_base_patch16": 16,
    "mae_vit_large_patch16": 16,
    "mae_vit_huge_patch14": 14,
    "vit_tiny": 16,
    "vit_small": 16,
    "vit_base": 16,
    "vit_large": 16,
    "vit_huge": 14,
}
DECODER_SIZES = ("tiny", "small", "base", "large")
PROBES = ("joint", "frozen", "knn")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

# Every default is here and nowhere else. None: worked out in resolve().
DEFAULTS = {
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
    "imagenet_dir": "ILSVRC",
    "hf_dataset": None,
    "hf_config": None,
    "max_images": None,
    "num_workers": None,
    "output_dir": None,
    "checkpoint_dir": None,
    "seed": 0,
    "device": "auto",
    "precision": "auto",
    "resume": "auto",
    "overwrite": False,
    "dry_run": False,
}
# What --demo changes: a model, sizes and a rate that teach something on two cores in minutes.
DEMO = {
    "model": "mae_vit_demo_patch8",
    "input_size": 64,
    "epochs": 20,
    "lr": 4e-3,
}


@dataclass(frozen=True)
class NormSettings:
    """Registry name of the norm, and the constructor options of norms.py that the user may set for it."""

    name: str
    options: dict


@dataclass(frozen=True)
class ModelSettings:
    name: str
    input_size: int
    mask_ratio: float
    norm_pix_loss: bool
    decoder_type: str | None

    @property
    def patch_size(self):
        return MODELS[self.name]

    @property
    def patches(self):
        """Number of patches of an image."""
        return (self.input_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DataSettings:
    """Where images come from: one of imagenet_dir and hf_dataset; the demo where both are None."""

    imagenet_dir: str | None
    max_images: int | None
    num_workers: int
    hf_dataset: str | None = None
    hf_config: str | None = None


@dataclass(frozen=True)
class OptimSettings:
    """lr is the actual peak rate; warmup_epochs may be a fraction."""

    epochs: int
    batch_size: int
    accum_iter: int
    lr: float
    min_lr: float
    warmup_epochs: float
    weight_decay: float

    @property
    def effective_batch(self):
        return self.batch_size * self.accum_iter


@dataclass(frozen=True)
class ProbeSettings:
    """Weight of the classification loss, which of PROBES are scored, and how often k-NN is, in epochs."""

    alpha: float
    names: tuple
    eval_every: int


@dataclass(frozen=True)
class Settings:
    """One training run, every value resolved and checked."""

    norm: NormSettings
    model: ModelSettings
    data: DataSettings
    optim: OptimSettings
    probes: ProbeSettings
    seed: int
    precision: str
    output_dir: str
    checkpoint_dir: str | None
    device: str
    resume: str
    overwrite: bool
    dry_run: bool

    def identity(self):
        """What decides the numbers of the run, flat and by the names of the flags.

        Two commands with equal identities on equal data are the same run: the second goes on where the first stopped.
        A precision left to the device is not in it yet.
        """
        optim, model, norm = asdict(self.optim), asdict(self.model), asdict(self.norm)
        model["model"] = model.pop("name")
        flags = {"norm": norm["name"]}
        flags.update({OPTION_FLAGS[norm["name"]][option]: value for option, value in norm["options"].items()})
        flags.update(model)
        flags.update(optim)
        flags.update(alpha=self.probes.alpha, probes=" ".join(self.probes.names) or "none")
        if "knn" in self.probes.names:
            flags["eval_every"] = self.probes.eval_every
        flags.update(max_images=self.data.max_images, seed=self.seed)
        flags["resume"] = None if self.resume in ("auto", "never") else self.resume
        return flags if self.precision == "auto" else {**flags, "precision": self.precision}


# norm: {constructor option of norms.py: flag}; a flag that is not here for a norm is nothing to it
OPTION_FLAGS = {
    "LayerNorm": {},
    "RMSNorm": {},
    "DynamicTanh": {"alpha_init": "dyt_alpha_init"},
    "AdaptiveDynamicTanh": {
        "lam": "adyt_lambda",
        "smooth": "adyt_smooth",
        "alpha_min": "adyt_alpha_min",
        "alpha_max": "adyt_alpha_max",
    },
    "DynamicErf": {},
}


def resolve(typed, *, cores=None):
    """Settings from the flags that flags.build_parser parsed: what was typed wins, then --demo, then the defaults. Raises InputError."""
    v = {**DEFAULTS, **(DEMO if typed.demo else {})}
    v.update({name: value for name, value in vars(typed).items() if value is not None})
    _check_source(typed)
    _check(v)
    lr = v["lr"] if v["lr"] is not None else v["blr"] * v["batch_size"] * v["accum_iter"] / 256
    warmup = v["warmup_epochs"] if v["warmup_epochs"] is not None else min(10, v["epochs"] / 10)
    workers = v["num_workers"] if v["num_workers"] is not None else min(4, cores or available_cores())
    name = norm_name(v["norm"])
    images = None if typed.demo or typed.hf_dataset else v["imagenet_dir"]
    return Settings(
        norm=NormSettings(name, {option: v[flag] for option, flag in OPTION_FLAGS[name].items()}),
        model=ModelSettings(v["model"], v["input_size"], v["mask_ratio"], v["norm_pix_loss"], v["decoder_type"]),
        data=DataSettings(images, v["max_images"], workers, v["hf_dataset"], v["hf_config"]),
        optim=OptimSettings(v["epochs"], v["batch_size"], v["accum_iter"], lr, v["min_lr"], warmup, v["weight_decay"]),
        probes=ProbeSettings(v["alpha"], probe_names(v["probes"], v["alpha"]), v["eval_every"]),
        seed=v["seed"],
        precision=v["precision"],
        output_dir=v["output_dir"] or os.path.join("output_train", name, f"seed{v['seed']}"),
        checkpoint_dir=v["checkpoint_dir"],
        device=v["device"],
        resume=v["resume"],
        overwrite=v["overwrite"],
        dry_run=v["dry_run"],
    )


def norm_name(name):
    """Registry name of a norm or alias. Raises InputError."""
    for full, alias in NORMS.items():
        if name in (full, alias):
            return full
    raise InputError(f"--norm {name}: unknown. Choose from {', '.join(NORMS)} (or {', '.join(NORMS.values())}).")


def in_order(names):
    """Names of norms in the order of the registry, unknown ones last."""
    known = list(NORMS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def probe_names(text, alpha):
    """Those of PROBES that "all", "none" or a list name; joint is always one where alpha is not 0. Raises InputError."""
    typed = {"all": list(PROBES), "none": []}.get(text, text.replace(",", " ").split())
    for name in typed:
        if name not in PROBES:
            raise InputError(f"--probes {text}: {name} is unknown. Use all, none, or some of {', '.join(PROBES)}.")
    if not typed and text != "none":
        raise InputError(f"--probes: is empty. Use all, none, or some of {', '.join(PROBES)}.")
    return tuple(name for name in PROBES if name in typed or (name == "joint" and alpha))


def available_cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    if v["precision"] not in PRECISIONS:
        raise InputError(f"--precision {v['precision']}: unknown. Choose from {', '.join(PRECISIONS)}.")

    if not math.isfinite(v["alpha"]):
        raise InputError(f"--alpha {v['alpha']}: must be finite.")
    for name in ("epochs", "batch_size", "accum_iter", "max_images", "eval_every", "input_size", "lr", "blr",
                 "dyt_alpha_init"):  # fmt: skip
        if v[name] is not None and not 0 < v[name] < math.inf:
            raise InputError(f"--{name} {v[name]}: must be positive.")
    for name in ("min_lr", "weight_decay", "num_workers", "warmup_epochs", "adyt_lambda", "seed"):
        if v[name] is not None and not 0 <= v[name] < math.inf:
            raise InputError(f"--{name} {v[name]}: must not be negative.")
    if not 0 <= v["adyt_smooth"] < 1:
        raise InputError(f"--adyt_smooth {v['adyt_smooth']}: must be in [0, 1); 1 would never adapt.")
    low, high = v["adyt_alpha_min"], v["adyt_alpha_max"]
    if not 0 <= low < high < math.inf:
        raise InputError(f"--adyt_alpha_min {low} --adyt_alpha_max {high}: need 0 <= min < max.")
    if v["warmup_epochs"] is not None and v["warmup_epochs"] >= v["epochs"]:
        raise InputError(
            f"--warmup_epochs {v['warmup_epochs']:g}: as long as the run or longer (--epochs {v['epochs']}). "
            "Lower it, or leave it out for a tenth of the run."
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
