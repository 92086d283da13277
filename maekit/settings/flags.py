"""The table of flags of train.py: type, defaults, what is legal, what decides a run's numbers, help. No torch.

Parser, defaults, checks, a run's identity, docs/flags.md and what the drivers pass on to evaluations come from it.
"""

from dataclasses import dataclass, field

from . import legal
from .architectures import DECODER_NAME, ENCODER_NAME, MODELS
from .methods import NORMS, OPTIONS
from .probes import PROBES
from .tasks import FINETUNE, KNN, LINPROBE, PRETRAIN, TASKS

UNTRAINED = "untrained"  # --init: random weights
TRAININGS = tuple(task for task in TASKS if task != KNN)


@dataclass(frozen=True)
class Flag:
    """A flag of train.py.

    default: None where it is worked out, see resolution.resolve; demo: what --demo changes it to, None for the same; tasks,
    demo_tasks: likewise of some evaluations. legal: function of a value that says what is wrong with it, None if nothing is.
    decides: the tasks whose numbers it decides, so that another value is another run. shared: whether the comparison's
    drivers pass it on to the evaluations of its encoders.
    """

    name: str
    kind: type
    default: object
    help: str
    metavar: str = "X"
    demo: object = None
    tasks: dict = field(default_factory=dict)
    demo_tasks: dict = field(default_factory=dict)
    legal: object = None
    decides: tuple = ()
    shared: bool = False


GROUPS = {
    "task": (
        Flag(
            "task",
            str,
            PRETRAIN,
            f"{', '.join(TASKS)}: what to do; all but the first evaluate an encoder",
            metavar="NAME",
            legal=legal.one_of(*TASKS),
            decides=TASKS,
        ),
        Flag(
            "init", str, None, f"weights to start from: a run's folder, a checkpoint, or {UNTRAINED}", metavar="WHERE"
        ),
    ),
    "data": (
        Flag(
            "imagenet_dir",
            str,
            "ILSVRC",
            "ILSVRC folder (Data/CLS-LOC/{train,val}), or one with train/ and val/",
            metavar="DIR",
            shared=True,
        ),
        Flag("demo", bool, False, "train on crops of ten photographs, with a small model", shared=True),
        Flag(
            "hf_dataset",
            str,
            None,
            "data set of the Hugging Face hub, or a folder of save_to_disk",
            metavar="NAME",
            shared=True,
        ),
        Flag("hf_config", str, None, "configuration of that data set, such as 320px", metavar="NAME", shared=True),
        Flag(
            "max_images",
            int,
            None,
            "train on an even, seeded share of N images of every class; default: all",
            metavar="N",
            legal=legal.positive,
            decides=TASKS,
            shared=True,
        ),
        Flag(
            "crop",
            str,
            "auto",
            "resized (random boxes, as upstream), shifted (the whole image, moved by up to an eighth and mirrored), whole "
            "(the image as it is); auto: shifted for inputs of up to 32 pixels, else resized",
            metavar="KIND",
            legal=legal.one_of("auto", "resized", "shifted", "whole"),
            decides=TASKS,
            shared=True,
        ),
        Flag(
            "num_workers",
            int,
            None,
            "processes that decode images; default: 4, at most the cores there are; 0 on a CPU whose images are in the cache",
            metavar="N",
            legal=legal.not_negative,
            shared=True,
        ),
        Flag(
            "cache",
            str,
            "auto",
            "decoded images on disk for all runs: auto (where they fit, up to 200,000), off, or a folder",
            metavar="WHERE",
            legal=legal.cache,
            shared=True,
        ),
        Flag(
            "resident",
            str,
            "auto",
            "decoded images in a GPU's memory, where crops are made: auto (where they fit), off",
            metavar="WHEN",
            legal=legal.one_of("auto", "off"),
            shared=True,
        ),
    ),
    "norm": (
        Flag(
            "norm",
            str,
            "LayerNorm",
            f"{', '.join(NORMS)}, or {', '.join(norm.alias for norm in NORMS.values())}",
            metavar="NAME",
            decides=TASKS,
        ),
        *(Flag(o.flag, float, o.default, o.help, legal=o.wrong, decides=TASKS, shared=True) for o in OPTIONS.values()),
    ),
    "model": (
        Flag(
            "model",
            str,
            "mae_vit_base_patch16",
            f"{', '.join(MODELS)}, or {ENCODER_NAME}",
            metavar="NAME",
            demo="mae_vit_demo_patch8",
            legal=legal.model,
            decides=TASKS,
            shared=True,
        ),
        Flag(
            "decoder_type",
            str,
            None,
            f"linear, {{tiny,small,base,large}}-<blocks>b, or {DECODER_NAME}; default: the model's",
            metavar="NAME",
            legal=legal.decoder,
            decides=(PRETRAIN,),
        ),
        Flag(
            "input_size",
            int,
            224,
            "side of the square images in pixels",
            demo=64,
            legal=legal.positive,
            decides=TASKS,
            shared=True,
        ),
        Flag("mask_ratio", float, 0.75, "share of patches that are hidden", legal=legal.inside, decides=(PRETRAIN,)),
        Flag("norm_pix_loss", bool, False, "targets normalised patch by patch", decides=(PRETRAIN,)),
        Flag(
            "pos_embed",
            str,
            "sincos",
            "position tables of encoder and decoder: sincos (fixed), learned",
            metavar="KIND",
            legal=legal.one_of("sincos", "learned"),
            decides=TASKS,
            shared=True,
        ),
        Flag(
            "mae_dir",
            str,
            None,
            "clone of upstream's MAE to train; default: ./mae, else one on PYTHONPATH, else ours; builtin: ours",
            metavar="DIR",
        ),
    ),
    "probes": (
        Flag(
            "alpha",
            float,
            0.0,
            "loss = reconstruction + alpha x classification; any sign",
            legal=legal.finite,
            decides=(PRETRAIN,),
        ),
        Flag(
            "probes",
            str,
            "none",
            f'accuracies to score: all, none, or some of "{" ".join(PROBES)}"',
            metavar="NAMES",
            decides=(PRETRAIN,),
        ),
        Flag(
            "eval_every",
            int,
            5,
            "epochs between two k-NN scores; the last epoch always has one",
            metavar="N",
            legal=legal.positive,
            decides=(PRETRAIN,),
        ),
    ),
    "optimisation": (
        Flag(
            "epochs",
            int,
            100,
            "length of the run",
            demo=26,
            tasks={FINETUNE: 100, LINPROBE: 90},
            demo_tasks={FINETUNE: 5, LINPROBE: 20},
            legal=legal.positive,
            decides=TRAININGS,
        ),
        Flag(
            "batch_size",
            int,
            64,
            "images per forward pass",
            demo=32,
            tasks={FINETUNE: 128, LINPROBE: 512},
            demo_tasks={FINETUNE: 32, LINPROBE: 64},
            legal=legal.positive,
            decides=TRAININGS,
        ),
        Flag(
            "accum_iter",
            int,
            1,
            "forward passes per optimizer step",
            tasks={FINETUNE: 8, LINPROBE: 32},
            demo_tasks={FINETUNE: 1, LINPROBE: 1},
            legal=legal.positive,
            decides=TRAININGS,
        ),
        Flag(
            "lr",
            float,
            None,
            "peak learning rate; default: blr x batch_size x accum_iter x processes / 256",
            demo=4e-3,
            demo_tasks={FINETUNE: 1e-3, LINPROBE: 4.0},
            legal=legal.positive,
            decides=TRAININGS,
        ),
        Flag("blr", float, 1e-3, "base learning rate", tasks={FINETUNE: 5e-4, LINPROBE: 0.1}, legal=legal.positive),
        Flag(
            "min_lr",
            float,
            None,
            "learning rate at the end of the half-cosine; default: 0, with --demo a quarter of --lr",
            tasks={FINETUNE: 1e-6},
            legal=legal.not_negative,
            decides=TRAININGS,
        ),
        Flag(
            "warmup_epochs",
            float,
            None,
            "linear warm-up, may be a fraction; default: the recipe's, less in a shorter run",
            legal=legal.not_negative,
            decides=TRAININGS,
        ),
        Flag(
            "weight_decay",
            float,
            0.05,
            "AdamW's, on parameters of two dimensions and more",
            tasks={LINPROBE: 0.0},
            legal=legal.not_negative,
            decides=TRAININGS,
        ),
    ),
    "fine-tuning": (
        Flag(
            "layer_decay",
            float,
            0.65,
            "each layer's rate over that of the layer above",
            legal=legal.positive,
            decides=(FINETUNE,),
        ),
        Flag(
            "drop_path",
            float,
            0.1,
            "stochastic depth of the last block; less below, linearly",
            legal=legal.share,
            decides=(FINETUNE,),
        ),
        Flag("mixup", float, 0.8, "mixup's alpha; 0: off", legal=legal.not_negative, decides=(FINETUNE,)),
        Flag("cutmix", float, 1.0, "cutmix's alpha; 0: off", legal=legal.not_negative, decides=(FINETUNE,)),
        Flag("smoothing", float, 0.1, "label smoothing", legal=legal.share, decides=(FINETUNE,)),
        Flag("reprob", float, 0.25, "probability of random erasing", legal=legal.share, decides=(FINETUNE,)),
        Flag(
            "aa",
            str,
            "rand-m9-mstd0.5-inc1",
            "timm's name of the augmentation policy; none: crop and flip only",
            metavar="NAME",
            decides=(FINETUNE,),
        ),
    ),
    "run": (
        Flag(
            "output_dir",
            str,
            None,
            "the run's folder; default: ./output_train/<norm>/seed<seed>, an evaluation's in <task> below it",
            metavar="DIR",
        ),
        Flag("checkpoint_dir", str, None, "where checkpoint.pth goes; default: the run's folder", metavar="DIR"),
        Flag(
            "checkpoint_every",
            int,
            1,
            "epochs between two checkpoints, or more where they are short; the last one always has one",
            metavar="N",
            legal=legal.positive,
        ),
        Flag(
            "checkpoint_minutes",
            float,
            30.0,
            "minutes after which one is written within an epoch",
            legal=legal.positive,
        ),
        Flag("seed", int, 0, "decides initial weights, order, crops and masks", legal=legal.seed, decides=TASKS),
        Flag(
            "device",
            str,
            "auto",
            "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N, mps",
            legal=legal.device,
            shared=True,
        ),
        Flag(
            "precision",
            str,
            "auto",
            "auto (float32 on CPU, else bfloat16 or float16), float32, bfloat16, float16",
            legal=legal.one_of("auto", "float32", "bfloat16", "float16"),
            decides=TASKS,
            shared=True,
        ),
        Flag(
            "compile",
            str,
            "auto",
            "auto (on CUDA, if the run is long enough for it to pay), on, off: torch.compile",
            metavar="WHEN",
            legal=legal.one_of("auto", "on", "off"),
            shared=True,
        ),
        Flag(
            "grad_checkpointing",
            bool,
            False,
            "compute activations of blocks again instead of keeping them: less memory, more time",
        ),
        Flag(
            "resume",
            str,
            "auto",
            "auto (go on where the run stopped), never, or a checkpoint to start from",
            metavar="WHERE",
            decides=(PRETRAIN,),
        ),
        Flag(
            "wandb",
            bool,
            False,
            "log to Weights & Biases as well; the project is $WANDB_PROJECT, else the script's own",
        ),
        Flag("wandb_project", str, None, "log to this project of Weights & Biases", metavar="NAME", shared=True),
        Flag(
            "overwrite",
            bool,
            False,
            "delete another run in --output_dir; the same one goes on, with --resume never it starts anew",
            shared=True,
        ),
        Flag("dry_run", bool, False, "check flags and data, train nothing"),
    ),
}
FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}
DEFAULTS = {name: flag.default for name, flag in FLAGS.items()}
