"""Imports go one way: what each room of the kit may use, held against what its files import."""

import ast
import os
import subprocess
import sys

import pytest

from tests.support import KIT

GROUND = {"distributed", "errors", "files", "locks", "machine", "stats", "surroundings"}
MAY_USE = {  # room: rooms; the ground is open to all
    "settings": set(),
    "data": {"settings"},
    "model": {"settings"},
    "runs": {"settings"},
    "probes": {"model", "data", "runs", "settings"},
    "training": {"probes", "model", "data", "runs", "settings"},
    "analysis": {"runs", "settings"},
    "drivers": {"runs", "settings"},
    "export": {"training", "model", "data", "runs", "settings"},
}
WITHOUT_TORCH = ("settings", "runs", "analysis", "drivers")


def imports(file):
    """(line, dotted name below maekit or another top-level name) of every import of a file."""
    package = file.relative_to(KIT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            home = [*package[: len(package) - node.level + 1]] if node.level else []
            home += (node.module or "").split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*home, alias.name])


def room_of(name):
    """The room of maekit, or the file on its ground floor, that a dotted name is in; None of another package's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "maekit" and len(parts) > 1 else None


def wrong_way(file):
    """What a file imports that it may not: ["maekit/settings/x.py:3 imports maekit.training"]."""
    parts = file.relative_to(KIT).parts
    room = parts[1] if len(parts) > 2 else None
    may = GROUND | (MAY_USE[room] | {room} if room else set())
    return [
        f"{'/'.join(parts)}:{line} imports {name}"
        for line, name in imports(file)
        if (room_of(name) not in may | {None}) or name.partition(".")[0] in ("norms", "train", "analysis", "tests")
    ]


def files():
    return sorted((KIT / "maekit").rglob("*.py"))


def test_every_file_is_in_a_room_or_on_the_ground():
    on_the_ground = {file.stem for file in (KIT / "maekit").glob("*.py")} - {"__init__"}
    assert on_the_ground == GROUND
    rooms = {file.relative_to(KIT / "maekit").parts[0] for file in files() if file.parent != KIT / "maekit"}
    assert rooms == set(MAY_USE)


def test_imports_go_one_way():
    assert [line for file in files() for line in wrong_way(file)] == []


def test_an_import_turned_around_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "KIT", tmp_path)
    file = tmp_path / "maekit/settings/x.py"
    file.parent.mkdir(parents=True)
    file.write_text("def f():\n    from ..training import trainer\n\n\nimport norms\nfrom ..files import KIT\n")
    seen = {line.partition(" ")[2] for line in wrong_way(file)}
    assert seen == {"imports norms", "imports maekit.training.trainer"} and len(wrong_way(file)) == 2


def test_norms_needs_torch_alone():
    found = {name.partition(".")[0] for _, name in imports(KIT / "norms.py")}
    assert found == {"copy", "functools", "torch"}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_help_and_errors_do_not_wait_for_torch(room):
    modules = [".".join(file.relative_to(KIT).with_suffix("").parts) for file in (KIT / "maekit" / room).glob("*.py")]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=KIT, check=False).returncode == 0


@pytest.mark.parametrize("script", ["train.py", "analysis.py"])
def test_help_is_there_before_the_packages_are(script):
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = [sys.executable, "-S", KIT / script, "--help"]  # -S: the standard library alone
    help_ = subprocess.run(run, env=without, capture_output=True, text=True, check=False)
    assert (help_.returncode, help_.stderr) == (0, "")


def of_the_kit(ending):
    """Every file of the kit's that ends so: not those of a .venv or of a clone beside it."""
    below = (file for room in ("maekit", "benchmarks", "docs", "tests") for file in (KIT / room).rglob(f"*{ending}"))
    return sorted([*below, *KIT.glob(f"*{ending}")])


def test_what_begins_with_its_interpreter_can_be_run_and_nothing_else():
    files = [file for ending in (".sh", ".py") for file in of_the_kit(ending)]
    begins = {file: file.read_bytes().startswith(b"#!") for file in files}
    runs = {file: os.access(file, os.X_OK) for file in files}
    assert [file for file in files if begins[file] != runs[file]] == []
    assert sum(runs.values()) > 10


def test_a_file_is_read_in_one_sitting_and_a_function_on_one_screen():
    for file in of_the_kit(".py"):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, file
        if KIT / "tests" in file.parents:  # what happens to a run in a test may take more than a screen
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name}"
        assert "fmt: skip" not in text, file
