"""run_alpha_sweep.sh and its presets, as a user types them."""

import json
import os
import re
import shlex
import signal
import time

import pytest

from maekit.machine import available_cores
from maekit.runs import measures
from maekit.runs.trajectories import read_trajectories
from maekit.settings import recipes
from tests.support import KIT, ended, forkserver, run
from tests.support.processes import processes, start

SWEEP, QUICK, RATES = (KIT / f"{name}.sh" for name in ("run_alpha_sweep", "quick_sweep_test", "lr_alpha_sweep"))
THE_SEEDS_ALPHAS = shlex.split("-10.0 -5.0 -2.0 -1.0 -0.5 -0.1 -0.05 -0.01 -0.005 -0.001 -0.0001 -0.00001")
THE_SEEDS_ALPHAS += shlex.split("0.0 0.00001 0.0001 0.001 0.005 0.01 0.05 0.1 0.5 1.0 2.0 5.0 10.0")
SMALL = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0")


def grid(driver, *flags, **options):
    """Commands of a dry run as {flag: value}, split as a shell splits them."""
    lines = run(driver, *flags, "--dry_run", check=0, **options).stdout.strip().splitlines()
    commands = [shlex.split(line) for line in lines]
    assert all(c[0] == forkserver.python() and c[1] == str(KIT / "train.py") for c in commands)
    return [flags_of(c[2:]) for c in commands]


def flags_of(words):
    """{flag: value}; None for a flag without one. No flag may come twice."""
    found = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            assert word not in found, word
            found[word] = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else None
    return found


def test_the_full_sweep_is_the_seeds_25_alphas_in_its_order():
    commands = grid(SWEEP)
    assert [c["--alpha"] for c in commands] == THE_SEEDS_ALPHAS
    for c in commands:
        assert (c["--epochs"], c["--batch_size"], c["--lr"], c["--seed"]) == ("50", "512", "0.00015", "0")
        assert (c["--model"], c["--decoder_type"], c["--norm"]) == ("vit_tiny", "base-8b", "LayerNorm")
        assert (c["--hf_dataset"], c["--hf_config"], c["--probes"]) == ("frgfm/imagenette", "320px", "all")
        assert int(c["--num_workers"]) == min(16, available_cores())
        run_ = "LayerNorm_lr0.00015_seed0"
        assert c["--output_dir"] == f"outputs/imagenette-mae-reconstruction-gap/full/{c['--alpha']}/{run_}"
        assert c["--checkpoint_dir"] == f"outputs/checkpoints/full/vit_tiny_base-8b_alpha-{c['--alpha']}_{run_}"


@pytest.mark.slow
def test_the_presets_are_the_seeds():
    quick = grid(QUICK)
    assert [c["--alpha"] for c in quick] == ["-0.5", "0.0", "0.5"]
    assert {(c["--epochs"], c["--batch_size"], c["--lr"]) for c in quick} == {("10", "64", "0.00015")}
    rates = grid(RATES)
    assert [(c["--lr"], c["--alpha"]) for c in rates] == [
        (lr, a) for lr in ("0.001", "0.0001") for a in ("-0.5", "0.0", "0.5")
    ]
    assert {(c["--epochs"], c["--batch_size"]) for c in rates} == {("10", "64")}
    folders = {c["--output_dir"] for c in [*quick, *rates, *grid(SWEEP)]}
    assert len(folders) == 3 + 6 + 25, "sweeps must not share folders"


@pytest.mark.slow
def test_what_the_demo_sets_is_left_to_it_and_the_grid_stays_the_sweeps():
    commands = grid(SWEEP, "--demo")
    assert [c["--alpha"] for c in commands] == THE_SEEDS_ALPHAS
    for c in commands:
        assert "--demo" in c and c["--epochs"] == "50" and c["--lr"] == str(recipes.DEMO["lr"])
        assert not {"--model", "--decoder_type", "--batch_size", "--hf_dataset", "--num_workers"} & set(c)
        assert c["--output_dir"].startswith("outputs/demo-mae-reconstruction-gap/full/")
        assert c["--checkpoint_dir"].startswith("outputs/checkpoints/demo-full/")
    assert {c["--lr"] for c in grid(RATES, "--demo")} == {"0.001", "0.0001"}
    typed = grid(SWEEP, "--demo", "--model", "vit_tiny", "--batch_size", "8")[0]
    assert typed["--model"] == "vit_tiny" and typed["--batch_size"] == "8"


@pytest.mark.slow
def test_what_is_typed_wins_and_reaches_every_command():
    lists = ("--alphas=0 1e-5 -2", "--lrs", "1e-3", "--seeds", "0 1", "--norms", "ln dyt")
    flags = ("--epochs", "3", "--imagenet_dir", "a b/$x", "--name", "mine", "--mask_ratio", "0.5")
    commands = grid(QUICK, *lists, *flags, "--output_dir", "my out")
    expected = [(a, n, s) for a in ("0.0", "0.00001", "-2.0") for n in ("LayerNorm", "DynamicTanh") for s in "01"]
    assert [(c["--alpha"], c["--norm"], c["--seed"]) for c in commands] == expected
    for c in commands:
        assert c["--imagenet_dir"] == "a b/$x" and "--hf_dataset" not in c and c["--mask_ratio"] == "0.5"
        assert c["--epochs"] == "3" and c["--output_dir"].startswith("my out/_x-mae-reconstruction-gap/mine/")
    assert grid(QUICK, "--hf_dataset", "a/b")[0]["--hf_dataset"] == "a/b"
    folders = [c["--checkpoint_dir"] for c in grid(QUICK, "--checkpoint_dir", "/fast disk")]
    assert len(set(folders)) == 3 and all(f.startswith("/fast disk/vit_tiny_base-8b_alpha-") for f in folders)
    words = shlex.split(run(QUICK, "--hf_config", "160px", "--dry_run", check=0).stdout.splitlines()[0])
    assert words[len(words) - words[::-1].index("--hf_config")] == "160px"  # the last one counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "data", "sweep"),
    [
        ((), "imagenette", "quick"),
        (("--hf_dataset", "frgfm/imagenette", "--hf_config", "320px"), "imagenette", "quick"),
        (("--hf_dataset", "frgfm/imagenette", "--hf_config", "160px"), "imagenette-160px", "imagenette-160px-quick"),
        (("--hf_dataset", "a/tiny-imagenette"), "tiny-imagenette", "tiny-imagenette-quick"),
        (("--imagenet_dir", "/data/ILSVRC/"), "ILSVRC", "ILSVRC-quick"),
        (("--imagenet_dir=my photos (1)/Ünder",), "Ünder", "Ünder-quick"),
        (("--imagenet_dir", "../my photos (1)"), "my_photos_1_", "my_photos_1_-quick"),
        (("--demo",), "demo", "demo-quick"),
    ],
    ids=str,
)
def test_folders_are_named_after_the_data(flags, data, sweep):
    (c,) = grid(QUICK, "--alphas", "0.5", *flags)
    assert c["--output_dir"].startswith(f"outputs/{data}-mae-reconstruction-gap/quick/0.5/")
    assert c["--checkpoint_dir"].startswith(f"outputs/checkpoints/{sweep}/")
    typed = grid(QUICK, "--alphas", "0.5", "--checkpoint_dir", "fast", *flags)[0]["--checkpoint_dir"]
    own = "" if data in ("imagenette", "demo") else f"{data}/"
    assert typed.startswith(f"fast/{own}{c['--checkpoint_dir'].split('/')[-1]}")


@pytest.mark.slow
def test_a_sweep_of_other_data_that_was_in_imagenettes_folder_goes_on_there(ilsvrc, tmp_path):
    flags = ("--alphas", "0.5", "--epochs", "2", "--batch_size", "8", "--model", "mae_vit_demo_patch8")
    flags += ("--input_size", "32", "--decoder_type", "linear", "--probes", "none", "--num_workers", "0")
    run(QUICK, "--imagenet_dir", ilsvrc, *flags, cwd=tmp_path, check=0)
    outputs = tmp_path / "outputs"
    old, new = (outputs / f"{data}-mae-reconstruction-gap" for data in ("imagenette", "ILSVRC"))
    new.rename(old)  # as it was
    (outputs / "checkpoints/ILSVRC-quick").rename(outputs / "checkpoints/quick")
    link = tmp_path / "same"
    link.symlink_to(ilsvrc)
    again = run(QUICK, "--imagenet_dir", "same", *flags, cwd=tmp_path, check=0)
    assert ended(again.stdout) == (0, 1) and not new.exists()
    assert again.stderr.startswith("outputs/imagenette-mae-reconstruction-gap/quick: holds runs of these data")
    assert "1 done" in run(QUICK, "status", "--imagenet_dir", ilsvrc, cwd=tmp_path, check=0).stdout
    other = run(QUICK, "--imagenet_dir", "/other/ILSVRC", "--dry_run", cwd=tmp_path, check=0)
    assert f"quick: holds runs of --imagenet_dir {ilsvrc}; the runs of ILSVRC are in outputs/ILSVRC-mae" in other.stderr
    assert other.stderr.count("\n") == 1 and "/ILSVRC-mae-reconstruction-gap/" in other.stdout


@pytest.mark.slow
def test_the_seeds_variables_are_defaults():
    env = {"BATCH_SIZE": "7", "NUM_WORKERS": "1"}
    for driver in (SWEEP, QUICK, RATES):
        first = grid(driver, env=env)[0]
        assert (first["--batch_size"], first["--num_workers"]) == ("7", "1")
    assert grid(QUICK, "--batch_size", "9", env=env)[0]["--batch_size"] == "9"


def test_duplicate_points_are_dropped_with_a_notice():
    result = run(SWEEP, "--alphas", "0.5 5e-1 -0 0.0", "--lrs", "1e-3 0.001", "--dry_run", check=0)
    assert len(result.stdout.strip().splitlines()) == 2
    assert [line.split(":")[0] for line in result.stderr.strip().splitlines()] == ["--alphas", "--alphas", "--lrs"]
    assert "5e-1 is there twice, run once" in result.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--alphas", "0.5 much"), "--alphas much: is not a number"),
        (("--alphas", "nan"), "--alphas nan: must be finite"),
        (("--alphas", ""), "--alphas: is empty"),
        (("--lrs", "fast"), "--lrs fast: is not a number"),
        (("--lrs", "-1e-3"), "--lrs -1e-3: must be positive"),
        (("--lrs", "0"), "--lrs 0: must be positive"),
        (("--lrs", ""), "--lrs: is empty"),
        (("--lrs=", "--demo"), "--lrs: is empty"),
        (("--output_dir", ""), "--output_dir: is empty"),
        (("--norms", "batchnorm"), "batchnorm: unknown"),
        (("--seeds", "1.5"), "--seeds 1.5: must be whole numbers"),
        (("--alphas",), "--alphas: needs a value"),
        (("--epochs", "--demo"), "--epochs: needs a value"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(flags, says):
    error = run(SWEEP, *flags, "--dry_run", check=2).stderr
    assert says in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_bad_input_is_said_once_before_the_first_run(tmp_path):
    for flags in (
        ("--imagenet_dir", tmp_path / "none"),
        ("--demo", "--no_such_flag"),
        ("--demo", "--imagenet_dir", "x"),
        ("--hf_dataset", tmp_path),
        ("--demo", "--epochs", "ten"),
    ):
        result = run(QUICK, *flags, "--output_dir", tmp_path / "out", check=2)
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "[1/3]" not in result.stdout and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_images_without_labels_are_said_once_before_the_first_run(ilsvrc, tmp_path):
    (tmp_path / "ILSVRC").symlink_to(ilsvrc)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/Data").symlink_to(ilsvrc / "Data")  # without LOC_val_solution.csv
    result = run(QUICK, "--imagenet_dir", tmp_path / "copy", "--batch_size", "4", check=2, cwd=tmp_path)
    assert "have no labels" in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("driver", [SWEEP, QUICK, RATES], ids=lambda d: d.name)
def test_help_shows_the_sweeps_and_the_runs_options(driver):
    out = run(driver, "--help", check=0).stdout
    assert "--alphas" in out and "--hf_dataset" in out and "--mask_ratio" in out
    assert re.search(r"^Here: --name (full|quick|lr) ", out, re.MULTILINE)


@pytest.mark.slow
def test_a_small_sweep_from_commands_to_figures_and_its_rerun(tmp_path):
    flags = (*SMALL, "--alphas", "-0.5 0.5", "--output_dir", tmp_path)
    out = run(QUICK, *flags, check=0).stdout
    root = tmp_path / "demo-mae-reconstruction-gap/quick"
    lines = (root / "commands.txt").read_text().splitlines()
    assert len(lines) == 2 and all("--alpha" in line for line in lines)
    assert ended(out) == (2, 0)
    found, problems = read_trajectories(root)
    assert [f["alpha"] for f in found] == [-0.5, 0.5] and not problems
    columns = [column for name, column in measures.ACCURACIES.items() if name != "joint_mean"]  # --joint_readout mean
    assert all(point[column] is not None for f in found for point in f["trajectory"] for column in columns)
    assert (tmp_path / "analysis_demo-quick/tube_scatter_signed_alpha_frozen.pdf").exists()
    assert len(list((tmp_path / "checkpoints/demo-quick").glob("*/checkpoint.pth"))) == 2
    anew = ("commands.txt", "output.txt")
    before = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file() and f.name not in anew}
    assert ended(run(QUICK, *flags, check=0).stdout) == (0, 2)
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.slow
def test_a_failed_point_does_not_stop_the_rest_and_is_listed_last(tmp_path):
    root = tmp_path / "demo-mae-reconstruction-gap/quick"
    (root / "-0.5").mkdir(parents=True)
    (root / "-0.5/LayerNorm_lr0.004_seed0").write_text("in the way")
    result = run(QUICK, *SMALL, "--alphas", "-0.5 0.5", "--output_dir", tmp_path, check=1)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("exit code 2:") and "--alpha -0.5" in last
    assert (root / "0.5/LayerNorm_lr0.004_seed0/summary.json").exists()
    assert (tmp_path / "analysis_demo-quick/gap_table.csv").exists()


@pytest.mark.slow
def test_a_point_that_diverges_is_a_result_of_the_sweep(tmp_path):
    flags = (*SMALL, "--epochs", "2", "--alphas", "-10 0.5", "--lrs", "1e3 4e-3", "--output_dir", tmp_path)
    out = run(QUICK, *flags, check=0).stdout
    statistics = json.loads((tmp_path / "analysis_demo-quick/gap_statistics.json").read_text())
    assert any("-10.0/LayerNorm_lr1000.0_seed0" in path for path in statistics["diverged"])
    assert re.search(r"-10.0/LayerNorm_lr1000.0_seed0: diverged, \d finite epoch", out)


def wait_for(file, driver):
    while not file.exists():
        assert driver.poll() is None
        time.sleep(0.02)


POINTS = shlex.split("--demo --epochs 8 --max_images 64 --batch_size 32 --num_workers 0 --probes frozen")
POINTS += ["--alphas", "0.1 0.5", "--jobs", "2"]  # a process each, whatever memory is free


@pytest.mark.slow
def test_a_point_killed_in_the_middle_of_a_sweep_keeps_its_epochs_and_the_rerun_completes_it(tmp_path):
    root = tmp_path / "demo-mae-reconstruction-gap/quick"
    first, second = (root / a / "LayerNorm_lr0.004_seed0" for a in ("0.1", "0.5"))
    weights = tmp_path / "checkpoints/demo-quick/demo_alpha-0.1_LayerNorm_lr0.004_seed0/checkpoint.pth"
    with start((QUICK, *POINTS, "--output_dir", tmp_path), cold=True) as driver:  # which sees the process itself killed
        wait_for(weights, driver)
        (of_first,) = processes(f"--output_dir {first}")
        os.kill(of_first, signal.SIGKILL)
        out = driver.communicate(timeout=120)[0]
    assert driver.returncode == 1 and out.strip().splitlines()[-1].startswith("exit code 137"), out
    trajectory = json.loads((first / "trajectory.json").read_text())
    kept = trajectory["trajectory"]
    assert trajectory["status"] == "running" and 1 <= len(kept) < 8
    assert [p["epoch"] for p in kept] == list(range(len(kept)))
    assert json.loads((second / "trajectory.json").read_text())["status"] == "finished"
    assert f"{first}: not ended, {len(kept)} finite epoch" in out
    run(QUICK, *POINTS, "--output_dir", tmp_path, check=0)
    whole = json.loads((first / "trajectory.json").read_text())
    assert whole["status"] == "finished" and len(whole["trajectory"]) == 8
    assert whole["trajectory"][: len(kept) - 1] == kept[:-1]


@pytest.mark.slow
def test_ctrl_c_stops_the_sweep_with_a_count_and_leaves_no_process(tmp_path):
    second = tmp_path / "checkpoints/demo-quick/demo_alpha-0.5_LayerNorm_lr0.004_seed0/checkpoint.pth"
    flags = [*POINTS, "--jobs", "1"]
    with start((QUICK, *flags, "--output_dir", tmp_path)) as driver:
        wait_for(second, driver)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130 and "stopped: 1 of 2 done, 0 failed" in out and "Traceback" not in out
    for _ in range(50):
        if not processes(str(tmp_path)):
            break
        time.sleep(0.1)
    assert not processes(str(tmp_path))
