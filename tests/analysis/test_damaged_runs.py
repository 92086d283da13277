"""Files of runs damaged at random: analysis.py leaves such a run out by name, uses the others, or ends with one line."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest

from maekit.files import Damaged, read_csv, read_json
from maekit.runs import contents
from maekit.runs.folder import RunFolder
from maekit.runs.reading import load_runs
from maekit.runs.trajectories import load_trajectories, read_trajectories
from tests.support import KIT, analyse_here, run, train_here
from tests.support.damage import damaged_bytes, damaged_json, damaged_table, how_many

TINY = ("--demo", "--model", "enc16d1h2p16", "--decoder_type", "dec16d1h2", "--input_size", 32, "--max_images", 64)
QUICK = (
    *TINY,
    "--epochs",
    2,
    "--batch_size",
    32,
    "--num_workers",
    0,
    "--norm",
    "adyt",
    "--alpha",
    0.5,
    "--probes",
    "all",
)
OF_A_RUN = {
    "config.json": damaged_json,
    "summary.json": damaged_json,
    "trajectory.json": damaged_json,
    "status.json": damaged_json,
    "log.csv": damaged_table,
    "norm_alpha.csv": damaged_table,
    "accuracy_by_class.csv": damaged_table,
    "reconstructions.npz": damaged_bytes,
    "features.npz": damaged_bytes,
    "knn/config.json": damaged_json,
    "knn/summary.json": damaged_json,
    "knn/accuracy_by_layer.csv": damaged_table,
}
SEEDS = 40  # of a tree: two are whole, of each other one file is damaged


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run and a k-NN of its encoder, with all files that an analysis reads."""
    root = tmp_path_factory.mktemp("sound") / "run"
    train_here(*QUICK, "--output_dir", root, check=0)
    knn = ("--task", "knn", "--layers", "all", "--init", root, "--output_dir", root / "knn")
    train_here("--demo", "--max_images", 64, "--batch_size", 32, "--num_workers", 0, *knn, check=0)
    for file in (*root.rglob("checkpoint*"), *root.rglob("*.p[nd]*"), root / "run.lock"):
        file.unlink(missing_ok=True)
    assert all((root / name).is_file() for name in OF_A_RUN)
    return root


def of_seed(sound, root, seed):
    """A copy of the sound run as if it had another seed and alpha."""
    folder = shutil.copytree(sound, root / "adyt" / f"seed{seed}")
    alpha = (-0.5, 0.0, 0.5)[seed % 3]
    for file in (folder / name for name in OF_A_RUN if name.endswith(".json")):
        value = json.loads(file.read_text())
        for part in (value, value.get("identity", {}), *value.get("trajectory", ())):
            part.update({name: new for name, new in (("seed", seed), ("alpha", alpha)) if name in part})
        for i, point in enumerate(value.get("trajectory", ())):
            point.update(mse=0.8 - 0.1 * i - 0.001 * seed, accuracy=20.0 + seed + i)
        file.write_text(json.dumps(value, indent=1))
    return folder


def damaged(sound, root, rng):
    """A tree of runs of which all but two have a damaged file: {file: what is said of the run, None if nothing is}."""
    said = {}
    for seed in range(SEEDS):
        folder = of_seed(sound, root, seed)
        if seed < 2:
            continue
        name = list(OF_A_RUN)[rng.integers(len(OF_A_RUN))]
        file, damage = folder / name, OF_A_RUN[name]
        content = file.read_bytes()
        file.write_bytes(damage(content if damage is damaged_bytes else content.decode(), rng))
        said[file] = complaint(file)
    return said


def complaint(file):
    """What the reader of a file says of it, None if nothing; it raises nothing but Damaged."""
    name, folder = file.name, RunFolder(file.parent)
    readers = {
        "config.json": contents.read_config,
        "summary.json": lambda file: contents.read_summary(file, json.loads(folder.config.read_text())["identity"]),
        "log.csv": contents.read_log,
        "norm_alpha.csv": contents.read_layers,
        "accuracy_by_class.csv": contents.read_by_class,
        "accuracy_by_layer.csv": contents.read_by_layer,
        "reconstructions.npz": contents.read_pictures,
        "features.npz": contents.read_features,
    }
    if name == "trajectory.json":
        return next(iter(read_trajectories(file.parent)[1]), None)
    try:
        readers.get(name, lambda file: None)(file)
    except Damaged as error:
        assert str(error).startswith(f"{file}: ")
        return str(error)
    return None


def check(result, said, read):
    """Exit code 0 with a line for each file that could not be used, or 2 with one line."""
    assert result.returncode in (0, 2), result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == (result.returncode == 2) and all(line.startswith("error: ") for line in lines), lines
    for file, text in said.items():
        named = [line for line in result.stdout.splitlines() if line.startswith(f"note: {file}")]
        assert (len(named) == 1) == (text is not None and file.name in read), (file, text, named)


OF_COMPARISONS = ("config.json", "summary.json", "log.csv", "norm_alpha.csv", "accuracy_by_layer.csv")
OF_GAPS = ("config.json", "summary.json", "log.csv", "norm_alpha.csv", "trajectory.json", "accuracy_by_class.csv")


def test_no_damaged_run_ends_an_analysis_with_a_traceback(sound, tmp_path):
    """1,500 files with DAMAGED=all; each kind of file is read alone below."""
    rng, complaints = np.random.default_rng(0), 0
    for number in range(-(-how_many(70, 1_500) // (SEEDS - 2))):
        root = tmp_path / str(number)
        said = damaged(sound, root, rng)
        complaints += sum(text is not None for text in said.values())
        result = analyse_here("comparison", "--output_dir", root)
        check(result, {file: text for file, text in said.items() if file.name in OF_COMPARISONS}, OF_COMPARISONS)
        result = analyse_here("gap", "--log_dir", root, "--output_dir", tmp_path / "gap")
        check(result, {file: text for file, text in said.items() if file.name in OF_GAPS}, OF_GAPS)
        shutil.rmtree(root)
    assert complaints


@pytest.mark.parametrize("name", [name for name in OF_A_RUN if not name.endswith(".npz")])
def test_every_reader_of_a_damaged_file_raises_its_own_error_or_nothing(name, sound, tmp_path):
    """15,000 files with DAMAGED=all."""
    folder, rng, told = of_seed(sound, tmp_path, 3), np.random.default_rng(1), 0
    text = (folder / name).read_text()
    for _ in range(how_many(60, 1_500)):
        (folder / name).write_bytes(OF_A_RUN[name](text, rng))
        told += complaint(folder / name) is not None
        load_runs(tmp_path)
    assert told or name == "status.json"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("config.json", lambda text: text.replace('"seed": 3', '"seed": NaN'), "holds NaN"),
        ("config.json", lambda text: text.replace('"seed": 3', '"seed": "3"'), "holds '3' for seed"),
        ("config.json", lambda text: text.replace('"epochs": 2', '"epochs": 1e999'), "holds 1e999"),
        ("config.json", lambda text: text.replace('"norm":', '"norm_":', 1), "lacks norm in its identity"),
        ("config.json", lambda text: text.replace('"norm":', '"norm": 1, "norm":', 1), "holds norm twice"),
        ("config.json", lambda text: '{"a":' * 100_000, "brackets in brackets"),
        ("config.json", lambda text: re.sub(r'"classes": \d+', '"classes": "ten"', text), "holds 'ten' for classes"),
        (
            "summary.json",
            lambda text: text.replace('"seed": 3', '"seed": 4'),
            "is of seed 4, its config.json of seed 3",
        ),
        ("summary.json", lambda text: text.replace('"finished"', '"fin"'), "holds 'fin' for status"),
        (
            "summary.json",
            lambda text: re.sub(r'"acc\w*": [\d.]+|"accuracy": [\d.]+', '"accuracy": 101', text),
            "holds 101 for",
        ),
        ("summary.json", lambda text: text.replace('"val_mse": ', '"val_mse": -'), "for val_mse"),
        ("log.csv", lambda text: text.replace("val_mse", "val"), "lacks val_mse"),
        ("log.csv", lambda text: text + text.splitlines()[1] + "\n", "has epoch 0 after epoch 1"),
        ("log.csv", lambda text: text[: text.rindex(",")], "cells, the first"),
        ("log.csv", lambda text: re.sub(r"\n1,[\d.]+", "\n1,nan", text), "holds nan for train_loss"),
        ("log.csv", lambda text: text.replace("train_loss,", "epoch,", 1), "has the columns epoch,epoch"),
        ("norm_alpha.csv", lambda text: text.replace(",False", ",maybe", 1), "holds 'maybe' for saturated"),
        ("norm_alpha.csv", lambda text: re.sub(r"\n0,[\w.]+", "\n0,", text, count=1), "holds None for layer"),
        (
            "trajectory.json",
            lambda text: re.sub(r'"accuracy": [\d.]+', '"accuracy": 1e30', text, count=1),
            "holds 1e+30 for",
        ),
        ("trajectory.json", lambda text: re.sub(r'"mse": [\d.]+', '"mse": -0.5', text, count=1), "holds -0.5 for mse"),
        ("trajectory.json", lambda text: text.replace('"epoch": 1', '"epoch": 0'), "has epoch 0 after epoch 0"),
        ("trajectory.json", lambda text: text.replace('"seed": 3', f'"seed": {10**40}'), "for seed"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, change, says, sound, tmp_path):
    folder = of_seed(sound, tmp_path, 3)
    (folder / name).write_text(change((folder / name).read_text()))
    assert says in complaint(folder / name)


@pytest.mark.parametrize("name", ["config.json", "log.csv"])
def test_a_folder_in_the_place_of_a_file_is_damage(name, sound, tmp_path):
    folder = of_seed(sound, tmp_path, 3)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{folder / name}: is damaged (cannot be read: Is a directory)" in load_runs(tmp_path)[1][0]


def test_a_folder_whose_name_is_no_text_is_analysed_as_any_other(sound, tmp_path):
    root = tmp_path / os.fsdecode(b"runs-\xff")
    try:
        root.mkdir()
    except OSError:
        pytest.skip("this system has no such names")
    for seed in range(3):
        of_seed(sound, root, seed)
    analyse_here("comparison", "--output_dir", root, check=0)
    analyse_here("gap", "--log_dir", root, "--output_dir", root / "gap", check=0)
    assert len(load_trajectories(root)["run"].unique()) == 3
    assert (root / "report.html").exists() and (root / "gap" / "report.html").exists()


def test_what_the_kit_writes_it_reads(sound):
    runs, problems = load_runs(sound)
    assert len(runs) == 2 and not problems
    assert read_json(sound / "config.json")["identity"]["alpha"] == 0.5 and len(read_csv(sound / "log.csv")) == 2


@pytest.mark.slow
def test_the_command_itself_names_what_it_leaves_out(sound, tmp_path):
    for seed in range(3):
        folder = of_seed(sound, tmp_path, seed)
    (folder / "log.csv").write_bytes(b"epoch\n\xff\n")
    result = run(sys.executable, KIT / "analysis.py", "comparison", "--output_dir", tmp_path, check=0)
    assert [line for line in result.stdout.splitlines() if f"note: {folder / 'log.csv'}: is damaged" in line]
    for seed in range(2):
        (tmp_path / "adyt" / f"seed{seed}" / "config.json").write_text("{")
    result = run(sys.executable, KIT / "analysis.py", "comparison", "--output_dir", tmp_path, check=2)
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stdout
