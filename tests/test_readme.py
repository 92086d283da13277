"""The README and the pages of docs/ say what the code does."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import analysis
from maekit.drivers.windows import banner
from maekit.export.__main__ import build_parser as export_parser
from maekit.runs.folder import RunFolder
from maekit.settings import recipes
from maekit.settings.flags import DEFAULTS
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from tests.support import KIT, run
from tests.support.pages import PAGES, blocks

README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
DRIVERS = ("run_comparison.sh", "run_alpha_sweep.sh", "quick_sweep_test.sh", "lr_alpha_sweep.sh")
# flags of other programs that the pages name: sbatch and srun, torchrun, TensorBoard, upstream's scripts, tests/run.sh, pip
OTHERS = {"gpus", "cpus-per-task", "time", "array", "nodes", "nnodes", "nproc_per_node", "rdzv_backend"}
OTHERS |= {"rdzv_endpoint", "max-restarts", "logdir", "finetune", "quick", "oldest", "index-url"}
OTHERS |= {"no-deps", "target"}
OTHERS |= {"list", "check", "data", "take"}  # of docs/reproduce.sh and docs/results.py


def parser_flags():
    parser = build_parser("", "")
    return {action.dest for action in parser._actions} - {"help"}


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


def test_no_line_of_text_would_be_a_row_of_a_table():
    assert not re.search(r"^\|.*\n(?!\||\n)", EVERYTHING, flags=re.MULTILINE)


def test_every_flag_that_a_page_names_is_one():
    known = parser_flags() | OTHERS | {"help"}
    for driver in DRIVERS:
        known |= set(re.findall(r"--([a-z]\w+)", banner(driver)))
    for command in ("comparison", "gap"):
        help_text = run(sys.executable, KIT / "analysis.py", command, "--help", check=0).stdout
        known |= set(re.findall(r"--([a-z]\w+)", help_text))
    known |= {action.dest for action in export_parser()._actions}
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


@pytest.mark.slow
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
    lines = [line for line in lines if ".py " in line and not line.startswith("python docs/")]
    commands = [re.search(r"\b(train|analysis)\.py (.*)", line).groups() for line in lines]
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
