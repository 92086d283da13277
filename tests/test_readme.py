"""The README and the pages of docs/ say what the code does."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import analysis
from maekit import files
from maekit.data.protocol import SourceImages
from maekit.drivers.windows import banner
from maekit.runs.folder import RunFolder
from maekit.settings import recipes
from maekit.settings.flags import DEFAULTS
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from tests.support import KIT, run

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (KIT / "README.md", *(KIT / "docs").glob("*.md"))}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
DRIVERS = ("run_comparison.sh", "run_alpha_sweep.sh", "quick_sweep_test.sh", "lr_alpha_sweep.sh")
# flags of other programs that the pages name: sbatch and srun, torchrun, TensorBoard, upstream's scripts
OTHERS = {"gpus", "cpus-per-task", "time", "array", "nodes", "nnodes", "nproc_per_node", "rdzv_backend"}
OTHERS |= {"rdzv_endpoint", "max-restarts", "logdir", "finetune"}


def parser_flags():
    parser = build_parser("", "")
    return {action.dest for action in parser._actions} - {"help"}


def blocks(page, language):
    """The blocks of code of a page in a language, without what marks them."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def shell_lines(page):
    """(variables set before it in its block, line) of each command of a page's bash blocks, without comments."""
    for block in blocks(page, "bash"):
        lines = re.sub(r" *\\\n *", " ", block).splitlines()
        for i, line in enumerate(lines):
            variables = [earlier for earlier in lines[:i] if re.match(r"[A-Z]\+?=\(", earlier)]
            yield variables, re.sub(r" +#.*", "", line)


def slug(heading):
    """What GitHub makes the anchor of a heading."""
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page):
    """The anchors of a page's headings; one that is there twice has a number the second time."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r"^#+ (.*)", text, flags=re.MULTILINE):
        name = slug(heading)
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def test_the_readme_is_short_and_its_lines_are():
    lines = README.splitlines()
    assert len(lines) <= 170
    assert not [line for line in lines if len(line) > 120]


def test_the_readme_opens_with_the_commands_and_a_picture():
    top = README.splitlines()[:20]
    assert "./run_comparison.sh --demo" in "\n".join(top) and any(line.startswith("<img ") for line in top)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    folder = KIT if name == "README.md" else KIT / "docs"
    text = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else folder / name
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_and_picture_is_linked():
    linked = set(re.findall(r"[(/\"]([\w-]+\.(?:md|png))", EVERYTHING))
    assert {path.name for path in (KIT / "docs").iterdir() if path.suffix in (".md", ".png")} <= linked


def test_anchors_are_githubs():
    page = "# What comes out\n## `--jobs J`, and Γ\n## A [link](x.md)\n```\n# comment\n```\n## What comes out\n"
    assert anchors(page) == {"what-comes-out", "--jobs-j-and-γ", "a-link", "what-comes-out-1"}


def test_the_reference_of_flags_has_every_flag_of_train_and_no_other():
    table = PAGES["flags.md"].partition("## analysis.py")[0]
    assert set(re.findall(r"^\| `--(\w+)", table, flags=re.MULTILINE)) == parser_flags()


@pytest.mark.parametrize("flag", DEFAULTS)
def test_the_defaults_in_the_reference_are_the_codes(flag):
    table = PAGES["flags.md"].partition("## analysis.py")[0]
    row = re.search(rf"^\| `--{flag}\b.*", table, flags=re.MULTILINE).group()
    for name, values in (("default", DEFAULTS), ("demo", recipes.DEMO)):
        if not any(values.get(flag) is nothing for nothing in (None, False)):
            assert re.search(rf"\b{name}: {re.escape(str(values[flag]))}[;)]", row), name


def test_the_reference_of_flags_is_what_the_parsers_say(tmp_path):
    """After a change of a flag: python docs/flags.py"""
    run(sys.executable, KIT / "docs/flags.py", tmp_path / "flags.md", check=0)
    written = (tmp_path / "flags.md").read_text(encoding="utf-8")
    assert written == PAGES["flags.md"]
    assert all(f"`--{flag}" in written for flag in parser_flags())


def test_every_flag_that_a_page_names_is_one():
    known = parser_flags() | OTHERS | {"help"}
    for driver in DRIVERS:
        known |= set(re.findall(r"--([a-z]\w+)", banner(driver)))
    for command in ("comparison", "gap"):
        help_text = run(sys.executable, KIT / "analysis.py", command, "--help", check=0).stdout
        known |= set(re.findall(r"--([a-z]\w+)", help_text))
    for name, page in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", page))
        assert named <= known, name


def test_every_flag_of_a_drivers_own_is_told():
    rows = [line for driver in DRIVERS for line in banner(driver).splitlines() if line.startswith("  --")]
    own = set(re.findall(r"--([a-z]\w+)", "\n".join(rows))) - parser_flags() | {"output_dir", "wandb", "dry_run"}
    assert {"control", "slurm", "alphas", "linprobe_flags"} <= own
    told = PAGES["running.md"].partition("The drivers take flags of their own")[2].partition("A flag that is none")[0]
    assert {f"--{flag}" for flag in own} <= set(re.findall(r"--[a-z]\w+", told))


def test_the_rate_and_the_folder_are_worked_out_as_the_page_says(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    page = PAGES["running.md"]
    assert (
        "× effective batch / 256, and the effective batch is `--batch_size` × `--accum_iter` × processes"
        in page.replace("\n  ", " ")
    )
    parsed = build_parser("", "").parse_args(["--batch_size", "32", "--accum_iter", "2", "--blr", "0.01"])
    assert resolve(parsed).optim.lr == pytest.approx(0.01 * 32 * 2 * 4 / 256)
    assert "in `output_train/<norm>/seed<seed>`, an evaluation in `<task>` below that" in page.replace("\n", " ")
    parsed = build_parser("", "").parse_args(["--norm", "dyt", "--seed", "3", "--task", "knn", "--init", "untrained"])
    assert resolve(parsed).output_dir == os.path.join("output_train", "DynamicTanh", "seed3", "knn")


def test_every_file_of_a_run_and_column_of_a_baseline_is_told():
    folder = RunFolder("x")
    for name in vars(folder):
        if name != "path" and not name.startswith("_"):
            assert getattr(folder, name).name in PAGES["outputs.md"], name


def test_every_test_of_a_fault_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (KIT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)` \|$", PAGES["running.md"], flags=re.MULTILINE)
    assert len(named) > 10 and all(f"def {name}(" in tests for name in named)


def test_no_place_waits_for_a_number():
    assert not re.findall(r"\b(?!SIG)[A-Z]{4,}\d+\b|\bGALLERY\b|\bUNTRAINED\b", EVERYTHING)


def test_every_command_of_a_driver_parses():
    commands = {}
    for page in PAGES.values():
        for variables, line in shell_lines(page):
            if re.match(r"\./(?!tests)\w+\.sh\b(?! status)", line):
                commands["\n".join([*variables, f"{line} --dry_run"])] = None
    assert next(iter(commands)) == "./run_comparison.sh --demo --dry_run" and len(commands) > 12
    for command in commands:
        run("bash", "-c", command, check=0)


def test_every_command_in_python_parses():
    lines = [line for page in PAGES.values() for _, line in shell_lines(page)]
    lines += re.findall(r"`(python \w+\.py [^`]+)`", EVERYTHING)
    commands = [re.search(r"\b(train|analysis)\.py (.*)", line).groups() for line in lines if ".py " in line]
    assert {script for script, _ in commands} == {"train", "analysis"} and len(commands) > 5
    for script, typed in commands:
        if script == "analysis":
            analysis.build_parser().parse_args(shlex.split(typed))
            continue
        parsed = build_parser("train.py", "").parse_args(shlex.split(typed))
        if parsed.init is None:
            resolve(parsed)


def test_pages_that_the_code_names_are_there():
    for path in subprocess.check_output(["git", "ls-files", "*.py", "*.sh", "*.bat"], cwd=KIT, text=True).split():
        if path.startswith("tests/"):
            continue
        text = (KIT / path).read_text(encoding="utf-8")
        assert "README '" not in text, path
        for page in re.findall(r"docs/\w+\.md", text):
            assert (KIT / page).is_file(), f"{path}: {page}"


def test_the_rooms_of_the_pages_are_those_of_the_code():
    rooms = {path.name for path in (KIT / "maekit").iterdir() if (path / "__init__.py").is_file()}
    for name in ("README.md", "architecture.md"):
        assert set(re.findall(r"^\| `(\w+)/` \|", PAGES[name], flags=re.MULTILINE)) == rooms
    ground = re.search(
        r"^\| ground floor of `maekit/` \| (.*?) \|", PAGES["architecture.md"], flags=re.MULTILINE
    ).group(1)
    files_there = {path.name for path in (KIT / "maekit").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\w+\.py", ground)) == files_there


def test_the_journeys_name_what_is_in_the_code():
    steps = [
        step
        for journey in blocks(PAGES["architecture.md"], "text")
        for step in re.findall(r"^([\w/]+\.(?:py|sh)) +([\w., ]+?)(?:  .*)?$", journey, flags=re.MULTILINE)
    ]
    assert len(steps) > 30
    for path, names in steps:
        text = (KIT / path).read_text(encoding="utf-8")
        for name in names.split(", "):
            assert re.search(rf"\b(def|class) {name}\b|^{name}\(\)", text, flags=re.MULTILINE), (path, name)


@pytest.fixture
def copy(tmp_path):
    """A copy of the kit to add to."""
    for file in run("git", "ls-files", "--", "*.py", "*.sh", "*.txt", "maekit", check=0).stdout.split():
        (tmp_path / "kit" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / file, tmp_path / "kit" / file)
    return tmp_path / "kit"


def put(file, before, text):
    """Put text into a file before the first place of a line that begins so."""
    code = file.read_text(encoding="utf-8")
    at = code.index(f"\n{before}") + 1
    file.write_text(code[:at] + text + code[at:], encoding="utf-8")


def example(start):
    """The block of Python of docs/extending.md that has a line that begins so."""
    (block,) = [block for block in blocks(PAGES["extending.md"], "python") if f"\n{start}" in f"\n{block}"]
    return block


def test_the_examples_run(tmp_path):
    """Each block of Python that begins with an import, in a folder with a sweep in it."""
    points = [{"epoch": i, "mse": 0.5 + i / 100, "accuracy": 10.0 * i, "frozen_accuracy": 50.0 + i} for i in range(4)]
    for alpha in (0.0, 0.5):
        run_folder = tmp_path / f"outputs/imagenette-mae-reconstruction-gap/full/{alpha}/LayerNorm_lr0.00015_seed0"
        run_folder.mkdir(parents=True)
        files.write_json(run_folder / "trajectory.json", {"alpha": alpha, "trajectory": points})
    found = [block for page in PAGES.values() for block in blocks(page, "python")]
    examples = [block for block in found if block.startswith(("from ", "import "))]
    assert len(examples) >= 3
    for name in ("build_mae", "to_timm", "load_trajectories", "import gap", "update_adaptive"):
        assert any(name in example for example in examples)
    code = "import json, sys\nfor example in json.loads(sys.argv[1]): exec(example, {'__name__': 'example'})"
    run(sys.executable, "-c", code, json.dumps(examples), cwd=tmp_path, env={"PYTHONPATH": str(KIT)}, check=0)


def test_a_data_source_is_added_as_it_says(copy, tmp_path):
    """In a copy of the kit: the page's file, its row in the registry, and an epoch on its images."""
    (copy / "maekit/data/arrays.py").write_text(example("class ArrayImages"), encoding="utf-8")
    sources = copy / "maekit/data/sources.py"
    put(sources, "SOURCES = (", f"{example('def _arrays(data)')}\n\n")
    code = sources.read_text(encoding="utf-8")
    code, registry = code[: code.index("SOURCES = (")], code[code.index("SOURCES = (") :]
    sources.write_text(code + registry.replace("_folder", "_arrays, _folder", 1), encoding="utf-8")
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (48, 70, 80, 3), dtype=np.uint8), np.arange(48) % 3
    (tmp_path / "images").mkdir()
    for split, of in (("train", slice(0, 36)), ("val", slice(36, 48))):
        np.savez(tmp_path / f"images/{split}.npz", images=pixels[of], labels=labels[of])
    flags = ("--imagenet_dir", tmp_path / "images", "--model", "mae_vit_demo_patch8", "--input_size", "64")
    flags += ("--epochs", "1", "--batch_size", "8", "--max_images", "24", "--probes", "knn", "--num_workers", "1")
    flags += ("--output_dir", tmp_path / "run", "--mae_dir", "builtin")
    run(sys.executable, copy / "train.py", *flags, env={"MAEKIT_CACHE": str(tmp_path / "cache")}, check=0)
    data = files.read_json(tmp_path / "run/config.json")["data"]
    assert (data["source"], data["train_images"], data["val_images"], data["classes"]) == ("arrays", 24, 12, 3)
    assert 0 <= files.read_json(tmp_path / "run/summary.json")["knn_accuracy"] <= 100


def test_a_probe_is_added_as_it_says(copy, tmp_path):
    """In a copy of the kit: the page's file and row, a run that it watches, and the analysis."""
    (copy / "maekit/probes/centroids.py").write_text(example("class Centroids(Probe)"), encoding="utf-8")
    put(copy / "maekit/settings/probes.py", '    "knn": Probe(', example('    "centroids": Probe('))
    flags = ("--demo", "--epochs", "1", "--max_images", "64", "--num_workers", "0", "--mae_dir", "builtin")
    flags += ("--probes", "frozen centroids", "--output_dir", tmp_path / "run")
    said = run(sys.executable, copy / "train.py", *flags, check=0)
    folder = RunFolder(tmp_path / "run")
    (row,) = files.read_csv(folder.log)
    assert 0 <= row["centroid_accuracy"] <= 100 and "centroids" in said.stdout + said.stderr
    state = torch.load(folder.checkpoint, weights_only=True)["probes"]["centroids"]
    assert state["sums"].shape == (10, 96) and state["sums"].abs().sum() > 0
    out = tmp_path / "analysis"
    flags = ("--log_dir", tmp_path, "--output_dir", out, "--accuracy", "centroids")
    run(sys.executable, copy / "analysis.py", "gap", *flags)  # of one point there is no gap, which is said
    assert "centroid_accuracy" in (out / "gap_table.csv").read_text(encoding="utf-8")


def test_what_an_image_set_needs_is_what_the_protocol_says():
    told = set(re.findall(r"^\| `(?:images\.)?(\w+)", PAGES["extending.md"], flags=re.MULTILINE)) - {"len"} | {
        "__len__"
    }
    protocol = {"root", "labels", "__len__", "open", "file", "is_there", "signature", "subset"}
    assert told == protocol
    stand_in = type("Images", (), dict.fromkeys(protocol, lambda self: None))
    assert isinstance(stand_in(), SourceImages)
    for name in protocol:
        lacking = type("Images", (), dict.fromkeys(protocol - {name}, lambda self: None))
        assert not isinstance(lacking(), SourceImages), name


def test_a_norm_is_added_as_it_says(copy, tmp_path):
    """In a copy of the kit: the class from the page, its names, its row in the table of methods; and a comparison by the
    shell driver of a method with its option."""
    row = example('    "Softsign": Norm(')
    for file, before, text in (
        ("norms.py", "NORMS = {", example("class Softsign(_AffineNorm)") + "\n\n"),
        ("norms.py", '    "LayerNorm": nn.LayerNorm', '    "Softsign": Softsign,\n'),
        ("norms.py", '    "ln": "LayerNorm"', '    "soft": "Softsign",\n'),
        ("maekit/settings/methods.py", '    "LayerNorm": Norm(', row),
    ):
        put(copy / file, before, text)
        assert text.strip().rstrip(",") in PAGES["extending.md"]
    out = tmp_path / "comparison"
    flags = ("--demo", "--epochs", "2", "--max_images", "64", "--num_workers", "0", "--mae_dir", "builtin")
    run("bash", copy / "run_comparison.sh", "--methods", "soft-alpha1.0", *flags, "--output_dir", out, check=0)
    trained = RunFolder(out / "Softsign-alpha1.0/seed0")
    assert files.read_json(trained.config)["identity"]["soft_alpha_init"] == 1.0
    assert all(0.5 < row["norm_alpha_mean"] < 1.5 for row in files.read_csv(trained.log))  # the column
    assert {row["model"] for row in files.read_csv(out / "comparison_table.csv")} == {"Softsign-alpha1.0"}
    assert (out / "loss_comparison.png").is_file() and (out / "alpha_dynamics.png").is_file()
    assert "Softsign-alpha1.0" in (out / "report.html").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("norms_of_the_copy", copy / "norms.py")
    norms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(norms)
    assert len(list(norms.convert_norms(norms.nn.LayerNorm(4), "soft").parameters())) == 3


def test_a_flag_is_added_as_it_says(copy):
    """In a copy of the kit: the page's row, and what follows from it."""
    row = example('Flag("clip_grad"').strip()
    put(copy / "maekit/settings/flags.py", '        Flag(\n            "epochs"', f"        {row},\n")
    help_text = run(sys.executable, copy / "train.py", "--help", check=0).stdout
    assert "--clip_grad X" in help_text and "largest norm of a step's gradient" in " ".join(help_text.split())
    result = run(sys.executable, copy / "train.py", "--demo", "--clip_grad", "-1", "--dry_run", check=2)
    assert result.stderr.count("\n") == 1 and "--clip_grad -1.0: must be positive." in result.stderr
