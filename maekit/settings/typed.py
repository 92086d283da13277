"""What a run is told, resolved and checked, in typed objects that its parts take. No torch."""

from dataclasses import asdict, dataclass

from .architectures import architecture
from .flags import FLAGS
from .label_map import LabelMap
from .methods import NONE, options_of
from .probes import CLS, OUTPUT
from .tasks import PRETRAIN


@dataclass(frozen=True)
class NormSettings:
    """Registry name of the norm, and the options of norms.py that the user may set for it, as flags have them."""

    name: str
    options: dict

    @property
    def arguments(self):
        """What norms.convert_norms takes."""
        return {name: None if value == NONE else value for name, value in self.options.items()}


@dataclass(frozen=True)
class ModelSettings:
    name: str
    input_size: int
    mask_ratio: float
    norm_pix_loss: bool
    decoder_type: str | None
    pos_embed: str = "sincos"

    @property
    def architecture(self):
        """The Architecture of its names."""
        return architecture(self.name, self.decoder_type)

    @property
    def patch_size(self):
        return self.architecture.patch

    @property
    def patches(self):
        """Number of patches of an image."""
        return (self.input_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DataSettings:
    """Where images come from: one of imagenet_dir and hf_dataset; the demo where both are None. cache: see data.cache.cached;
    resident: auto or off, see data.resident; crop: how they are cut, a name of data.crops.CROPS; val_share: of the training
    images, for validation, where a set has none of its own; max_val_images: None for all.

    num_workers: None for as many as pay, see data.loader.workers.
    """

    imagenet_dir: str | None
    max_images: int | None
    num_workers: int | None
    hf_dataset: str | None = None
    hf_config: str | None = None
    cache: str = "off"
    resident: str = "auto"
    crop: str = "resized"
    val_share: float | None = None
    max_val_images: int | None = None


@dataclass(frozen=True)
class OptimSettings:
    """lr is the actual peak rate; warmup_epochs may be a fraction; clip_grad: largest norm of a gradient, None for any; ema: decay
    of the weights' moving average, None for no average. steps: the length as it was typed, None if that was epochs; epochs and
    a warm-up that was not typed are None with it until images are counted, see resolution.counted."""

    epochs: int | None
    batch_size: int
    accum_iter: int
    lr: float
    min_lr: float
    warmup_epochs: float | None
    weight_decay: float
    processes: int = 1
    clip_grad: float | None = None
    ema: float | None = None
    steps: int | None = None

    @property
    def length(self):
        """The length of the run as its flag."""
        return (
            f"--epochs {self.epochs}" if self.steps is None else f"--steps {self.steps}, which is {self.epochs} epochs"
        )

    @property
    def effective_batch(self):
        """Images of an optimizer step, over all processes."""
        return self.batch_size * self.accum_iter * self.processes


@dataclass(frozen=True)
class ProbeSettings:
    """Weight of the classification loss, which of PROBES are scored, how often k-NN is, in epochs, and what is read: by the frozen
    probe, k-NN and evaluations, and by the joint classifier, names of READOUTS. layers: what k-NN as an evaluation reads, output or all. label_map: the labels of the latter; None: classes."""

    alpha: float
    names: tuple
    eval_every: int
    readouts: tuple = (CLS,)
    joint_readout: str = CLS
    label_map: LabelMap | None = None
    layers: str = OUTPUT


@dataclass(frozen=True)
class SavingSettings:
    """A checkpoint after every so many epochs, and within an epoch after so many minutes."""

    epochs: int
    minutes: float


@dataclass(frozen=True)
class FinetuneSettings:
    """The regularisation of fine-tuning: layer-wise rate decay, drop path, mixup, cutmix, label smoothing, random
    erasing, and timm's name of the augmentation policy ("none" for none)."""

    layer_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    smoothing: float
    reprob: float
    aa: str


@dataclass(frozen=True)
class Settings:
    """One run, every value resolved and checked.

    task: one of TASKS. wandb_project: of Weights & Biases; None: not asked for. init: path of the checkpoint whose weights it starts from; None: weights of its seed. mae_dir:
    as typed. left: the flags whose value was left to the kit, of those that earlier kits would have chosen otherwise. freeze: "encoder" to train a new decoder on the encoder of init, which stays as it is. finetune: None for other tasks.
    """

    task: str
    init: str | None
    freeze: str | None
    mae_dir: str | None
    finetune: FinetuneSettings | None
    norm: NormSettings
    model: ModelSettings
    data: DataSettings
    optim: OptimSettings
    probes: ProbeSettings
    saving: SavingSettings
    seed: int
    precision: str
    compile: str
    grad_checkpointing: bool
    wandb_project: str | None
    output_dir: str
    checkpoint_dir: str | None
    device: str
    resume: str
    overwrite: bool
    dry_run: bool
    left: tuple = ()

    def identity(self):
        """What decides the numbers of the run, flat and by the names of the flags.

        Two commands with equal identities on equal data are the same run: the second goes on where the first stopped.
        Which weights --init and which model --mae_dir stand for, and a precision left to the device, are not in it.
        """
        values = self._by_flag()
        kept = {name: values[name] for name, flag in FLAGS.items() if self.task in flag.decides and name in values}
        if "epochs" in kept:
            kept["processes"] = self.optim.processes
        return kept

    def _by_flag(self):
        """Values by the names of the flags that decide a run, without those that are nothing to this one."""
        parts = (self.model, self.optim, self.probes, self.data, *([self.finetune] if self.finetune else []))
        values = {name: value for part in parts for name, value in asdict(part).items()}
        values |= {
            "task": self.task,
            "norm": self.norm.name,
            "model": self.model.name,
            "seed": self.seed,
            "freeze": self.freeze,
        }
        values |= {option.flag: self.norm.options[option.argument] for option in options_of(self.norm.name)}
        values["probes"] = " ".join(self.probes.names) or "none"
        values["readout"] = " ".join(self.probes.readouts)
        values["label_map"] = self.probes.label_map and self.probes.label_map.name
        names = self.probes.names
        nothing = {"eval_every": "knn" in names or "representation" in names, "joint_readout": "joint" in names}
        nothing["label_map"] = "joint" in names
        nothing["readout"] = self.task != PRETRAIN or "knn" in names or "frozen" in names
        values = {name: value for name, value in values.items() if nothing.get(name, True)}
        values["resume"] = None if self.resume in ("auto", "never") else self.resume
        return values if self.precision == "auto" else {**values, "precision": self.precision}
