"""The README and the pages of docs/ say what the code does."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import analysis
from maekit.analysis import matched
from maekit.drivers.windows import banner
from maekit.export.__main__ import build_parser as export_parser
from maekit.files import write_csv, write_json
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


RESULTS = KIT / "docs/results.py"


def test_tables_of_results_are_those_of_the_runs(tmp_path):
    """After a change of docs/results/: python docs/results.py"""
    run(sys.executable, RESULTS, "--check", check=0)
    assert not re.search(r"^\|.*\n(?!\||\n)", EVERYTHING, flags=re.MULTILINE)  # no text that would be a table's row
    files = sorted((KIT / "docs/results").iterdir())
    assert files and all(f"<!-- {file.stem} -->" in PAGES["results.md"] for file in files)
    assert not [file for file in files if re.search(r",/|[A-Z]:\\|/(tmp|home|root)/", file.read_text(encoding="utf-8"))]


def test_a_number_that_is_not_the_runs_is_noticed(tmp_path):
    for name in ("README.md", "docs", "maekit", "norms.py"):
        copy = shutil.copytree if (KIT / name).is_dir() else shutil.copy
        copy(KIT / name, tmp_path / name)
    page = tmp_path / "docs/results.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("| LayerNorm | 0.328 ± 0.005", "| LayerNorm | 0.327 ± 0.005"), encoding="utf-8")
    check = (sys.executable, tmp_path / "docs/results.py", "--check")
    assert "docs/results.md: a table is not what" in run(*check, check=1).stderr
    run(*check[:-1], check=0)
    assert page.read_text(encoding="utf-8") == right


def results_in(tmp_path, monkeypatch):
    """docs/results.py as a module that reads the files of tmp_path."""
    spec = importlib.util.spec_from_file_location("results_of_the_pages", RESULTS)
    results = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(results)
    monkeypatch.setattr(results, "KIT", tmp_path)
    (tmp_path / "docs/results").mkdir(parents=True)
    return results


def test_tables_of_rates_and_sizes_say_what_their_files_do(tmp_path, monkeypatch):
    """Bold: the rate that was chosen; a dash: no run at that rate."""
    results = results_in(tmp_path, monkeypatch)

    def difference(mean, low, high, **diverged):
        return {"mean": mean, "low": low, "high": high, "n": 3, "diverged": diverged}

    at = {rate: {"mean": mean, "diverged": 0} for rate, mean in (("0.002", 0.5), ("0.004", 0.41))}
    known = {
        "reference": "LayerNorm",
        "common": 0.004,
        "methods": {
            "LayerNorm": {"chosen": 0.004, "flat": None, "curve": at},
            "DynamicTanh-alpha2.0": {"chosen": 0.002, "flat": 0.254, "curve": {"0.002": at["0.002"]}},
            "NoNorm": {
                "chosen": None,
                "flat": None,
                "curve": {"0.002": {"mean": None, "diverged": 4}, "0.004": {"mean": 0.75, "diverged": 1}},
            },
        },
        "at_best": {"DynamicTanh-alpha2.0": difference(0.09, 0.05, 0.13), "NoNorm": difference(None, None, None)},
        "at_common": {
            "DynamicTanh-alpha2.0": difference(None, None, None, LayerNorm=3),
            "NoNorm": difference(0.3, None, None, NoNorm=1),
        },
    }
    write_json(tmp_path / "docs/results/a_rates.json", known)
    assert results.rates_table("a_rates").splitlines() == [
        "| method | `val_mse` at 0.002 | `val_mse` at 0.004 | to LayerNorm, each at its best | all at 0.004 | flat (%) |",
        "| --- | --- | --- | --- | --- | --- |",
        "| LayerNorm | 0.500 | **0.410** | | | |",
        "| DynamicTanh from α = 2.0 | **0.500** | – | +0.090 (+0.050 to +0.130) | 3 of LayerNorm diverged | 25 |",
        "| NoNorm | diverged | 0.750, 1 diverged | – | +0.300, 1 of NoNorm diverged | |",
    ]
    write_json(tmp_path / "docs/results/b_rates.json", known | {"common": None, "at_common": {}})
    assert "| all at the reference's | flat (%) |" in results.rates_table("b_rates").splitlines()[0]
    by_size = {"500": difference(-0.01, -0.03, 0.01), "all": difference(0.02, 0.01, 0.03)}
    known = {"images": {"500": 500, "all": 9469}, "differences": {"DynamicTanh": by_size}}
    write_json(tmp_path / "docs/results/a_sizes.json", known)
    assert results.sizes_table("a_sizes").splitlines() == [
        "| method | 500 images | 9,469 images |",
        "| --- | --- | --- |",
        "| DynamicTanh | -0.010 (-0.030 to +0.010) | +0.020 (+0.010 to +0.030) |",
    ]


def test_tables_of_a_sweep_say_what_its_files_do(tmp_path, monkeypatch):
    """Bold: established; a dash: not compared; of diverged seeds there is no number."""
    results = results_in(tmp_path, monkeypatch)
    told = dict.fromkeys(matched.TABLE)
    rows = [
        {
            "accuracy": "frozen_accuracy",
            "alpha": -0.5,
            "mean": -6.04,
            "low": -8.0,
            "high": -4.0,
            "established": 1,
            "left_out": 0,
        },
        {"accuracy": "frozen_accuracy", "alpha": 0.5, "mean": 1.0, "low": None, "established": 0, "left_out": 0},
        {
            "accuracy": "knn_accuracy",
            "alpha": -0.5,
            "mean": -1.0,
            "low": -3.0,
            "high": 1.0,
            "established": 0,
            "left_out": 1,
        },
    ]
    file = tmp_path / "docs/results/a_matched.csv"
    write_csv(file, matched.TABLE, [{**told, "group": "LayerNorm", **row} for row in rows])
    assert results.matched_table("a_matched").splitlines() == [
        "| norm | α | frozen probe (points) | k-NN (points) |",
        "| --- | --- | --- | --- |",
        "| LayerNorm | -0.5 | **-6.0** (-8.0 to -4.0) | – |",
        "| LayerNorm | 0.5 | +1.0 | – |",
    ]
    columns = ("norm", "alpha", "n_seeds", "mse_mean", "mse_std", "rank_cls_mean", "rank_cls_std")
    columns += ("untrained_rank_cls_mean", "untrained_rank_cls_std")
    rows = [
        ("LayerNorm", -10.0, 0, None, None, None, None, None, None),
        ("LayerNorm", -0.5, 3, 0.5, 0.01, 8.0, 0.25, 20.0, 0.5),
        ("DynamicTanh", -0.5, 2, 0.6, 0.02, 7.0, 0.15, 10.0, 0.5),
    ]
    write_csv(tmp_path / "docs/results/a_gap.csv", columns, [dict(zip(columns, row)) for row in rows])
    assert results.gap_table("a_gap").splitlines() == [
        "| norm | α | n | `val_mse` | effective rank, CLS |",
        "| --- | --- | --- | --- | --- |",
        "| LayerNorm | -10 | 0 | diverged | diverged |",
        "| LayerNorm | -0.5 | 3 | 0.500 ± 0.010 | 8.0 ± 0.2 |",
        "| LayerNorm | *untrained* | 3 | | 20.0 ± 0.5 |",
        "| DynamicTanh | -0.5 | 2 | 0.600 ± 0.020 | 7.0 ± 0.1 |",
        "| DynamicTanh | *untrained* | 2 | | 10.0 ± 0.5 |",
    ]


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
