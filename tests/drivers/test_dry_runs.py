"""run_comparison.sh and the environment it runs in, as a user types them."""

import csv
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile

import pytest

from maekit import files
from maekit.settings import methods
from tests.support import KIT, ended, run

DRIVER = KIT / "run_comparison.sh"
WINDOWS = [sys.executable, KIT / "maekit/drivers/windows.py"]
QUICK = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "32", "--num_workers", "0")


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


def test_a_method_has_the_options_of_the_table(tmp_path):
    """One row more there, and the drivers know it: in names, as a list of values, and for evaluations."""
    shutil.copytree(KIT / "maekit", tmp_path / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DRIVER, tmp_path)
    table = tmp_path / "maekit/settings/methods.py"
    text, row = table.read_text(), '"DynamicErf": Norm("derf", "#009E73", (0, (1, 1))'
    assert row in text
    table.write_text(text.replace(row, row + ', (Option("shift", "derf_shift", "shift", 0.0, "DynamicErf: shift"),)'))
    for start in ([tmp_path / "run_comparison.sh"], [sys.executable, tmp_path / "maekit/drivers/windows.py"]):
        typed = ["--dry_run", "--methods", "ln derf-shift0.3", "--derf_shift", "0.7", "--eval", "knn"]
        commands = [shlex.split(line) for line in run(*start, *typed, check=0).stdout.splitlines()]
        named = [c[-4:] if "DynamicErf" in c else c for c in commands]
        assert named[1] == ["--derf_shift", "0.7", "--derf_shift", "0.3"] and len(commands) == 6
        assert all(c[-2:] == ["--derf_shift", "0.3" if "DynamicErf" in c else "0.7"] for c in commands)
        several = run(*start, "--dry_run", "--methods", "derf", "--derf_shift", "0 1", check=0).stdout
        assert "DynamicErf-shift0.0/" in several and several.strip().endswith("--derf_shift 1.0")


DRIVERS = {
    "run_comparison.sh": [DRIVER],
    "windows.py": WINDOWS,
    "run_alpha_sweep.sh": [KIT / "run_alpha_sweep.sh"],
    "quick_sweep_test.sh": [KIT / "quick_sweep_test.sh"],
    "lr_alpha_sweep.sh": [KIT / "lr_alpha_sweep.sh"],
}


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


def test_a_dry_run_refuses_options_of_evaluations_and_of_methods():
    for start in ([DRIVER], WINDOWS):
        for flags, says in (
            (("--eval", "finetune", "--finetune_flags", "--epoch 3"), "unrecognized arguments: --epoch 3"),
            (("--eval", "linprobe", "--linprobe_flags=--batch_size 1"), "--batch_size 1: linear probing"),
            (("--methods", "ln adyt-min3"), "--adyt_alpha_min 3.0 --adyt_alpha_max 2.0: need"),
        ):
            result = run(*start, "--dry_run", *flags, check=2)
            assert says in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


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


@pytest.mark.slow
def test_methods_with_options_run_side_by_side_are_counted_and_not_repeated(tmp_path):
    methods = ("--methods", "adyt", "--adyt_lambda", "0.01 0.5", "--control")
    flags = (*QUICK, *methods, "--output_dir", tmp_path, "--jobs", "2")
    run(DRIVER, *flags, check=0)
    names = ("AdaptiveDynamicTanh-lambda0.01", "AdaptiveDynamicTanh-lambda0.5", "DynamicTanh-alpha2.0")
    for name, flag, expected in zip(names, ("adyt_lambda", "adyt_lambda", "dyt_alpha_init"), (0.01, 0.5, 2.0)):
        assert json.loads((tmp_path / name / "seed0/config.json").read_text())["identity"][flag] == expected
    with open(tmp_path / "comparison_table.csv", newline="") as f:
        table = {row["model"]: float(row["val_mse"]) for row in csv.DictReader(f)}
    assert set(table) == set(names) and len(set(table.values())) == 3  # the options change the run
    assert "3 done" in run(DRIVER, "status", *flags, check=0).stdout
    assert ended(run(DRIVER, *flags, "--jobs", "1", check=0).stdout) == (0, 3)
    assert (tmp_path / "typed.txt").read_text().count("run_comparison.sh") == 2  # both commands
    assert "run_comparison.sh" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_comparison_goes_on_to_evaluations_and_repeats_none(tmp_path):
    """Pre-trained and untrained, for two seeds; a column each, and their difference paired by seed."""
    evaluations = ("--eval", "linprobe", "--linprobe_flags", "--epochs 1 --batch_size 16")
    flags = (*QUICK, "--methods", "dyt", "--seeds", "0 1 2", *evaluations, "--output_dir", tmp_path)
    result = run(DRIVER, *flags, check=0)
    with open(tmp_path / "comparison_table.csv", newline="") as f:
        table = {(row["model"], row["seed"]): row for row in csv.DictReader(f)}
    for (method, seed), row in table.items():
        for name in ("linprobe", "untrained_linprobe"):
            if seed.isdecimal():
                summary = json.loads((tmp_path / method / f"seed{seed}" / name / "summary.json").read_text())
                assert float(row[f"{name}_accuracy"]) == summary["acc1"]
                assert summary["task"] in name and summary["status"] == "finished"
    differences = [
        float(table["DynamicTanh", seed]["linprobe_accuracy"])
        - float(table["DynamicTanh", seed]["untrained_linprobe_accuracy"])
        for seed in "012"
    ]
    mean, half = statistics.mean(differences), 4.302653 * statistics.stdev(differences) / math.sqrt(3)
    line = next(text for text in result.stdout.splitlines() if "DynamicTanh linprobe" in text)
    assert f"{mean:+.1f} (95 %: {mean - half:+.1f} to {mean + half:+.1f}), n = 3" in line
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"evaluation_comparison.{suffix}").stat().st_size > 5000
    assert "not a fair comparison" not in result.stdout

    assert ended(run(DRIVER, *flags, check=0).stdout) == (0, 3 + 6)


@pytest.mark.slow
def test_the_encoder_of_a_run_that_diverged_is_shown_as_such(tmp_path):
    flags = shlex.split("--batch_size 8 --methods ln --lr 1e18 --eval knn")
    result = run(DRIVER, *QUICK, *flags, "--output_dir", tmp_path, check=0)
    assert "has diverged in its first epoch, there is nothing to evaluate" in result.stdout
    assert "untrained_knn_accuracy" in (tmp_path / "comparison_table.csv").read_text().splitlines()[0]


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


@pytest.mark.slow
def test_bad_input_is_said_once_before_the_first_run(tmp_path):
    for flags in (("--imagenet_dir", tmp_path / "none"), ("--no_such_flag",), ("--demo", "--lr", "-1")):
        result = run(DRIVER, *flags, "--output_dir", tmp_path / "out", check=2)
        assert len(result.stderr.strip().splitlines()) == 1 and "[1/3]" not in result.stdout
    assert not (tmp_path / "out").exists()


def test_help_shows_the_drivers_and_the_runs_options():
    out = run(DRIVER, "--help", check=0).stdout
    assert "--methods" in out and "--imagenet_dir" in out and "--adyt_lambda" in out


@pytest.mark.slow
def test_one_failed_method_does_not_stop_the_others_and_is_listed_last(tmp_path):
    blocked = tmp_path / "LayerNorm"
    blocked.mkdir()
    (blocked / "seed0").write_text("in the way")
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=1)
    for method in ("DynamicTanh", "AdaptiveDynamicTanh"):
        assert json.loads((tmp_path / method / "seed0/summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "loss_comparison.png").exists()
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("exit code 2:") and "--norm LayerNorm" in last

    (blocked / "seed0").unlink()  # out of the way: the same command trains what is missing, and only that
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=0)
    assert ended(result.stdout) == (1, 2)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.pth")}
    result = run(DRIVER, *QUICK, "--output_dir", tmp_path, check=0)
    assert ended(result.stdout) == (0, 3)
    assert kept == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.pth")}


@pytest.mark.slow
def test_when_every_run_fails_each_is_listed(tmp_path):
    for method in ("LayerNorm", "DynamicTanh"):
        (tmp_path / method).write_text("in the way")
    result = run(DRIVER, *QUICK, "--methods", "ln dyt", "--output_dir", tmp_path, check=1)
    assert [line.split(":")[0] for line in result.stderr.strip().splitlines()[-2:]] == ["exit code 2"] * 2


@pytest.mark.slow
def test_imagenet_as_kaggle_lays_it_out(ilsvrc, tmp_path):
    """Wnid folders, flat val, LOC_val_solution.csv, photographs at full size; the README's second command, shortened."""
    flags = shlex.split("--epochs 1 --max_images 64 --batch_size 16 --model mae_vit_tiny_patch16")
    run(DRIVER, "--imagenet_dir", ilsvrc, *flags, "--output_dir", tmp_path, check=0)
    for method in ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"):
        config = json.loads((tmp_path / method / "seed0/config.json").read_text())
        assert config["data"]["source"] == "ILSVRC" and config["data"]["classes"] == 3
        (row,) = files.read_csv(tmp_path / method / "seed0/log.csv")
        assert 0 < row["val_mse"] < 10
    assert (tmp_path / "reconstruction_comparison.pdf").exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_driver_and_its_run(tmp_path):
    flags = shlex.split("--demo --epochs 200 --max_images 64 --num_workers 1 --jobs 1")
    command = [DRIVER, *flags, "--output_dir", tmp_path]
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHON": sys.executable},
    ) as driver:
        while not (tmp_path / "LayerNorm/seed0/checkpoint.pth").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        out = driver.communicate(timeout=60)[0].decode()
    assert driver.returncode == 130 and "stopped: 0 of 3 done, 0 failed; the same command goes on from there" in out
    assert not (tmp_path / "DynamicTanh").exists()
    for _ in range(50):
        left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left


@pytest.mark.slow
class TestEnvironment:
    """Real virtual environments, of one small package in place of torch and its friends, from a folder in place of PyPI."""

    USE = 'set -eu; KIT=$1; . "$KIT/maekit/drivers/env.sh"; use_environment; echo "python: $PYTHON"'

    @pytest.fixture(scope="class")
    @classmethod
    def wheels(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("wheels")
        for version in ("1.0.0", "0.12.1"):
            about = f"toolz-{version}.dist-info"
            parts = {
                "toolz/__init__.py": f"__version__ = '{version}'\n",
                f"{about}/METADATA": f"Metadata-Version: 2.1\nName: toolz\nVersion: {version}\n",
                f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            }
            with zipfile.ZipFile(folder / f"toolz-{version}-py3-none-any.whl", "w") as wheel:
                for name, text in parts.items():
                    wheel.writestr(name, text)
                wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*parts, f"{about}/RECORD")))
        return folder

    @pytest.fixture
    def kit(self, tmp_path, wheels, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
        kit = tmp_path / "a kit"
        shutil.copytree(KIT / "maekit", kit / "maekit", ignore=shutil.ignore_patterns("__pycache__"))
        (kit / "requirements.txt").write_text("toolz >= 0.12\nsomething-else  # optional\n")
        (kit / "requirements-frozen.txt").write_text("toolz==1.0.0\n")
        return kit

    def use(self, kit, **env):
        without = {**os.environ, **env}
        for name in {"PYTHON", "CI", "PYTHONPATH"} - set(env):
            without.pop(name, None)
        return subprocess.run(
            ["bash", "-c", self.USE, "-", kit], env=without, capture_output=True, text=True, check=False
        )

    def test_it_is_made_once_and_again_when_the_pins_change(self, kit):
        first = self.use(kit)
        assert first.returncode == 0 and "making" in first.stderr and "toolz" in first.stderr, first.stderr
        assert f"python: {kit}/.venv/bin/python" in first.stdout
        again = self.use(kit)
        assert again.returncode == 0 and "making" not in again.stderr and again.stdout == first.stdout
        (kit / "requirements-frozen.txt").write_text("toolz==0.12.1\n")
        assert "toolz-0.12.1" in self.use(kit).stderr
        assert "making" in self.use(kit, CI="true").stderr  # always fresh there

    def test_killed_in_the_middle_it_is_made_anew(self, kit):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CI", "PYTHONPATH")}
        with subprocess.Popen(
            ["bash", "-c", self.USE, "-", kit],
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as making:
            while not (kit / ".venv/bin/python").exists():
                assert making.poll() is None
                time.sleep(0.01)
            os.killpg(making.pid, signal.SIGKILL)
        assert not (kit / ".venv/made-from").exists()
        assert self.use(kit).returncode == 0 and (kit / ".venv/made-from").exists()

    def test_two_drivers_at_once_make_one(self, kit):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "CI", "PYTHONPATH")}
        both = [
            subprocess.Popen(["bash", "-c", self.USE, "-", kit], env=env, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        errors = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        assert sum("making" in error for error in errors) == 1
        assert not (kit / ".venv.lock").exists()

    def test_an_interpreter_named_by_hand_must_have_the_packages(self, kit):
        result = self.use(kit, PYTHON=sys.executable)
        assert result.returncode == 2 and "toolz is not installed" in result.stderr
        assert f"PYTHON={sys.executable} cannot run the kit" in result.stderr
        (kit / "requirements.txt").write_text("pillow >= 1\n")
        assert self.use(kit, PYTHON=sys.executable).stdout == f"python: {sys.executable}\n"

    def test_versions_out_of_range_do_not_suffice(self, kit):
        (kit / "requirements.txt").write_text("pillow >= 999\n")
        assert "is not >= 999" in self.use(kit, PYTHON=sys.executable).stderr

    def test_a_frozen_file_that_cannot_be_installed_is_said(self, kit):
        (kit / "requirements-frozen.txt").write_text("toolz==999\n")
        result = self.use(kit)
        assert result.returncode == 2 and "error: installing requirements-frozen.txt failed" in result.stderr
        assert not (kit / ".venv.lock").exists()


def test_the_frozen_file_pins_every_package_of_the_ranges_for_all_systems():
    frozen = (KIT / "requirements-frozen.txt").read_text()
    for line in (KIT / "requirements.txt").read_text().splitlines():
        name = line.split()[0] if line and not line.startswith("#") else None
        assert name is None or f"\n{name}==" in frozen, name
    assert "nvidia-cublas" in frozen and "sys_platform == 'linux'" in frozen and "torch==2.13" not in frozen


def test_the_lists_of_methods_in_the_banner_are_the_registry():
    banner = DRIVER.read_text().partition("set -euo")[0]
    assert all(f"{name} ({norm.alias})" in banner for name, norm in methods.NORMS.items())
