"""The comparison typed into the cells of a real notebook, which a kernel executes as Jupyter has it do."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.support import KIT, started_as

CELLS = (
    "!./run_comparison.sh --demo --epochs 2 --max_images 32 --batch_size 16",
    'import pandas\ntable = pandas.read_csv("output_demo/comparison_table.csv")\ntable[["model", "status", "val_mse"]]',
    "!./run_comparison.sh --demo --epochs 2 --max_images 32 --batch_size 16; echo code $?",
    "!./run_comparison.sh --demo --epochs none; echo code $?",
)
METHODS = ["LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the notebook's folder, its kernel's MPLBACKEND, the outputs of each cell)."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat").v4
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "run_comparison.sh").symlink_to(KIT / "run_comparison.sh")
    # the kit's Python knows nothing of what the notebook's has, as .venv does not
    theirs = Path(nbclient.__file__).resolve().parents[1]
    kept = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and Path(place) != theirs]
    (folder / "python").write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(os.pathsep.join(kept))} exec {shlex.quote(sys.executable)} "$@"\n'
    )
    (folder / "python").chmod(0o755)
    env = started_as((), cold=True)[1] | {"PYTHON": str(folder / "python"), "IPYTHONDIR": str(folder / "ipython")}
    cells = [*CELLS, 'import os\nprint(os.environ["MPLBACKEND"])']
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    patience = {"timeout": 300, "iopub_timeout": 100, "raise_on_iopub_timeout": True}  # else late outputs are left out
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **patience)
    client.execute(env=env)
    *outputs, backend = [cell.outputs for cell in notebook.cells]
    return folder, text(backend).strip(), outputs


def text(outputs):
    """What a cell shows as text, by the stream's name or as the value of its last line; an error is one of the test."""
    assert not [output for output in outputs if output.output_type == "error"], outputs
    shown = [output.text if output.output_type == "stream" else output.data["text/plain"] for output in outputs]
    return "".join(shown).replace("\r\n", "\n")


def test_a_comparison_runs_in_a_cell_and_ends_with_its_table(executed):
    folder, backend, outputs = executed
    assert backend == "module://matplotlib_inline.backend_inline"  # which the kit's Python does not have
    shown = text(outputs[0])
    assert "Traceback" not in shown and "error:" not in shown
    lines = shown.splitlines()
    table = next(i for i, line in enumerate(lines) if line.split()[:2] == ["method", "n"])
    assert [line.split()[:3] for line in lines[table + 1 : table + 4]] == [[name, "1", "finished"] for name in METHODS]
    assert lines[-1].startswith("written to output_demo: report.html, comparison_table.csv,")
    assert (folder / "output_demo/loss_comparison.png").stat().st_size > 10_000


def test_progress_adds_lines_to_a_cell_which_cannot_be_written_over(executed):
    assert "\x1b" not in text(executed[2][0])


def test_the_next_cell_reads_the_results(executed):
    (value,) = executed[2][1]
    assert value.output_type == "execute_result" and "<table" in value.data["text/html"]
    rows = [line.split()[1:] for line in value.data["text/plain"].splitlines()[1:]]
    assert [row[:2] for row in rows] == [[name, "finished"] for name in METHODS]
    assert all(0.2 < float(row[2]) < 3 for row in rows)


def test_the_same_cell_again_repeats_nothing(executed):
    shown = text(executed[2][2])
    assert shown.count(": done already\n") == 3 and shown.endswith("code 0\n")


def test_bad_input_is_one_line_in_a_cell(executed):
    error, code = text(executed[2][3]).splitlines()
    assert error.startswith("error: argument --epochs: invalid int value: 'none'.") and code == "code 2"
