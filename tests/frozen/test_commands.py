"""Commands that follow from what is typed, and helps, are those that were recorded."""

import os
import re
import shlex
import sys

import pytest

from tests.support import KIT, forkserver, run
from tests.support.frozen import FROZEN, WHATEVER_IS_SET, told

# What run_comparison.bat starts: a program of the kit, wherever that lies.
WINDOWS = re.search(r'"%KIT%(\S+)" %args%', (KIT / "run_comparison.bat").read_text(encoding="utf-8"))[1].replace(
    "\\", "/"
)


COMMANDS = {
    "comparison_demo": ("run_comparison.sh", "--demo"),
    "comparison_imagenet": (
        "run_comparison.sh",
        "--imagenet_dir",
        'my "data"/it\'s $HOME',
        "--methods",
        "ln rms adyt-lambda0.5-smooth0.99 dyt-alpha1 adyt-min0.2-max3",
        "--seeds",
        "0 3",
        "--control",
        "--epochs=7",
    ),
    "comparison_hub": (
        "run_comparison.sh",
        "--hf_dataset",
        "frgfm/imagenette",
        "--hf_config",
        "320px",
        "--norms",
        "derf",
        "--nproc",
        "2",
        "--wandb",
        "--mae_dir",
        "a clone",
        "--checkpoint_dir",
        "fast disk/k",
        "--norm_pix_loss",
    ),
    "comparison_lists": (
        "run_comparison.sh",
        "--demo",
        "--adyt_lambda",
        "0.01 1e-1",
        "--adyt_smooth=0.5 0.99",
        "--methods",
        "ln adyt",
        "--output_dir",
        "a b/c'd",
        "--control",
        "--adyt_alpha_max",
        "3",
    ),
    "comparison_evaluations": (
        "run_comparison.sh",
        "--imagenet_dir",
        "x y",
        "--methods",
        "ln dyt-alpha2",
        "--eval",
        "finetune,linprobe knn",
        "--finetune_flags",
        "--epochs 3 --aa none",
        "--linprobe_flags=--accum_iter 1",
        "--seed",
        "2",
        "--overwrite",
        "--alpha",
        "0.5",
        "--device=cpu",
        "--max_images",
        "64",
        "--wandb_project",
        "my project",
    ),
    "windows_demo": (WINDOWS, "--demo", "--seeds", "0 0 1", "--methods", "ln"),
    "windows_evaluations": (
        WINDOWS,
        "--imagenet_dir",
        'x "y" & z',
        "--methods",
        "ln adyt",
        "--adyt_lambda",
        "0.1 1",
        "--eval",
        "finetune",
        "--finetune_flags",
        "--epochs 3",
        "--nproc",
        "2",
        "--checkpoint_dir",
        "fast disk",
        "--wandb",
    ),
    "sweep_full": ("run_alpha_sweep.sh",),
    "sweep_grid": (
        "run_alpha_sweep.sh",
        "--demo",
        "--alphas",
        "-1e-5 0 .5",
        "--lrs",
        "1e-3 0.00015",
        "--norms",
        "ln dyt",
        "--seeds",
        "0 1",
        "--epochs",
        "3",
        "--name",
        "my grid",
        "--output_dir",
        "out's",
        "--probes",
        "joint frozen",
    ),
    "sweep_imagenet": (
        "run_alpha_sweep.sh",
        "--imagenet_dir",
        "imagenette 320",
        "--alphas",
        "0.5",
        "--batch_size",
        "32",
        "--num_workers",
        "3",
        "--model",
        "vit_small",
        "--decoder_type",
        "linear",
        "--checkpoint_dir",
        "fast disk/k",
        "--nproc=2",
        "--wandb",
        "--mae_dir",
        "builtin",
    ),
    "sweep_quick": ("quick_sweep_test.sh", "--hf_dataset", "local/set", "--wandb"),
    "sweep_quick_demo": ("quick_sweep_test.sh", "--demo", "--norms", "adyt", "--adyt_lambda", "0.5"),
    "sweep_lr": ("lr_alpha_sweep.sh", "--wandb_project", "it's mine", "--seeds", "4"),
    "sweep_lr_demo": ("lr_alpha_sweep.sh", "--demo", "--lrs", "0.01", "--epochs", "2"),
}


def start(program, *flags):
    """A driver as it is typed; the batch file's program as that starts it."""
    own = (sys.executable,) if program.endswith(".py") else ()
    return run(*own, KIT / program, *flags, env=WHATEVER_IS_SET, check=0)


def without_machine(text):
    """A driver's output with placeholders for the machine's paths, whether quoted or not."""
    paths = {f"{KIT}/train.py": "{KIT}/train.py", sys.executable: "{PYTHON}", forkserver.python(): "{PYTHON}"}
    for path, name in paths.items():
        text = text.replace(shlex.quote(path), name)
    return text


@pytest.mark.parametrize("case", COMMANDS)
def test_what_is_typed_becomes_the_commands_that_it_became(case):
    program, *flags = COMMANDS[case]
    result = start(program, "--dry_run", *flags)
    out = without_machine(result.stdout)
    assert str(KIT) not in out
    if program != "run_comparison.sh" and "--num_workers" not in flags:
        out = re.sub(r"--num_workers (?:1[0-6]|[1-9])\b", "--num_workers {CORES, AT MOST 16}", out)
    name = "{WINDOWS}" if program == WINDOWS else program
    now, recorded = told(f"commands/{case}.txt", f"$ {shlex.join([name, *flags])}\n{result.stderr}{out}")
    assert now == recorded


# Helps

HELPS = {
    "analysis": ("analysis.py",),
    "analysis_comparison": ("analysis.py", "comparison"),
    "analysis_gap": ("analysis.py", "gap"),
    "run_comparison": ("run_comparison.sh",),
    "run_comparison_windows": (WINDOWS,),
    "run_alpha_sweep": ("run_alpha_sweep.sh",),
    "quick_sweep_test": ("quick_sweep_test.sh",),
    "lr_alpha_sweep": ("lr_alpha_sweep.sh",),
}


@pytest.fixture(scope="module")
def help_of_train():
    return start("train.py", "--help").stdout


def words(text):
    """Without line breaks, which are argparse's: they differ with the version of Python."""
    return "\n".join(text.split())


def test_the_help_of_train_is_what_it_was(help_of_train):
    now, recorded = told("help/train.txt", help_of_train)
    assert words(now) == words(recorded)


@pytest.mark.parametrize("case", HELPS)
def test_every_help_is_what_it_was(case, help_of_train):
    """A driver's ends with all of train.py's, which is recorded once."""
    out = start(*HELPS[case], "--help").stdout
    if not case.startswith("analysis"):
        assert out.count(help_of_train) == 1
        out = out.replace(help_of_train, "{THE HELP OF TRAIN.PY}\n")
    now, recorded = told(f"help/{case}.txt", out)
    assert words(now) == words(recorded)


def test_nothing_is_recorded_that_no_test_looks_at():
    recorded = {str(file.relative_to(FROZEN)).partition(os.sep)[0] for file in FROZEN.iterdir()}
    assert recorded == {"commands", "help", "listings", "keys", "columns", "tags", "stopped"}
    assert {file.stem for file in (FROZEN / "commands").iterdir()} == set(COMMANDS)
    assert {file.stem for file in (FROZEN / "help").iterdir()} == {"train", *HELPS}
