"""What people and their scripts hold on to, as it was recorded in recorded/: commands, helps, names of files, columns,
keys, tags, and a run that an earlier kit began. Moving code about must not change any of it.

Where a change is meant, record anew and read the difference before it is committed:

    RECORD_FROZEN=1 ./tests/run.sh tests/frozen && git diff tests/frozen/recorded

That leaves the stopped run in recorded/stopped as it is: it stands for runs that users began with an earlier kit, and a
kit that cannot go on with it loses theirs. RECORD_FROZEN=stopped records it, too.

Of a machine nothing is recorded: the kit's folder, the interpreter, the number of cores, and what is a clock or a process
in a file's name are placeholders in braces.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import analysis
from maekit import files
from maekit.model.mae import build_mae
from tests.support import KIT, run, train_here
from tests.support.runs import flat, losses

FROZEN = Path(__file__).parent / "recorded"
RECORD = os.environ.get("RECORD_FROZEN", "")
TINY = (
    "--demo",
    "--epochs",
    "1",
    "--max_images",
    "64",
    "--batch_size",
    "32",
    "--num_workers",
    "0",
    "--mae_dir",
    "builtin",
)
WHATEVER_IS_SET = {"WANDB_PROJECT": "", "BATCH_SIZE": "", "NUM_WORKERS": "", "COLUMNS": "120"}
# What run_comparison.bat starts: a program of the kit, wherever that lies.
WINDOWS = re.search(r'"%KIT%(\S+)" %args%', (KIT / "run_comparison.bat").read_text(encoding="utf-8"))[1].replace(
    "\\", "/"
)


def told(name, text):
    """A text, and what the file in recorded/ has: two sides of an assert. To record is to write it there first."""
    file = FROZEN / name
    if RECORD:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return text.rstrip("\n"), file.read_text(encoding="utf-8").rstrip("\n")


# Commands that follow from what is typed

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
    paths = {f"{KIT}/train.py": "{KIT}/train.py", sys.executable: "{PYTHON}"}
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


# Real runs, which the tests below look at


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
    running = [
        subprocess.Popen(
            [str(word) for word in ("bash", KIT / driver, *flags)],
            cwd=KIT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **WHATEVER_IS_SET, "PYTHON": sys.executable},
        )
        for driver, *flags in drivers
    ]
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


# A run that an earlier kit began

STOPPED = FROZEN / "stopped"
BEGUN = (
    "--model",
    "mae_vit_demo_patch8",
    "--input_size",
    "32",
    "--norm",
    "adyt",
    "--alpha",
    "0.1",
    "--probes",
    "all",
    "--eval_every",
    "1",
    "--epochs",
    "2",
    "--batch_size",
    "4",
    "--lr",
    "0.001",
    "--warmup_epochs",
    "0.5",
    "--num_workers",
    "0",
    "--device",
    "cpu",
    "--compile",
    "off",
    "--mae_dir",
    "builtin",
)
STEPS = 6  # of an epoch


@pytest.fixture
def small_model(monkeypatch):
    """The demo's model with 14 thousand parameters in place of 600 thousand, so that a checkpoint is a small file."""
    models = build_mae.__globals__["MODELS"]
    patch, encoder, decoder = models["mae_vit_demo_patch8"]
    small = [type(part)(width=16, depth=1, heads=2) for part in (encoder, decoder)]
    monkeypatch.setitem(models, "mae_vit_demo_patch8", (patch, *small))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are in another order with more
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def patterns(tmp_path):
    """24 training and 12 validation images of three classes, made of whole numbers and stored as PNG: the same pixels with
    every version of every library, where the demo's are JPEG. A run knows its data by the names of files below its folder."""
    y, x = np.mgrid[:40, :40]
    for split, n in (("train", 8), ("val", 4)):
        for label in range(3):
            folder = tmp_path / "patterns" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                k = i + (split == "val") * 100
                waves = [
                    (x * (label + 2) * (c + 1) + y * (k % 5 + 1) + 37 * k + x * y // (9 + label)) % 256
                    for c in range(3)
                ]
                Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "patterns"


def hash_of_state(folder):
    """One hash of every tensor in a checkpoint: weights, optimizer, probes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(flat(torch.load(folder / "checkpoint.pth", weights_only=True)).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def arithmetic():
    """What sums of floats depend on: torch, and the processor that its libraries choose their code for."""
    cpu = [platform.processor()]
    with contextlib.suppress(OSError):
        about = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        cpu = re.findall(r"^(?:model name|cpu family|model)\s*: (.*)$", about, re.MULTILINE)
    cpu.append(torch.backends.cpu.get_cpu_capability())
    return {"torch": torch.__version__.partition("+")[0], "cpu": ", ".join(cpu)}


def record_stopped(patterns, tmp_path, monkeypatch):
    """Begin a run, stop it in the middle of its second epoch, and write down its folder and what an unbroken one ends with."""
    from maekit.training.saving import Saver

    flags = (*BEGUN, "--imagenet_dir", patterns, "--output_dir")
    train_here(*flags, tmp_path / "unbroken", check=0)
    after_step = Saver.after_step

    def stop(self, position, epoch, share):
        if epoch == 1 and share >= 0.5:
            self.stop.name = "SIGTERM"
        after_step(self, position, epoch, share)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "after_step", stop)
        train_here(*flags, tmp_path / "begun", check=143)
    shutil.rmtree(STOPPED, ignore_errors=True)
    STOPPED.mkdir(parents=True)
    for name in ("log.csv", "norm_alpha.csv", "trajectory.json", "checkpoint.pth"):
        shutil.copy(tmp_path / "begun" / name, STOPPED / name)
    for name, own in (
        ("config.json", {"command": ["{KIT}/train.py"]}),
        ("status.json", {"host": "{HOST}", "process": 0}),
    ):
        text = (tmp_path / "begun" / name).read_text(encoding="utf-8").replace(str(tmp_path), "{WORK}")
        text = json.dumps({**json.loads(text), **own}, indent=1) + "\n"
        (STOPPED / name).write_text(text, encoding="utf-8", newline="\n")
    expected = {**arithmetic(), "state": hash_of_state(tmp_path / "unbroken"), "log": losses(tmp_path / "unbroken")}
    (STOPPED / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8", newline="\n")


def test_a_run_that_an_earlier_kit_began_ends_as_it_would_have_there(small_model, patterns, tmp_path, monkeypatch):
    """Bitwise where torch and processor are those it was recorded with; elsewhere with its losses."""
    if RECORD == "stopped":
        record_stopped(patterns, tmp_path, monkeypatch)
    folder = tmp_path / "run"
    folder.mkdir()
    for file in STOPPED.iterdir():
        if file.name != "expected.json":
            shutil.copy(file, folder / file.name)
    position = torch.load(folder / "checkpoint.pth", weights_only=True)["position"]
    assert (position["epoch"], position["batch"]) == (1, STEPS // 2)

    said = train_here(*BEGUN, "--imagenet_dir", patterns, "--output_dir", folder, check=0).stdout
    assert f"goes on with epoch 1, batch {STEPS // 2} of 2" in said and "finished after 2 epochs" in said
    expected = json.loads((STOPPED / "expected.json").read_text(encoding="utf-8"))
    if arithmetic() == {name: expected[name] for name in arithmetic()}:
        assert losses(folder) == expected["log"]
        assert hash_of_state(folder) == expected["state"]
    else:
        for now, recorded in zip(losses(folder), expected["log"], strict=True):
            for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse", "lr"):
                assert now[name] == pytest.approx(recorded[name], rel=1e-6), name


def test_nothing_is_recorded_that_no_test_looks_at():
    recorded = {str(file.relative_to(FROZEN)).partition(os.sep)[0] for file in FROZEN.iterdir()}
    assert recorded == {"commands", "help", "listings", "keys", "columns", "tags", "stopped"}
    assert {file.stem for file in (FROZEN / "commands").iterdir()} == set(COMMANDS)
    assert {file.stem for file in (FROZEN / "help").iterdir()} == {"train", *HELPS}
