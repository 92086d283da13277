"""The flags of train.py and the parser that all scripts share. Defaults are in recipes.py. No torch."""

import argparse
import re

from .architectures import MODELS
from .methods import NORMS
from .probes import PROBES
from .recipes import DEFAULTS, DEMO, OF_TASK, TASKS
from .start import UNTRAINED


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which takes -1e-05 for the number it is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?$", re.IGNORECASE)

    def error(self, message):
        self.exit(2, f"error: {message}. See {self.prog} --help.\n")


def build_parser(prog, description):
    """The parser of train.py. Nothing has an argparse default: what was not typed is None until resolve()."""
    parser = Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("task")
    _flag(group, "task", str, f"{', '.join(TASKS)}: what to do; all but the first evaluate an encoder", "NAME")
    _flag(group, "init", str, f"weights to start from: a run's folder, a checkpoint, or {UNTRAINED}", "WHERE")

    group = parser.add_argument_group("data")
    _flag(group, "imagenet_dir", str, "ILSVRC folder (Data/CLS-LOC/{train,val}), or one with train/ and val/", "DIR")
    group.add_argument("--demo", action="store_true", help="train on crops of ten photographs, with a small model")
    _flag(group, "hf_dataset", str, "data set of the Hugging Face hub, or a folder of save_to_disk", "NAME")
    _flag(group, "hf_config", str, "configuration of that data set, such as 320px", "NAME")
    _flag(group, "max_images", int, "train on an even, seeded share of N images; default: all", "N")
    _flag(group, "num_workers", int, "processes that decode images; default: 4, at most the cores there are; "
          "0 on a CPU whose images are in the cache", "N")  # fmt: skip

    _flag(group, "cache", str, "decoded images on disk for all runs: auto (where they fit, up to 200,000), off, or a folder",
          "WHERE")  # fmt: skip

    group = parser.add_argument_group("norm")
    _flag(group, "norm", str, f"{', '.join(NORMS)}, or {', '.join(NORMS.values())}", "NAME")
    _flag(group, "dyt_alpha_init", float, "DynamicTanh: initial alpha")
    _flag(group, "adyt_lambda", float, "AdaptiveDynamicTanh: strength of the adaptation")
    _flag(group, "adyt_smooth", float, "AdaptiveDynamicTanh: smoothing factor of the gradient norm")
    _flag(group, "adyt_alpha_min", float, "AdaptiveDynamicTanh: least alpha")
    _flag(group, "adyt_alpha_max", float, "AdaptiveDynamicTanh: largest alpha")

    group = parser.add_argument_group("model")
    _flag(group, "model", str, f"{', '.join(MODELS)}", "NAME")
    _flag(group, "decoder_type", str, "linear, or {tiny,small,base,large}-<blocks>b; default: the model's", "NAME")
    _flag(group, "input_size", int, "side of the square images in pixels")
    _flag(group, "mask_ratio", float, "share of patches that are hidden")
    group.add_argument("--norm_pix_loss", action="store_true", default=None, help="targets normalised patch by patch")

    _flag(group, "mae_dir", str, "clone of upstream's MAE to train; default: ./mae, else one on PYTHONPATH, else ours; "
          "builtin: ours", "DIR")  # fmt: skip

    group = parser.add_argument_group("probes")
    _flag(group, "alpha", float, "loss = reconstruction + alpha x classification; any sign")
    _flag(group, "probes", str, f'accuracies to score: all, none, or some of "{" ".join(PROBES)}"', "NAMES")
    _flag(group, "eval_every", int, "epochs between two k-NN scores; the last epoch always has one", "N")

    group = parser.add_argument_group("optimisation")
    _flag(group, "epochs", int, "length of the run")
    _flag(group, "batch_size", int, "images per forward pass")
    _flag(group, "accum_iter", int, "forward passes per optimizer step")
    _flag(group, "lr", float, "peak learning rate; default: blr x batch_size x accum_iter / 256")
    _flag(group, "blr", float, "base learning rate")
    _flag(group, "min_lr", float, "learning rate at the end")
    _flag(group, "warmup_epochs", float, "linear warm-up; default: the recipe's, less in a shorter run")
    _flag(group, "weight_decay", float, "AdamW's, on parameters of two dimensions and more")

    group = parser.add_argument_group("fine-tuning")
    _flag(group, "layer_decay", float, "each layer's rate over that of the layer above")
    _flag(group, "drop_path", float, "stochastic depth of the last block; less below, linearly")
    _flag(group, "mixup", float, "mixup's alpha; 0: off")
    _flag(group, "cutmix", float, "cutmix's alpha; 0: off")
    _flag(group, "smoothing", float, "label smoothing")
    _flag(group, "reprob", float, "probability of random erasing")
    _flag(group, "aa", str, "timm's name of the augmentation policy; none: crop and flip only", "NAME")

    group = parser.add_argument_group("run")
    _flag(group, "output_dir", str, "the run's folder; default: ./output_train/<norm>/seed<seed>", "DIR")
    _flag(group, "checkpoint_dir", str, "where checkpoint.pth goes; default: the run's folder", "DIR")
    _flag(
        group,
        "checkpoint_every",
        int,
        "epochs between two checkpoints, or more where they are short; the last one always has one",
        "N",
    )
    _flag(group, "checkpoint_minutes", float, "minutes after which one is written within an epoch", "X")
    _flag(group, "seed", int, "decides initial weights, order, crops and masks")
    _flag(group, "device", str, "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N, mps")
    _flag(group, "precision", str, "auto (float32 on CPU, else bfloat16 or float16), float32, bfloat16, float16")
    _flag(
        group, "compile", str, "auto (on CUDA, if the run is long enough for it to pay), on, off: torch.compile", "WHEN"
    )
    group.add_argument("--grad_checkpointing", action="store_true", default=None, help="compute activations of blocks "
                       "again instead of keeping them: less memory, more time")  # fmt: skip
    _flag(group, "resume", str, "auto (go on where the run stopped), never, or a checkpoint to start from", "WHERE")
    group.add_argument("--wandb", action="store_true", default=None, help="log to Weights & Biases as well; the project "
                       "is $WANDB_PROJECT, else the script's own")  # fmt: skip
    _flag(group, "wandb_project", str, "log to this project of Weights & Biases", "NAME")
    group.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="delete another run in --output_dir; the same one goes on, with --resume never it starts anew",
    )
    group.add_argument("--dry_run", action="store_true", default=None, help="check flags and data, train nothing")
    return parser


def _flag(group, name, kind, text, metavar="X"):
    named = {"default": DEFAULTS[name], "demo": DEMO.get(name)}
    named |= {task: recipe[name] for task, recipe in OF_TASK.items() if name in recipe}
    named = [f"{of}: {value}" for of, value in named.items() if value is not None]
    if named:
        text += f" ({'; '.join(named)})"
    group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text.replace("%", "%%"))
