"""docs/results.md and the README's results are what the committed files of the records say."""

import re
import shutil
import sys

import pytest

from tests.support import KIT, run
from tests.support.pages import PAGES, blocks
from tests.support.records import a_record, numbers, page, record

RESULTS = KIT / "docs/results"
NAMES = record.names()
NUMBER = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


def test_pages_say_what_the_records_do():
    """After a change in docs/results/: python docs/results.py"""
    run(sys.executable, KIT / "docs/results.py", "--check", check=0)


def test_every_folder_is_a_record_and_has_its_files():
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert folders == set(NAMES)
    for name in NAMES:
        of = record.read(name)
        known = {
            "record.toml",
            "text.md",
            "about.json",
            "runs.csv",
            *of.copied,
            *(["epochs.csv"] if of.by_epoch else []),
        }
        assert {path.name for path in of.folder.iterdir()} == known, name
        assert of.data in record.data() and all((KIT / "docs" / figure).is_file() for figure in of.figures), name


def test_the_files_are_small_and_of_no_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2**20
    of_a_machine = r",/|[A-Z]:\\|/(tmp|home|root|work)/"
    assert not [path for path in files if re.search(of_a_machine, path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_a_result_is_typed(name):
    """What stands in a record's text as a number is a setting: of its commands or data, or stated in record.toml."""
    of = record.read(name)
    text = (of.folder / "text.md").read_text(encoding="utf-8")
    text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\]\([^)]*\)|arXiv\s+[\d.]+", " ", text, flags=re.DOTALL)
    commands = " ".join(of.commands)
    of_commands = {float(found) for found in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", commands)}
    of_data = {float(number) for name in ("train_images", "val_images", "parameters") for number in of.about[name]}
    settings = of_commands | of_data | {95.0} | {float(number) for number in of.stated}
    typed = {found for found in re.findall(NUMBER, text) if float(found.rstrip(",").replace(",", "")) not in settings}
    assert not typed


def test_a_record_that_types_a_number_is_seen():
    assert re.findall(NUMBER, "It is 0.043 (0.018 to 0.068) of 9,469 images, n = 3, enc64, 1.5e-4.")


@pytest.mark.parametrize("name", NAMES)
def test_a_record_has_the_one_form(name):
    of = record.read(name)
    text = PAGES["results.md"]
    part = text[text.index(f"\n## {of.title}\n") :].split("\n## ")[1]
    claim = part.split("\n\n")[1]
    assert claim.startswith("**") and claim.endswith("**")
    assert re.search(r"n = \d", claim) and "95 % interval" in claim.replace("\n", " "), claim
    assert blocks(part, "bash") and page.CANNOT in part
    for row in ("data", "runs", "time", "kit", "versions", "files", "again"):
        assert f"\n| {row} | " in part, row
    assert f"](#{page.anchor(of.title)})" in text


def kit_copy(tmp_path):
    for name in ("README.md", "docs", "maekit", "norms.py"):
        copy = shutil.copytree if (KIT / name).is_dir() else shutil.copy
        copy(KIT / name, tmp_path / name)
    return tmp_path


def test_a_number_that_is_not_the_runs_is_noticed(tmp_path):
    kit = kit_copy(tmp_path)
    text = kit / "docs/results.md"
    right = text.read_text(encoding="utf-8")
    text.write_text(right.replace("| LayerNorm | 0.", "| LayerNorm | 1.", 1), encoding="utf-8")
    check = (sys.executable, kit / "docs/results.py", "--check")
    assert "docs/results.md: not what docs/results/ says" in run(*check, check=1).stderr
    run(*check[:-1], check=0)
    assert text.read_text(encoding="utf-8") == right


def test_what_is_written_of_results_in_the_readme_is_printed():
    text = (KIT / "README.md").read_text(encoding="utf-8")
    assert [found[1] for found in page.PRINTED.findall(text)] == ["first", "found"] and page.in_readme(text) == text
    mark = "<!-- found: printed by docs/results.py -->"
    assert page.in_readme(text.replace(mark, f"{mark}\n\nDynamicTanh wins by 9.")) == text


TEXT = """
It is {{ runs(method="DynamicTanh").minus(runs(method="LayerNorm"), "val_mse").claim() }}.

More{{ given(runs(method="DynamicTanh").minus(runs(method="LayerNorm"), "val_mse").low > 0) }}.

*What it does not show:* all else.
"""


def test_a_sentence_that_the_numbers_do_not_bear_is_not_printed(tmp_path):
    losses = {"LayerNorm": (0.4, 0.41, 0.42), "DynamicTanh": (0.5, 0.52, 0.51)}
    known = page.written(a_record(tmp_path / "a", losses, TEXT))
    assert known["claim"] == "It is 0.100 (95 % interval 0.075 to 0.125, n = 3)."
    assert known["text"].startswith("More.")
    with pytest.raises(
        numbers.NotBorneOut, match="docs/results/made/text.md, line 4: the committed numbers do not bear"
    ):
        page.written(a_record(tmp_path / "b", losses | {"DynamicTanh": (0.5, 0.4, 0.51)}, TEXT))
    with pytest.raises(ValueError, match="does not say what it does not show"):
        page.written(a_record(tmp_path / "c", losses, TEXT.replace("*What", "What")))


def test_paragraphs_are_broken_anew_and_tables_are_not():
    text = "a\nb\n\n| x | y |\n| - | - |\n\n```bash\nc \\\n  d\n```\n\n- " + "word " * 30 + "\n- e\nf\n\n![p](q.png)\n"
    assert page.reflowed(text) == (
        "a b\n\n| x | y |\n| - | - |\n\n```bash\nc \\\n  d\n```\n\n"
        + f"- {' '.join(['word'] * 23)}\n  {' '.join(['word'] * 7)}\n- e f\n\n![p](q.png)"
    )
