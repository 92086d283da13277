"""The README says what the code does."""

import re
import shutil
import sys

import pytest

from maekit import files
from maekit.runs.folder import RunFolder
from maekit.settings import recipes
from maekit.settings.flags import DEFAULTS
from maekit.settings.parser import build_parser
from tests.support import KIT, run

README = (KIT / "README.md").read_text(encoding="utf-8")
ROWS = {  # flag: (default, demo)
    cells[1].strip(" `-"): (cells[2].strip(), cells[3].strip())
    for cells in (line.split("|") for line in README.splitlines() if line.startswith("| `--"))
}


def parser_flags():
    parser = build_parser("", "")
    return {action.dest for action in parser._actions} - {"help"}


def test_the_table_of_options_has_every_flag_and_no_other():
    driver = {"methods", "seeds"}
    elsewhere = {"norm", "seed", "demo", "dry_run"}  # told in the text
    assert set(ROWS) == (parser_flags() | driver) - elsewhere
    assert all(f"`--{flag}`" in README for flag in elsewhere)


@pytest.mark.parametrize("flag", ROWS)
def test_the_defaults_in_the_table_are_the_codes(flag):
    default, demo = ROWS[flag]
    if not any(DEFAULTS.get(flag) is nothing for nothing in (None, False)):
        assert default == str(DEFAULTS[flag])
    if flag in recipes.DEMO:
        assert demo == str(recipes.DEMO[flag])
    elif flag != "output_dir":
        assert demo == ""


def test_the_reference_of_flags_is_what_the_parsers_say(tmp_path):
    """After a change of a flag: python docs/flags.py"""
    run(sys.executable, KIT / "docs/flags.py", tmp_path / "flags.md", check=0)
    written = (tmp_path / "flags.md").read_text(encoding="utf-8")
    assert written == (KIT / "docs/flags.md").read_text(encoding="utf-8")
    assert all(f"`--{flag}" in written for flag in parser_flags())


def test_every_file_of_a_run_and_column_of_a_baseline_is_told():
    folder = RunFolder("x")
    for name in vars(folder):
        if name != "path" and not name.startswith("_"):
            assert getattr(folder, name).name in README, name


def test_every_test_of_a_fault_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in (KIT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)` \|$", README, flags=re.MULTILINE)
    assert len(named) > 10 and all(f"def {name}(" in tests for name in named)


def test_every_picture_is_there():
    for picture in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (KIT / picture).is_file(), picture


def test_no_place_waits_for_a_number():
    assert not re.findall(r"\b(?!SIG)[A-Z]{4,}\d+\b|\bGALLERY\b|\bUNTRAINED\b", README)


def test_every_command_of_a_driver_parses():
    commands = re.findall(r"^\./(?!tests)\w+\.sh (?!status).*?(?= +#|$)", README, flags=re.MULTILINE)
    assert commands[0] == "./run_comparison.sh --demo" and len(commands) > 6
    for command in commands:
        run("bash", "-c", f"{command} --dry_run", check=0)


def test_a_norm_is_added_as_it_says(tmp_path):
    """In a copy of the kit: the class from the README, and its name in two lists."""
    for file in run("git", "ls-files", "*.py", check=0).stdout.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / file, tmp_path / file)
    layer = re.search(r"```python\n(class \w+\(_AffineNorm\):.*?)```", README, flags=re.DOTALL).group(1)
    for file, before, more in (
        ("norms.py", "NORMS = {\n", '    "Softsign": Softsign,\n'),
        ("norms.py", "ALIASES = {\n", '    "soft": "Softsign",\n'),
        ("norms.py", "NORMS = {\n", None),
        ("maekit/settings/methods.py", "NORMS = {\n", '    "Softsign": Norm("soft", "#56B4E9", "-"),\n'),
    ):
        text = (tmp_path / file).read_text(encoding="utf-8")
        at = text.index(f"\n{before}") + 1
        text = text[:at] + (f"{layer}\n\n{text[at:]}" if more is None else before + more + text[at + len(before) :])
        (tmp_path / file).write_text(text, encoding="utf-8")
    flags = (
        "--demo",
        "--epochs",
        "1",
        "--max_images",
        "64",
        "--num_workers",
        "0",
        "--norm",
        "soft",
        "--output_dir",
        tmp_path / "run",
    )
    run(sys.executable, tmp_path / "train.py", *flags, cwd=tmp_path, check=0)
    assert files.read_json(tmp_path / "run/summary.json")["model"] == "Softsign"
    code = "import norms; m = norms.convert_norms(norms.nn.LayerNorm(4), 'soft'); print(len(list(m.parameters())))"
    assert run(sys.executable, "-c", code, cwd=tmp_path, check=0).stdout == "3\n"
