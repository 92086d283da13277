"""docs/reproduce.sh: what it lists, runs and compares."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from maekit.errors import InputError
from maekit.files import read_csv, write_csv
from tests.support import KIT, run
from tests.support.records import a_record, collect, record, reproduce

LOSSES = {"LayerNorm": (0.4, 0.41, 0.42), "AdaptiveDynamicTanh": (0.5, 0.52, 0.51)}


def checked(of, monkeypatch, rows):
    """(lines, held) of a check of a record against rows that came out."""
    monkeypatch.setattr(collect, "read", lambda record, kit, settings: (rows, [], {}))
    lines, held = reproduce.check(of)
    return "\n".join(lines), held


def test_a_check_compares_means_over_seeds(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES)
    rows = [dict(row) for row in of.rows]
    text, held = checked(of, monkeypatch, rows)
    assert held and "6 of 6 runs are equal in seven digits" in text and text.endswith("made: holds")
    for row in rows:
        row["val_mse"] += {0: 0.02, 1: -0.02, 2: 0.02}[row["seed"]]  # the mean is 0.0067 off, of 0.01 tolerated
    text, held = checked(of, monkeypatch, rows)
    assert held and "0.0067 apart" in text and "0 of 6 runs are equal" in text
    rows[0]["val_mse"] += 0.02
    text, held = checked(of, monkeypatch, rows)
    assert not held and "OFF LayerNorm, val_mse: 0.42" in text and text.endswith("made: DOES NOT HOLD")


def test_a_negative_alpha_has_tolerances_of_its_own(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES, tolerance_below_0={"val_mse": 0.1})
    committed = [{**row, "alpha": alpha} for row in of.rows for alpha in (-0.5, 0.5)]
    of.__dict__["rows"] = committed
    off = lambda alpha: [{**row, "val_mse": row["val_mse"] + 0.05 * (row["alpha"] == alpha)} for row in committed]
    assert checked(of, monkeypatch, off(-0.5))[1] and not checked(of, monkeypatch, off(0.5))[1]


def test_what_hangs_on_chance_is_not_compared_and_said(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES, by_chance={"AdaptiveDynamicTanh": "it collapses"})
    rows = [{**row, "val_mse": 9.0} if row["method"] == "AdaptiveDynamicTanh" else row for row in of.rows]
    text, held = checked(of, monkeypatch, rows)
    assert held and "AdaptiveDynamicTanh: not compared, it collapses" in text


def test_a_run_that_diverges_where_none_did_does_not_hold(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES)
    spoilt = {"status": "diverged", "val_mse": None}
    one = [row if row["method"] == "LayerNorm" or row["seed"] else {**row, **spoilt} for row in of.rows]
    text, held = checked(of, monkeypatch, one)
    assert not held and "OFF AdaptiveDynamicTanh, diverged: 1, committed 0" in text
    text, held = checked(of, monkeypatch, [{**row, **spoilt} for row in of.rows])
    assert not held and "OFF LayerNorm, val_mse: none, committed 0.41" in text


def test_how_long_runs_took_is_not_compared(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES)
    text, held = checked(of, monkeypatch, [{**row, "total_time": 3.5} for row in of.rows])
    assert held and "6 of 6 runs are equal" in text


def test_what_was_not_run_does_not_hold(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES)
    text, held = checked(of, monkeypatch, of.rows[:-1])
    assert not held and "AdaptiveDynamicTanh: not run" in text


def test_other_images_are_named(tmp_path, monkeypatch):
    of = a_record(tmp_path, LOSSES)
    text, held = checked(of, monkeypatch, [{**row, "flat_colour": 1.1} for row in of.rows])
    assert not held and "Other images than the committed ones" in text


def test_a_folder_of_ones_own_data_is_put_into_the_commands(tmp_path):
    of = record.read("imagenette_rates")
    (tmp_path / "my own").mkdir()
    (line,) = reproduce.commands(of, tmp_path / "my own")
    assert f"--imagenet_dir '{tmp_path / 'my own'}' --max_images" in line and "data/imagenette" not in line


def test_data_that_are_not_there_end_in_one_line(tmp_path):
    of = record.read("imagenette_rates")
    with pytest.raises(InputError, match=r"--data .*nowhere: no such folder\. It is the real Imagenette.*git clone"):
        reproduce.commands(of, tmp_path / "nowhere")


def called(*words, kit=KIT, check, env=None):
    return run("bash", kit / "docs/reproduce.sh", *words, check=check, env={"PYTHON": sys.executable, **(env or {})})


def test_records_are_listed_with_their_times():
    listed = called("--list", check=0).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["name", *record.names()]
    assert all(" min" in line or " h" in line for line in listed[1:])


@pytest.mark.parametrize(
    ("words", "told"), [(("nothing",), "nothing: no such record. There are imagenette"), ((), "no record named")]
)
def test_what_cannot_be_done_is_one_line(words, told):
    done = called(*words, check=2)
    assert told in done.stderr and done.stderr.count("\n") == 1


RECORD = """title = "Two runs"
data = "demo"
commands = [
    './run_comparison.sh --demo --methods "ln dyt" --epochs 1 --max_images 64 --batch_size 16 --output_dir output_two',
]
runs = "output_two"
copied = ["comparison_statistics.json"]

[tolerance]
val_mse = 0.001
"""
TEXT = """It is {{ runs(method="DynamicTanh").mean("val_mse")|fixed }}.

{{ methods_table("losses") }}
*What it does not show:* all else.
"""


@pytest.mark.slow
def test_a_record_is_run_taken_printed_and_checked(tmp_path):
    """From commands to a page, in a kit of its own, and back: the check holds, and does not where a number is another."""
    names = (
        "README.md",
        "docs",
        "maekit",
        "norms.py",
        "train.py",
        "analysis.py",
        "run_comparison.sh",
        "requirements.txt",
    )
    for name in names:
        (shutil.copytree if (KIT / name).is_dir() else shutil.copy)(KIT / name, tmp_path / name)
    results = tmp_path / "docs/results"
    listing = (results / "records.toml").read_text(encoding="utf-8")
    (results / "records.toml").write_text('records = ["two"]\n' + listing.partition("\n\n")[2], encoding="utf-8")
    for name in ("first", "found"):
        (results / f"{name}.md").write_text("Two.", encoding="utf-8")
    (results / "two").mkdir()
    (results / "two/record.toml").write_text(RECORD, encoding="utf-8")
    (results / "two/text.md").write_text(TEXT, encoding="utf-8")
    assert "two   not known" in called("--list", kit=tmp_path, check=0).stdout
    assert "no numbers are committed yet" in called("two", "--check", kit=tmp_path, check=2).stderr
    called("two", kit=tmp_path, check=0)
    run(sys.executable, tmp_path / "docs/results.py", "--take", "two", check=0)
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert "## Two runs" in page and "| LayerNorm | " in page and "two cores" not in page
    checked = called("two", "--check", kit=tmp_path, check=0).stdout
    assert "2 of 2 runs are equal in seven digits" in checked and "two: holds" in checked
    summary = tmp_path / "output_two/DynamicTanh/seed0/summary.json"
    summary.rename(tmp_path / "summary.json")
    assert "DynamicTanh: not run" in called("two", "--check", kit=tmp_path, check=1).stdout
    taken = run(sys.executable, tmp_path / "docs/results.py", "--take", "two", check=2).stderr
    assert "seed0 has not ended. Run docs/reproduce.sh two again" in taken
    (tmp_path / "summary.json").rename(summary)
    again = called("two", kit=tmp_path, check=0).stdout
    assert "Time it took: " in again and "epoch 1/1" not in again
    rows = read_csv(results / "two/runs.csv")
    rows[0]["val_mse"] += 0.01
    write_csv(results / "two/runs.csv", list(rows[0]), rows)
    assert "OFF LayerNorm, val_mse" in called("two", "--check", kit=tmp_path, check=1).stdout
    shutil.rmtree(tmp_path / "output_two")
    assert "Run docs/reproduce.sh two first" in called("two", "--check", kit=tmp_path, check=2).stderr


def test_an_interrupt_is_the_commands_own_to_answer(tmp_path):
    """Ctrl-C goes to every process of the terminal: the driver counts what is done and stops, and nothing of ours is in its way."""
    line = "trap 'echo stopped in order; exit 130' INT; echo ready; sleep 60 & wait"
    code = (
        f"import sys; sys.path[:0] = {[str(KIT), str(KIT / 'docs')]}\nfrom records import reproduce\n"
        f"sys.exit(reproduce._called({line!r}))"
    )
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "stopped in order\n", "")
