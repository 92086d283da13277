"""What run_comparison.sh makes of what is typed, and what all drivers refuse before anything is trained."""

import re
import shlex
import shutil
import sys

import pytest

from maekit.settings import methods
from tests.support import KIT, run

DRIVER = KIT / "run_comparison.sh"
WINDOWS = [sys.executable, KIT / "maekit/drivers/windows.py"]


def grid(*flags):
    """Commands of a dry run, split as a shell splits them."""
    lines = run(DRIVER, *flags, "--dry_run", check=0).stdout.strip().splitlines()
    return [shlex.split(line) for line in lines]


def value(command, flag):
    return command[command.index(flag) + 1]


def test_a_dry_run_lists_the_originals_three_methods_and_needs_no_data(tmp_path):
    commands = grid("--imagenet_dir", "/no/where")
    assert [value(c, "--norm") for c in commands] == ["LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"]
    assert [value(c, "--output_dir") for c in commands] == [
        f"./output_comparison/{m}/seed0" for m in ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh")
    ]
    assert all(value(c, "--imagenet_dir") == "/no/where" for c in commands)


def test_methods_seeds_and_paths_with_spaces_reach_every_command():
    commands = grid("--norms", "ln derf ln", "--seeds=0 7", "--output_dir", "a b/c'd", "--imagenet_dir", "x $y")
    assert [(value(c, "--seed"), value(c, "--norm")) for c in commands] == [
        ("0", "LayerNorm"),
        ("0", "DynamicErf"),
        ("7", "LayerNorm"),
        ("7", "DynamicErf"),
    ]
    assert value(commands[3], "--output_dir") == "a b/c'd/DynamicErf/seed7"
    assert all(value(c, "--imagenet_dir") == "x $y" for c in commands)


def test_every_run_has_a_checkpoint_folder_of_its_own():
    folders = [value(c, "--checkpoint_dir") for c in grid("--checkpoint_dir", "fast", "--seeds", "0 1")]
    assert folders[0] == "fast/LayerNorm/seed0" and len(set(folders)) == 6


def test_evaluations_get_what_describes_network_and_data_and_their_own_flags():
    flags = shlex.split(
        "--epochs 7 --lr 1 --model vit_tiny --dyt_alpha_init=0.7 --alpha 0.5 --max_images 64 --overwrite"
    )
    evaluations = ("--eval", "linprobe,finetune", "--finetune_flags", "--epochs 3 --mixup 0")
    commands = grid("--methods", "ln dyt", *evaluations, "--imagenet_dir", "x y", *flags, "--output_dir", "out")
    assert all("--overwrite" in c for c in commands)
    trained, evaluated = commands[:2], commands[2:]
    assert all("--task" not in c and value(c, "--epochs") == "7" for c in trained) and len(evaluated) == 8
    assert [(value(c, "--task"), value(c, "--norm"), value(c, "--init")) for c in evaluated] == [
        (task, norm, init)
        for task in ("linprobe", "finetune")
        for norm in ("LayerNorm", "DynamicTanh")
        for init in (f"out/{norm}/seed0", "untrained")
    ]
    assert value(evaluated[0], "--output_dir") == "out/LayerNorm/seed0/linprobe"
    assert value(evaluated[1], "--output_dir") == "out/LayerNorm/seed0/untrained_linprobe"
    for c in evaluated:
        assert (value(c, "--imagenet_dir"), value(c, "--model"), value(c, "--max_images")) == ("x y", "vit_tiny", "64")
        assert value(c, "--dyt_alpha_init") == "0.7" and not {"--lr", "--alpha"} & set(c)
        own = "--epochs" in c and value(c, "--epochs") == "3" and value(c, "--mixup") == "0"
        assert own == (value(c, "--task") == "finetune")


@pytest.mark.slow
def test_a_list_of_lambdas_or_smooths_is_a_method_per_value():
    commands = grid("--adyt_lambda", "0.01 1e-1", "--adyt_smooth=.9 0.99", "--methods", "ln adyt", "--output_dir", "o")
    names = [f"AdaptiveDynamicTanh-lambda{x}-smooth{y}" for x in ("0.01", "0.1") for y in ("0.9", "0.99")]
    assert [value(c, "--output_dir") for c in commands] == [f"o/{name}/seed0" for name in ("LayerNorm", *names)]
    assert [(value(c, "--adyt_lambda"), value(c, "--adyt_smooth")) for c in commands[1:]] == [
        ("0.01", "0.9"),
        ("0.01", "0.99"),
        ("0.1", "0.9"),
        ("0.1", "0.99"),
    ]
    assert "--adyt_lambda" not in commands[0] and all(value(c, "--norm") == "AdaptiveDynamicTanh" for c in commands[1:])
    (one,) = grid("--adyt_lambda", "0.01", "--methods", "adyt", "--output_dir", "o")  # an option of train.py, as ever
    assert (value(one, "--output_dir"), value(one, "--adyt_lambda")) == ("o/AdaptiveDynamicTanh/seed0", "0.01")


@pytest.mark.slow
def test_the_control_is_dynamic_tanh_at_the_upper_bound():
    commands = grid("--control", "--dyt_alpha_init", "0.7", "--eval", "knn", "--methods", "dyt", "--output_dir", "o")
    runs = ["o/DynamicTanh/seed0", "o/DynamicTanh-alpha2.0/seed0"]
    evaluations = [f"{run}/{task}" for run in runs for task in ("knn", "untrained_knn")]
    assert [value(c, "--output_dir") for c in commands] == [*runs, *evaluations]
    last = [c[len(c) - 1 - c[::-1].index("--dyt_alpha_init") + 1] for c in commands]  # what argparse takes
    assert last == ["0.7", "2.0", "0.7", "0.7", "2.0", "2.0"]
    assert value(commands[4], "--init") == "o/DynamicTanh-alpha2.0/seed0"
    other = grid("--control", "--adyt_alpha_max", "3", "--methods", "adyt", "--output_dir", "o")
    assert value(other[1], "--output_dir") == "o/DynamicTanh-alpha3.0/seed0"


@pytest.mark.parametrize(
    ("flags", "bounds"),
    [
        (("--methods", "ln adyt-max3"), [3.0]),
        (("--methods", "adyt-max3-lambda1 adyt-max3 dyt"), [3.0]),
        (("--methods", "adyt adyt-max3"), [2.0, 3.0]),
        (("--methods", "adyt adyt-max3", "--adyt_alpha_max", "4"), [4.0, 3.0]),
        (("--methods", "ln adyt", "--adyt_alpha_max", "3 5"), [3.0, 5.0]),
        (("--methods", "adyt-max3 dyt-alpha3"), []),
        (("--methods", "ln"), [2.0]),
    ],
    ids=str,
)
def test_there_is_a_control_for_each_upper_bound(flags, bounds):
    typed = ["--control", "--output_dir", "o", *flags]
    for out in (run(DRIVER, "--dry_run", *typed, check=0), run(*WINDOWS, "--dry_run", *typed, check=0)):
        folders = [value(shlex.split(line), "--output_dir") for line in out.stdout.splitlines()]
        assert folders[len(folders) - len(bounds) :] == [f"o/DynamicTanh-alpha{bound}/seed0" for bound in bounds]
        assert len(folders) == len(set(folders)) and not out.stderr


@pytest.mark.parametrize("driver", [(DRIVER,), tuple(WINDOWS)], ids=("sh", "bat"))
def test_a_reference_that_is_no_method_is_refused_before_anything_runs(driver):
    typed = (*driver, "--dry_run", "--methods", "ln adyt-max3")
    assert "--reference" not in run(*typed, "--control", "--reference", "dyt-alpha3", check=0).stdout
    for wrong, way_out in (
        ("dyt", "is not among the methods"),
        ("tanh", "unknown"),
        ("adyt-max", "nothing is not a number"),
    ):
        error = run(*typed, "--reference", wrong, check=2).stderr
        assert error.startswith(f"error: --reference {wrong}: {way_out}") and len(error.splitlines()) == 1, error


@pytest.mark.slow
def test_a_method_has_the_options_of_the_table(tmp_path):
    """One row more there, and the drivers know it: in names, as a list of values, and for evaluations."""
    shutil.copytree(KIT / "maekit", tmp_path / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DRIVER, tmp_path)
    table = tmp_path / "maekit/settings/methods.py"
    text, row = table.read_text(), '"DynamicErf": Norm("derf", "#009E73", (0, (1, 1)), '
    assert row in text
    own = '(Option("lift", "derf_lift", "lift", 0.0, "DynamicErf: lift"),)'
    table.write_text(text.replace(f"{row}_POINT_WISE", row + own))
    for start in ([tmp_path / "run_comparison.sh"], [sys.executable, tmp_path / "maekit/drivers/windows.py"]):
        typed = ["--dry_run", "--methods", "ln derf-lift0.3", "--derf_lift", "0.7", "--eval", "knn"]
        commands = [shlex.split(line) for line in run(*start, *typed, check=0).stdout.splitlines()]
        named = [c[-4:] if "DynamicErf" in c else c for c in commands]
        assert named[1] == ["--derf_lift", "0.7", "--derf_lift", "0.3"] and len(commands) == 6
        assert all(c[-2:] == ["--derf_lift", "0.3" if "DynamicErf" in c else "0.7"] for c in commands)
        several = run(*start, "--dry_run", "--methods", "derf", "--derf_lift", "0 1", check=0).stdout
        assert "DynamicErf-lift0.0/" in several and several.strip().endswith("--derf_lift 1.0")


DRIVERS = {
    "run_comparison.sh": [DRIVER],
    "windows.py": WINDOWS,
    "run_alpha_sweep.sh": [KIT / "run_alpha_sweep.sh"],
    "quick_sweep_test.sh": [KIT / "quick_sweep_test.sh"],
    "lr_alpha_sweep.sh": [KIT / "lr_alpha_sweep.sh"],
}


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_dry_run_refuses_what_train_py_would_refuse(driver):
    start = [*DRIVERS[driver], "--dry_run", "--demo"]
    for flags, says in (
        (("--epoch", "3"), "--epoch: neither"),
        (("--no_such_flag",), "--no_such_flag: neither"),
        (("--inti", "status"), "--inti: neither"),
        (("--demo=1",), "--demo: ignored explicit argument"),
        (("--mask_ratio", "2"), "--mask_ratio 2.0: must be between 0 and 1"),
        (("--epochs", "ten"), "--epochs: invalid int value: 'ten'"),
        (("--imagenet_dir", "x"), "--demo and --imagenet_dir x: choose one"),
    ):
        result = run(*start, *flags, check=2)
        assert says in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


@pytest.mark.slow
def test_a_dry_run_refuses_options_of_evaluations_and_of_methods():
    for start in ([DRIVER], WINDOWS):
        for flags, says in (
            (("--eval", "finetune", "--finetune_flags", "--epoch 3"), "unrecognized arguments: --epoch 3"),
            (("--eval", "linprobe", "--linprobe_flags=--batch_size 1"), "--batch_size 1: linear probing"),
            (("--methods", "ln adyt-min3"), "--adyt_alpha_min 3.0 --adyt_alpha_max 2.0: need"),
        ):
            result = run(*start, "--dry_run", *flags, check=2)
            assert says in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


@pytest.mark.slow
def test_a_sweep_evaluates_each_encoder_and_each_untrained_one_once(tmp_path):
    """What was typed for --init starts the runs, and no decoder but on its own encoder."""
    start = tmp_path / "weights.pth"
    start.touch()
    typed = ("--demo", "--alphas", "0 1", "--lrs", "1e-3 2e-3", "--init", start, "--output_dir", "o")
    typed += ("--checkpoint_dir", "scratch", "--eval", "decoder knn_mean linprobe", "--knn_flags", "--layers all")
    typed += ("--linprobe_flags=--epochs 3",)
    lines = run(KIT / "run_alpha_sweep.sh", "--dry_run", *typed, check=0).stdout.splitlines()
    commands = [shlex.split(line) for line in lines]
    root = "o/demo-mae-reconstruction-gap/full"
    last = lambda words, flag: words[len(words) - words[::-1].index(flag)]
    runs, evaluations = commands[:4], commands[4:]
    assert all(last(words, "--init") == str(start) for words in runs)
    of = {}
    for words in evaluations:
        task = last(words, "--task") if "--task" in words else "decoder"
        of.setdefault(task, []).append((last(words, "--init"), last(words, "--output_dir")))
        assert last(words, "--checkpoint_dir").startswith("scratch/")
        assert words[-2:] == {"knn": ["--layers", "all"], "linprobe": ["--epochs", "3"]}.get(task, words[-2:])
    folders = [last(words, "--output_dir") for words in runs]
    for task, name in (("decoder", "decoder"), ("knn", "knn_mean"), ("linprobe", "linprobe")):
        trained = {(init, folder) for init, folder in of[task] if init != "untrained"}
        assert trained == {(folder, f"{folder}/{name}") for folder in folders}
        untrained = [folder for init, folder in of[task] if init == "untrained"]
        named = ["LayerNorm_lr0.001_seed0", "LayerNorm_lr0.002_seed0"] if task == "decoder" else ["LayerNorm_seed0"]
        assert untrained == [f"{root}/untrained/{one}/{name}" for one in named]
    checkpoints = [last(words, "--checkpoint_dir") for words in commands]
    assert len(set(checkpoints)) == len(commands) == 4 + 6 + 5 + 5


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_word_status_after_a_flag_is_its_value(driver):
    start = [*DRIVERS[driver], "--dry_run"]
    for flag in ("--mae_dir", "--imagenet_dir", "--wandb_project", "--aa"):
        commands = run(*start, flag, "status", check=0).stdout.splitlines()
        assert commands and all(value(shlex.split(c), flag) == "status" for c in commands)
    assert "error: --init status: no such file or folder" in run(*start, "--init", "status", check=2).stderr
    assert "error: --status: neither" in run(*start, "--status", check=2).stderr


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_dry_run_needs_no_packages(driver, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    bare.chmod(0o755)
    command = [str(part) for part in DRIVERS[driver]]
    if command[0] == sys.executable:
        command[0] = str(bare)
    result = run(*command, "--dry_run", "--demo", "--norms", "ln adyt", env={"PYTHON": str(bare)}, check=0)
    assert "--norm AdaptiveDynamicTanh" in result.stdout and not result.stderr


def test_the_demo_has_an_output_folder_of_its_own():
    assert all(value(c, "--output_dir").startswith("./output_demo/") for c in grid("--demo"))
    assert all(value(c, "--output_dir").startswith("mine/") for c in grid("--demo", "--output_dir", "mine"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--methods", "batchnorm"), "batchnorm: unknown"),
        (("--methods", ""), "--methods: is empty"),
        (("--seeds", " "), "--seeds: is empty"),
        (("--seeds", "0 x"), "--seeds x: must be whole numbers"),
        (("--seeds",), "--seeds: needs a value"),
        (("--eval", "finetune,probe"), "--eval probe: unknown"),
        (("--methods", "ln-alpha2"), "alpha2 is no option of LayerNorm"),
        (("--adyt_lambda", "0.1 x"), "--adyt_lambda x: x is not a number"),
        (("--adyt_smooth", "0.9 1"), "--adyt_smooth 1: must be in [0, 1)"),
        (("--adyt_lambda", "0.1 0.2", "--methods", "ln"), "no AdaptiveDynamicTanh to vary"),
    ],
)
def test_bad_values_of_the_driver_are_one_line_and_exit_code_2(flags, says):
    error = run(DRIVER, *flags, "--dry_run", check=2).stderr
    assert says in error and len(error.strip().splitlines()) == 1


def test_help_shows_the_drivers_and_the_runs_options():
    out = run(DRIVER, "--help", check=0).stdout
    assert "--methods" in out and "--imagenet_dir" in out and "--adyt_lambda" in out


def test_the_lists_of_methods_in_the_banner_are_the_registry():
    banner = DRIVER.read_text().partition("set -euo")[0]
    for name, norm in methods.NORMS.items():
        named = f"{name} ({norm.alias})" if norm.alias not in (name.lower(), methods.NONE) else norm.alias
        assert re.search(rf"{re.escape(named)}[,;]", banner), name


def test_a_length_in_steps_takes_the_place_of_a_sweep_s_epochs():
    for driver in ("run_alpha_sweep.sh", "quick_sweep_test.sh", "lr_alpha_sweep.sh"):
        out = run(KIT / driver, "--demo", "--steps", "300", "--eval", "decoder", "--dry_run", check=0).stdout
        commands = [shlex.split(line) for line in out.splitlines()]
        assert commands and all(value(c, "--steps") == "300" and "--epochs" not in c for c in commands)


@pytest.mark.slow
@pytest.mark.parametrize("driver", [[DRIVER], WINDOWS], ids=["bash", "Windows"])
def test_data_are_checked_for_every_number_of_images_and_of_processes_before_the_first_run(driver, tmp_path):
    start = (*driver, "--demo", "--methods", "ln dyt", "--output_dir", tmp_path / "out", "--batch_size", "48")
    error = run(*start, "--max_images", "32 64", check=2).stderr
    assert "--batch_size 48: the data set has 32 training images" in error
    error = run(*start, "--max_images", "64 100", "--nproc", "2", check=2).stderr
    assert "--accum_iter 1: 96 images a step, the data set has 64" in error
    error = run(*start, "--max_images", "100 200", "--steps", "3", check=2).stderr
    assert "--steps 3: an epoch of the 200 images has 4 steps" in error
    assert not (tmp_path / "out").exists()
