"""The table of measures, and a run's record of them."""

import pytest

from maekit.runs import measures
from maekit.runs.folder import RunFolder
from maekit.runs.record import Record
from tests.support.frozen import FROZEN


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("run_log", measures.LOG_COLUMNS),
        ("evaluation_log", measures.EVALUATION_COLUMNS),
        ("run_norm_alpha", measures.ALPHA_COLUMNS),
    ],
)
def test_the_columns_of_files_are_those_that_users_have_scripts_for(name, columns):
    assert list(columns) == (FROZEN / "columns" / f"{name}.txt").read_text().split()


def test_every_measure_has_a_label_and_a_place():
    for row in measures.MEASURES.values():
        assert row.label and row.places and row.better in ("lower", "higher", None), row
        assert (row.unit == "%") == (row.kind is measures.ACCURACY), row


def test_an_axis_says_what_and_in_which_unit():
    axis = {column: measures.MEASURES[column].axis for column in ("val_mse", "frozen_accuracy", "avg_epoch_time")}
    assert axis == {
        "val_mse": "validation loss (MSE, hidden patches)",
        "frozen_accuracy": "frozen probe accuracy (%)",
        "avg_epoch_time": "training time per epoch (s)",
    }


def epoch(**more):
    return {"epoch": 0, "train_loss": 1.0, "val_mse": 0.5, "frozen_accuracy": 40.0, **more}


HEAD = {"alpha": 0.5, "lr": 1e-3, "model": "vit_tiny", "decoder": None, "norm": "LayerNorm", "seed": 0}


def test_a_column_that_the_table_does_not_have_is_an_error_that_names_it(tmp_path):
    record = Record(RunFolder(tmp_path), measures.LOG_COLUMNS, HEAD)
    with pytest.raises(ValueError, match=r"entropy, acc1: no such column of log.csv.* maekit/runs/measures.py"):
        record.add(epoch(entropy=3.0, acc1=5.0), [], "running")
    assert not record.log and not (tmp_path / "log.csv").exists()


def test_what_is_measured_once_may_come_with_an_epoch_and_is_in_no_row(tmp_path):
    record = Record(RunFolder(tmp_path), measures.LOG_COLUMNS, HEAD)
    record.add(
        epoch(flat_colour=0.9, smooth_colour=None), [{"layer": "norm", "alpha": 0.7, "saturated": None}], "running"
    )
    assert list(record.log[0]) == list(measures.LOG_COLUMNS) and record.log[0]["norm_alpha_mean"] == 0.7


def test_a_point_has_the_names_of_the_original_gap_scripts(tmp_path):
    from maekit.files import read_json

    record = Record(RunFolder(tmp_path), measures.LOG_COLUMNS, HEAD)
    record.add(epoch(), [], "running")
    (point,) = read_json(tmp_path / "trajectory.json")["trajectory"]
    assert list(point) == ["epoch", "mse", *measures.WATCHED, "alpha", "lr"]
    assert (point["mse"], point["accuracy"], point["frozen_accuracy"], point["lr"]) == (0.5, None, 40.0, 1e-3)
