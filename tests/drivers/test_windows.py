"""run_comparison.bat does what run_comparison.sh does: what it hands over to, here; itself, in Wine's cmd.exe.

Wine's cmd takes the Linux interpreter for python.exe by way of a small program, tests/windows/bridge.c. One thing cannot be
tested so: Wine's cmd, unlike Windows', takes a % out of a quoted argument.
"""

import os
import shlex
import shutil
import subprocess
import sys
import warnings

import pytest

from tests.support import KIT, ended, forkserver, run, started_as
from tests.support.gpus import write_nvidia_smi
from tests.support.runs import losses

COMPILER = "x86_64-w64-mingw32-gcc"
QUICK = ("--demo", "--epochs", "2", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
SEVERAL = ["--methods", "ln adyt adyt-max3", "--adyt_lambda", "0.1 1", "--adyt_smooth=0.5 0.99", "--seeds", "0 3"]
WIDE = ["--eval", "linprobe,finetune knn", "--linprobe_flags", "--epochs 3", "--finetune_flags=--epochs 2 --aa none"]
TYPED = [
    [],
    ["--demo"],
    ["--demo", "--epochs=2", "--lr", "1e-3", "--norm_pix_loss", "--control", "--seeds", "0 0 2"],
    ["--norms", "dyt-alpha1e-5 derf", "--seed=7", "--output_dir", "a b/c'd & (x86)!", "--imagenet_dir", 'x $y "z"'],
    [*SEVERAL, "--control", "--adyt_alpha_max", "3"],
    ["--adyt_lambda", "0.3", "--adyt_smooth", "0.5", "--model", "vit_tiny", "--checkpoint_dir", "fast disk/k"],
    [
        *WIDE,
        *shlex.split("--methods 'ln dyt-alpha2' --overwrite --imagenet_dir d --max_images 9 --alpha 1 --device=cpu"),
    ],
    shlex.split("--methods 'dyt adyt-max3 adyt' --control --dyt_alpha_init '0.5 1' --init=untrained --mae_dir status"),
    ["--jobs", "3", "--nproc", "2", "--demo", "--wandb", "--open"],
    ["--wandb_project", "my project", "--eval", "knn"],
    ["--clone_mae", "--methods", "rms"],
]
WRONG = [
    ["--methods", "ln x"],
    ["--methods", ""],
    ["--seeds", "-1"],
    ["--seeds"],
    ["--output_dir", "--demo"],
    ["--jobs", "0"],
    ["--nproc", "two"],
    ["--eval", "mae"],
    ["--adyt_lambda", "1 x"],
    ["--methods", "ln", "--adyt_lambda", "1 2"],
    ["--control", "--adyt_alpha_max", "x"],
    ["--adyt_lambda="],
    ["status", "--output_dir", "nowhere"],
    ["--inti", "status"],
    ["--dry_run", "--mask_ratio", "2"],
    ["--eval", "finetune", "--finetune_flags", "--epoch 3"],
]


def comparison(*words, **options):
    return run(sys.executable, KIT / "maekit/drivers/windows.py", *words, **options)


@pytest.mark.parametrize("words", TYPED, ids=" ".join)
def test_the_same_words_are_the_same_commands(words):
    ours, shells = (
        comparison("--dry_run", *words, check=0),
        run(KIT / "run_comparison.sh", "--dry_run", *words, check=0),
    )
    assert ours.stdout == shells.stdout and ours.stderr == shells.stderr
    assert "train.py" in ours.stdout


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_the_same_words_are_the_same_mistakes(words):
    ours, shells = comparison(*words, check=2), run(KIT / "run_comparison.sh", *words, check=2)
    assert ours.stderr.replace("run_comparison.bat", str(KIT / "run_comparison.sh")) == shells.stderr
    assert ours.stderr.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("build, says", [("None", True), ("'13.0'", False)])
def test_where_a_gpu_is_and_torch_uses_none_the_command_that_installs_another_comes_first(build, says, tmp_path):
    """Of torch, version.py alone stands in for that of Windows; what is trained with is the real one."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"from typing import Optional\n\ncuda: Optional[str] = {build}\n")
    (tmp_path / "torch/__init__.py").write_text(
        f"import sys\nsys.path.remove({str(tmp_path)!r})\ndel sys.modules['torch']\nimport torch\n"
    )
    write_nvidia_smi(tmp_path, "572.16")
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    words = [*QUICK, "--methods", "ln", "--output_dir", tmp_path / "out"]
    said = comparison(*words, cold=True, env=env, check=1).stderr  # --device auto: the GPU is made up
    install = "-m pip install --force-reinstall --no-deps torch torchvision --index-url https://download.pytorch.org/whl/cu128"
    first = said.splitlines()[0]
    assert (
        first.startswith("warning: there is an NVIDIA GPU")
        and first.endswith(f'until you type "{sys.executable}" {install}')
    ) == says
    assert said.count("pip install") == says
    assert "pip install" not in comparison(*words, "--device", "cpu", "--dry_run", cold=True, env=env, check=0).stderr
    assert "pip install" not in comparison(*words, "--device=cpu", cold=True, env=env, check=0).stderr


def test_there_is_no_cluster_on_windows():
    assert "error: --slurm: run_comparison.bat knows no cluster" in comparison("--slurm", "-p gpu", check=2).stderr


@pytest.mark.slow
def test_both_leave_the_same_files(tmp_path):
    """Grids, what was typed, runs, evaluations; and the second start finds all done."""
    words = [*QUICK, "--methods", "ln dyt", "--eval", "knn", "--jobs", "2", "--output_dir", "out"]
    folders = [tmp_path / "ours", tmp_path / "shells"]
    for folder, start in zip(
        folders, ([sys.executable, KIT / "maekit/drivers/windows.py"], [KIT / "run_comparison.sh"])
    ):
        folder.mkdir()
        run(*start, *words, cwd=folder, check=0)
    ours, shells = ([str(p.relative_to(f)) for p in sorted(f.rglob("*")) if "tfevents" not in p.name] for f in folders)
    assert ours == shells
    for name in ("commands.txt", "evaluations.txt"):
        assert (folders[0] / "out" / name).read_text() == (folders[1] / "out" / name).read_text()
    assert (folders[0] / "out/typed.txt").read_text() == f"run_comparison.bat {shlex.join(words)}\n"
    for method in ("LayerNorm", "DynamicTanh"):
        assert losses(folders[0] / "out" / method / "seed0") == losses(folders[1] / "out" / method / "seed0")
    assert ended(comparison(*words, cwd=folders[0], check=0).stdout) == (0, 2 + 4)
    assert len((folders[0] / "out/typed.txt").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def cmd(tmp_path_factory):
    """A function that runs words in Wine's cmd.exe; its env has PYTHON, a Windows program that is this interpreter."""
    if not (shutil.which("wine") and shutil.which(COMPILER)):
        warnings.warn(
            f"run_comparison.bat WAS NOT TESTED in a cmd.exe: wine or {COMPILER} is not installed", stacklevel=1
        )
        pytest.skip(f"no wine, or no {COMPILER}")
    folder = tmp_path_factory.mktemp("wine")
    flags = shlex.split("-municode -O1 -Wall -Werror -o")
    run(COMPILER, *flags, folder / "python.exe", KIT / "tests/windows/bridge.c", check=0)
    start = folder / "host"
    start.write_text(f'#!/bin/sh\nexec {forkserver.python()} {shlex.quote(str(KIT / "tests/windows/host.py"))} "$@"\n')
    start.chmod(0o755)
    (folder / "codes").mkdir()
    (folder / "prefix").mkdir()
    settings = {
        "WINEPREFIX": str(folder / "prefix"),
        "WINEDEBUG": "-all",
        "PYTHON": windows(folder / "python.exe"),
        "BRIDGE": windows(start),
        "BRIDGE_CODES": windows(folder / "codes"),
    }

    without_screen = {name: value for name, value in started_as(())[1].items() if name != "DISPLAY"}
    # One server for all, and its services, which keep what they print to: started here, not by a command that is read from.
    for start in (["wineserver", "-p"], ["wine", "cmd", "/c", "ver"]):
        subprocess.run(
            start,
            env={**without_screen, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=True,
        )

    def run_cmd(*words, cwd, check, env=None):
        env = {**without_screen, **settings, **(env or {})}
        result = subprocess.run(
            ["wine", "cmd", "/c", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert result.returncode == check, f"{words}\n{result.stdout}\n{result.stderr}"
        return result

    yield run_cmd
    subprocess.run(["wineserver", "-k"], env={**os.environ, **settings}, check=False)


BATCH = KIT / "run_comparison.bat"


def windows(path):
    """A path of the host as Wine's programs have it."""
    return "Z:" + str(path).replace("/", "\\")


def test_its_lines_end_as_cmd_wants_them():
    """Labels are missed in a file with Unix line ends; git writes Windows ones in a clone."""
    attributes = run("git", "check-attr", "eol", "run_comparison.bat", check=0).stdout
    assert attributes.strip().endswith("eol: crlf")


@pytest.mark.slow
def test_the_demo_in_cmd_has_the_losses_of_the_shell(cmd, tmp_path):
    words = [*QUICK, "--methods", "ln dyt adyt", "--output_dir", "out (x86) & co"]
    said = cmd(windows(BATCH), *words, cwd=tmp_path, check=0)
    assert "[3/3]" in said.stdout and "report.html" in said.stdout
    run(KIT / "run_comparison.sh", *words[:-1], "shell", cwd=tmp_path, check=0)
    for method in ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"):
        ours = losses(tmp_path / "out (x86) & co" / method / "seed0")
        assert ours == losses(tmp_path / "shell" / method / "seed0") and len(ours) == 2
    assert (tmp_path / "out (x86) & co" / "report.html").exists()
    assert "3 runs: 3 done" in cmd(windows(BATCH), "status", *words[-2:], cwd=tmp_path, check=0).stdout


@pytest.mark.slow
def test_a_run_that_fails_is_listed_last_and_the_exit_code_is_1(cmd, tmp_path):
    (tmp_path / "out/DynamicTanh").mkdir(parents=True)
    (tmp_path / "out/DynamicTanh/seed0").write_text("in the way")
    said = cmd(windows(BATCH), *QUICK, "--methods", "dyt ln", "--output_dir", "out", cwd=tmp_path, check=1)
    assert "failed; the same command tries again:" in said.stderr
    assert "DynamicTanh" in said.stderr.strip().splitlines()[-1] and "report.html" in said.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, means",
    [
        (['"--output_dir=a b (x86) & co!"', "--methods=ln"], ["--output_dir", "a b (x86) & co!", "--methods", "ln"]),
        (['--output_dir "with space\\" --methods ln'], ["--output_dir", "with space", "--methods", "ln"]),
        (["--output_dir C:\\a(x86)\\b --methods ln"], ["--output_dir", "C:\\a(x86)\\b", "--methods", "ln"]),
        (['--methods "ln dyt" --seeds "0 1" --lr=1e-3'], ["--methods", "ln dyt", "--seeds", "0 1", "--lr=1e-3"]),
        (["--clone_mae --demo"], ["--clone_mae", "--demo"]),
    ],
)
def test_words_reach_the_kit_as_they_are_typed(words, means, cmd, tmp_path):
    """Typed in a batch file of the user's own, as at the prompt, but for the last % that Wine takes out."""
    script = tmp_path / "typed.bat"
    script.write_text(f'@echo off\r\n"{windows(BATCH)}" --dry_run {" ".join(words)}\r\n')
    said = cmd(windows(script), cwd=tmp_path, check=0)
    assert said.stdout == comparison("--dry_run", *means, check=0).stdout


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(cmd, tmp_path):
    said = cmd(windows(BATCH), "--output_dir", cwd=tmp_path, check=2)
    assert said.stderr.count("error: --output_dir: needs a value. See run_comparison.bat --help.") == 1
    said = cmd(windows(BATCH), "--imagenet_dir", "no where", "--methods", "ln", cwd=tmp_path, check=2)
    assert said.stderr.count("error: --imagenet_dir no where") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_help_is_the_comment_at_its_top_then_train_py(cmd, tmp_path):
    said = cmd(windows(BATCH), "--help", cwd=tmp_path, check=0).stdout
    assert said.startswith("The norm comparison, run_comparison.sh for the Windows command prompt")
    assert "--control" in said and "--adyt_alpha_max" in said and "rem" not in said.split()


def test_help_names_every_option_of_the_shell_driver():
    said = (run(KIT / "run_comparison.sh", "--help", check=0), comparison("--help", check=0))
    banners = (result.stdout.split("usage: ")[0].split() for result in said)
    shells, ours = ({word.rstrip(",;") for word in words if word.startswith("--")} for words in banners)
    assert ours | {"--slurm"} == shells


@pytest.mark.slow
def test_a_python_that_lacks_a_package_is_named(cmd, tmp_path):
    """PYTHON is what the user chose, so nothing is installed there."""
    bare = tmp_path / "bare"
    bare.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(KIT / "tests/windows/host.py"))} "$@"\n'
    )
    bare.chmod(0o755)
    for words in (["--demo"], ["--demo", "--mae_dir", "status"]):  # the latter a folder's name
        said = cmd(windows(BATCH), *words, cwd=tmp_path, check=2, env={"BRIDGE": windows(bare)})
        assert "error: PYTHON=" in said.stderr and "cannot run the kit" in said.stderr
    said = cmd(windows(BATCH), "--demo", "--dry_run", cwd=tmp_path, check=0, env={"BRIDGE": windows(bare)})
    assert said.stdout.count("train.py") == 3 and not said.stderr


@pytest.mark.slow
def test_a_run_is_the_same_where_processes_are_spawned(tmp_path):
    """As on Windows and macOS; with a cache to make, workers, and every probe."""
    script = tmp_path / "spawn.py"
    script.write_text(f"""
import multiprocessing, sys
sys.path.insert(0, {str(KIT)!r})
import train

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(train.main(sys.argv[1:]))
""")
    flags = (*QUICK[:-1], "2", "--alpha", "0.1", "--probes", "all", "--output_dir")
    env = {"OMP_NUM_THREADS": "1"}
    run(sys.executable, script, *flags, tmp_path / "spawned", "--cache", tmp_path / "cache", env=env, check=0)
    run(sys.executable, KIT / "train.py", *flags, tmp_path / "plain", env=env, check=0)
    assert losses(tmp_path / "spawned") == losses(tmp_path / "plain")
