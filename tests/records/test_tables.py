"""The tables of the records, from files made up."""

from maekit.analysis import matched
from maekit.files import write_csv, write_json
from tests.support.records import a_record, tables

STATISTICS = "comparison_statistics.json"


def test_a_table_of_methods_has_means_and_paired_differences(tmp_path):
    """Of 0.4, 0.41, 0.42 and 0.5, 0.52, 0.51: differences of 0.1, 0.11 and 0.09, t(2) = 4.303, 0.01 / sqrt(3)."""
    of = a_record(tmp_path, {"DynamicTanh-alpha2.0": (0.5, 0.52, 0.51), "LayerNorm": (0.4, 0.41, 0.42)})
    assert tables.of_methods(of, (tables.VALIDATION, tables.TO_LAYER_NORM)).splitlines() == [
        "| method | `val_mse` | difference to LayerNorm |",
        "| --- | --- | --- |",
        "| LayerNorm | 0.410 ± 0.010 | |",
        "| DynamicTanh from α = 2.0 | 0.510 ± 0.010 | +0.100 (+0.075 to +0.125) |",
        "| *flat colour* | 1.000 | |",
        "| *smoothed colour* | 0.900 | |",
    ]


def test_a_method_of_which_all_runs_diverged_has_no_numbers(tmp_path):
    of = a_record(tmp_path, {"LayerNorm": (0.4, 0.41), "NoNorm": (9.0, 9.0)})
    of.__dict__["rows"] = [{**row, "status": "diverged"} if row["method"] == "NoNorm" else row for row in of.rows]
    assert "| NoNorm | diverged | diverged |" in tables.of_methods(of, (tables.VALIDATION, tables.TO_LAYER_NORM))
    table = tables.of_methods(a_record(tmp_path / "b", {"RMSNorm": (0.4, 0.41)}), (tables.TO_LAYER_NORM,))
    assert "| RMSNorm | – |" in table


def test_tables_of_rates_and_sizes_say_what_their_files_do(tmp_path):
    """Bold: the rate that was chosen; a dash: no run at that rate."""
    of = a_record(tmp_path, {"LayerNorm": (0.4, 0.5)})

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
    write_json(of.folder / STATISTICS, {"rates": known})
    assert tables.by_rate(of).splitlines() == [
        "| method | `val_mse` at 0.002 | `val_mse` at 0.004 | to LayerNorm, each at its best | all at 0.004 | flat (%) |",
        "| --- | --- | --- | --- | --- | --- |",
        "| LayerNorm | 0.500 | **0.410** | | | |",
        "| DynamicTanh from α = 2.0 | **0.500** | – | +0.090 (+0.050 to +0.130) | 3 of LayerNorm diverged | 25 |",
        "| NoNorm | diverged | 0.750, 1 diverged | – | +0.300, 1 of NoNorm diverged | |",
    ]
    write_json(of.folder / STATISTICS, {"rates": known | {"common": None, "at_common": {}}})
    assert "| all at the reference's | flat (%) |" in tables.by_rate(of).splitlines()[0]
    by_size = {"500": difference(-0.01, -0.03, 0.01), "all": difference(0.02, 0.01, 0.03)}
    known = {"images": {"500": 500, "all": 9469}, "differences": {"DynamicTanh": by_size}}
    write_json(of.folder / STATISTICS, {"sizes": known})
    assert tables.by_size(of).splitlines() == [
        "| method | 500 images | 9,469 images |",
        "| --- | --- | --- |",
        "| DynamicTanh | -0.010 (-0.030 to +0.010) | +0.020 (+0.010 to +0.030) |",
    ]


def test_tables_of_a_sweep_say_what_its_files_do(tmp_path):
    """Bold: established; a dash: not compared; of diverged seeds there is no number."""
    of = a_record(tmp_path, {"LayerNorm": (0.4, 0.5)})
    told = dict.fromkeys(matched.TABLE)
    rows = [
        {
            "accuracy": "frozen_accuracy",
            "alpha": -0.5,
            "mse_low": 0.412,
            "mse_high": 0.523,
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
            "mse_low": 0.412,
            "mse_high": 0.523,
            "mean": -1.0,
            "low": -3.0,
            "high": 1.0,
            "established": 0,
            "left_out": 1,
        },
    ]
    write_csv(of.folder / "matched_table.csv", matched.TABLE, [{**told, "group": "LayerNorm", **row} for row in rows])
    assert tables.matched(of).splitlines() == [
        "| norm | α | MSE | frozen probe (points) | k-NN (points) |",
        "| --- | --- | --- | --- | --- |",
        "| LayerNorm | -0.5 | 0.41 to 0.52 | **-6.0** (-8.0 to -4.0) | – |",
        "| LayerNorm | 0.5 | – | +1.0 | – |",
    ]
    columns = ("norm", "alpha", "n_seeds", "mse_mean", "mse_std", "rank_cls_mean", "rank_cls_std")
    columns += ("untrained_rank_cls_mean", "untrained_rank_cls_std")
    rows = [
        ("LayerNorm", -10.0, 0, None, None, None, None, None, None),
        ("LayerNorm", -0.5, 3, 0.5, 0.01, 8.0, 0.25, 20.0, 0.5),
        ("DynamicTanh", -0.5, 2, 0.6, 0.02, 7.0, 0.15, 10.0, 0.5),
    ]
    write_csv(of.folder / "gap_table.csv", columns, [dict(zip(columns, row)) for row in rows])
    assert tables.last_epochs(of).splitlines() == [
        "| norm | α | n | `val_mse` | effective rank, CLS |",
        "| --- | --- | --- | --- | --- |",
        "| LayerNorm | -10 | 0 | diverged | diverged |",
        "| LayerNorm | -0.5 | 3 | 0.500 ± 0.010 | 8.0 ± 0.2 |",
        "| LayerNorm | *untrained* | 3 | | 20.0 ± 0.5 |",
        "| DynamicTanh | -0.5 | 2 | 0.600 ± 0.020 | 7.0 ± 0.1 |",
        "| DynamicTanh | *untrained* | 2 | | 10.0 ± 0.5 |",
    ]
