"""Files, keys, columns and tags that runs and analyses leave have the names that were recorded."""

import contextlib
import csv
import itertools
import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import analysis
from maekit import files
from tests.support import KIT, processes, train_here
from tests.support.frozen import WHATEVER_IS_SET, told

TINY = shlex.split("--demo --epochs 1 --max_images 64 --batch_size 32 --num_workers 0 --mae_dir builtin")


class Notebook(types.ModuleType):
    """What stands in for the module wandb: it writes down what it is given by name."""

    class Error(Exception):
        pass

    class Summary:
        def __init__(self, note):
            self.update = lambda values: [note(f"summary {name}") for name in values]

    def __init__(self):
        super().__init__("wandb")
        self.noted = set()
        self.Settings = self.Histogram = self.Image = lambda *_, **__: None
        self.summary = self.Summary(self.noted.add)

    def init(self, config=None, **options):
        self.noted |= {f"init {name}" for name in options} | {f"config {name}" for name in config or {}}
        self.noted.add(f"project {options['project']}")
        return contextlib.nullcontext(self) if config is None else self

    def log(self, values, step=None):
        self.noted |= {f"log {name}{'' if step is None else ' (by epoch)'}" for name in values}

    def Artifact(self, name, type):
        self.noted.add(f"artifact {name}, {type}")
        return types.SimpleNamespace(add_file=lambda file: self.noted.add(f"artifact file {Path(file).name}"))

    def log_artifact(self, _):
        self.noted.add("log_artifact")

    def finish(self):
        self.noted.add("finish")


@contextlib.contextmanager
def notebook():
    """A Notebook in place of wandb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_PROJECT", "")
        notes = Notebook()
        patch.setitem(sys.modules, "wandb", notes)
        yield notes


def listing(folder):
    """All files below a folder; TensorBoard's have a clock, a host and a process in their names."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())
    return "\n".join(re.sub(r"(events\.out\.tfevents)\.\S+", r"\1.{WHEN AND WHERE}", name) for name in names)


def write_earlier_runs(folder):
    """Trajectories that a sweep's analysis finds beside its own: of more seeds, and one in the original gap scripts' format.

    With points enough that the statistics have bins, intervals and correlations.
    """
    for seed, alpha in itertools.product((1, 2), (-0.5, 0.5)):
        points = [
            {
                "epoch": i,
                "mse": 0.5 + 0.001 * i,
                "accuracy": 30 + i + seed,
                "frozen_accuracy": 50 - i + 20 * alpha,
                "untrained_frozen_accuracy": 40.0,
                "alpha": alpha,
                "lr": 0.004,
            }
            for i in range(4)
        ]
        head = {"alpha": alpha, "lr": 0.004, "norm": "LayerNorm", "seed": seed, "status": "finished"}
        files.write_json(
            made_folder(folder / f"seed{seed}_{alpha}") / "trajectory.json", {**head, "trajectory": points}
        )
    points = [{"epoch": i, "mse": 0.6 - 0.01 * i, "accuracy": 20.0 + i} for i in range(4)]
    files.write_json(made_folder(folder / "original") / "trajectory.json", {"alpha": 0.1, "trajectory": points})


def made_folder(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison, a sweep, and a run with all there is; the two drivers side by side, the rest in this process.

    Returns a dict of folders, and what was logged to Weights & Biases.
    """
    root = tmp_path_factory.mktemp("made")
    drivers = [
        ("run_comparison.sh", *TINY, "--methods", "ln adyt", "--jobs", "1", "--output_dir", root / "comparison"),
        (
            "quick_sweep_test.sh",
            *TINY,
            "--alphas",
            "-0.5 0.5",
            "--probes",
            "joint frozen",
            "--jobs",
            "2",
            "--output_dir",
            root / "sweep",
        ),
    ]
    write_earlier_runs(root / "sweep/demo-mae-reconstruction-gap/quick/earlier")
    train_here("--dry_run", *TINY, check=0)  # makes the demo's data, which both would otherwise do
    running = [processes.start(("bash", KIT / driver, *flags), **WHATEVER_IS_SET) for driver, *flags in drivers]
    with notebook() as of_a_run:
        train_here(
            *TINY,
            "--norm",
            "adyt",
            "--probes",
            "all",
            "--alpha",
            "0.5",
            "--wandb",
            "--output_dir",
            root / "run",
            check=0,
        )
    for driver in running:
        said = driver.communicate(timeout=600)[0]
        assert driver.returncode == 0, said
    before = listing(root / "comparison")
    encoder = root / "comparison/LayerNorm/seed0"
    for name, init in (("linprobe", encoder), ("untrained_linprobe", "untrained")):
        train_here(
            *TINY, "--task", "linprobe", "--accum_iter", "1", "--init", init, "--output_dir", encoder / name, check=0
        )
    with notebook() as of_an_analysis, contextlib.redirect_stdout(None):
        assert analysis.main(["comparison", "--output_dir", str(root / "comparison"), "--wandb"]) == 0
    return {
        "run": root / "run",
        "comparison": root / "comparison",
        "comparison before evaluations": before,
        "sweep": root / "sweep",
        "LayerNorm": encoder,
        "evaluation": encoder / "linprobe",
        "logged by a run": of_a_run.noted,
        "logged by an analysis": of_an_analysis.noted,
    }


def test_a_run_leaves_the_files_that_it_left(made):
    now, recorded = told("listings/run.txt", listing(made["run"]))
    assert now == recorded


def test_a_comparison_leaves_the_files_that_it_left(made):
    now, recorded = told("listings/comparison.txt", made["comparison before evaluations"])
    assert now == recorded
    now, recorded = told("listings/comparison_with_evaluations.txt", listing(made["comparison"]))
    assert now == recorded


def test_a_sweep_leaves_the_files_that_it_left(made):
    now, recorded = told("listings/sweep.txt", listing(made["sweep"]))
    assert now == recorded


# Keys and columns


def keys(value, path=""):
    """{path: kinds} of all values of a JSON document; the entries of a list are as one."""
    if isinstance(value, dict) and value:
        parts = [keys(part, f"{path}.{name}" if path else name) for name, part in value.items()]
    elif isinstance(value, list) and value:
        parts = [keys(part, f"{path}[]") for part in value]
    else:
        return {path: {"null" if value is None else type(value).__name__}}
    return {
        name: set().union(*(part.get(name, ()) for part in parts))
        for name in sorted({n for part in parts for n in part})
    }


# Not to be had everywhere: no git, no way to ask for the memory.
SOMETIMES = {"git_commit": {"str", "null"}, "peak_memory_mb": {"float", "null"}}


def keys_of_file(file):
    found = keys(json.loads(file.read_text(encoding="utf-8")))
    found |= {name: kinds for name, kinds in SOMETIMES.items() if name in found}
    return "\n".join(f"{name}: {' or '.join(sorted(kinds))}" for name, kinds in found.items())


@pytest.mark.parametrize(
    ("owner", "file"),
    [
        *((owner, f"{part}.json") for owner in ("run", "evaluation") for part in ("config", "summary", "status")),
        ("run", "trajectory.json"),
        ("comparison", "comparison_statistics.json"),
        ("sweep", "analysis_demo-quick/gap_statistics.json"),
    ],
)
def test_a_json_file_has_the_keys_and_kinds_of_values_that_it_had(owner, file, made):
    name = f"keys/{owner}_{Path(file).stem}.txt"
    now, recorded = told(name, keys_of_file(made[owner] / file))
    assert now == recorded


@pytest.mark.parametrize(
    ("owner", "file"),
    [
        ("run", "log.csv"),
        ("evaluation", "log.csv"),
        ("run", "norm_alpha.csv"),
        ("comparison", "comparison_table.csv"),
        ("sweep", "analysis_demo-quick/gap_table.csv"),
    ],
)
def test_a_table_has_the_columns_that_it_had(owner, file, made):
    with open(made[owner] / file, newline="", encoding="utf-8") as f:
        header = next(csv.reader(f))
    now, recorded = told(f"columns/{owner}_{Path(file).stem}.txt", "\n".join(header))
    assert now == recorded


def test_the_reconstructions_are_the_arrays_that_they_were(made):
    with np.load(made["run"] / "reconstructions.npz") as arrays:
        lines = [f"{name}: {array.dtype} {array.shape}" for name, array in sorted(arrays.items())]
    now, recorded = told("keys/run_reconstructions.txt", "\n".join(lines))
    assert now == recorded


def kinds_of_checkpoint(value, path=""):
    """[(path, kind)] of everything in a checkpoint; numbers in a path, of blocks and of an optimizer's states, are stars.

    Of the options of an optimizer's groups, which differ with the versions of torch and timm, those that are the kit's.
    """
    if isinstance(value, dict | list) and value:
        named = value.items() if isinstance(value, dict) else enumerate(value)
        if re.search(r"/param_groups/\d+$", path):
            named = [(name, value[name]) for name in ("lr", "weight_decay", "params")]
        return [line for name, part in named for line in kinds_of_checkpoint(part, f"{path}/{name}")]
    stars = re.sub(r"(?<=[/.])\d+(?=[/.]|$)", "*", path)
    if not isinstance(value, torch.Tensor):
        return [(stars, "null" if value is None else type(value).__name__)]
    shape = "" if "/optimizer/" in path else f" {tuple(value.shape)}"
    return [(stars, f"{str(value.dtype).removeprefix('torch.')}{shape}")]


@pytest.mark.parametrize("owner", ["LayerNorm", "run", "evaluation"])
def test_a_checkpoint_has_the_keys_and_tensors_that_it_had(owner, made):
    found = {}
    for path, kind in kinds_of_checkpoint(torch.load(made[owner] / "checkpoint.pth", weights_only=True)):
        found.setdefault(path, {}).setdefault(kind, []).append(path)
    lines = [
        f"{path}: {' or '.join(sorted(kinds))}" + (f", {n} times" if (n := sum(map(len, kinds.values()))) > 1 else "")
        for path, kinds in sorted(found.items())
    ]
    now, recorded = told(f"keys/{owner}_checkpoint.txt", "\n".join(lines))
    assert now == recorded


# Loggers


@pytest.mark.parametrize("owner", ["LayerNorm", "run", "evaluation"])
def test_tensorboard_has_the_tags_that_it_had(owner, made):
    events = EventAccumulator(str(made[owner] / "tensorboard")).Reload()
    tags = {kind: names for kind, names in events.Tags().items() if isinstance(names, list)}
    lines = [f"{kind}: {name}" for kind, names in sorted(tags.items()) for name in sorted(names)]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    lines += [f"setting: {name}" for name in sorted(HParamsPluginData.FromString(content).session_start_info.hparams)]
    now, recorded = told(f"tags/{owner}_tensorboard.txt", "\n".join(lines))
    assert now == recorded


@pytest.mark.parametrize("owner", ["run", "analysis"])
def test_weights_and_biases_gets_the_names_that_it_got(owner, made):
    noted = made["logged by a run" if owner == "run" else "logged by an analysis"]
    now, recorded = told(f"tags/{owner}_wandb.txt", "\n".join(sorted(noted)))
    assert now == recorded
