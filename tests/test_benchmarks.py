"""The benchmarks run, and their tables are what their JSON files say. How fast things are is not tested."""

import json
import subprocess
import sys

import pytest

from tests.support import KIT, run

sys.path.insert(0, str(KIT / "benchmarks"))

import common

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything in CPU mode: the folder with its one JSON file, and what was printed."""
    folder = tmp_path_factory.mktemp("results")
    done = run("bash", KIT / "benchmarks/gpu.sh", "--cpu", env={"RESULTS": str(folder)}, check=0)
    return folder, done.stdout


def test_one_file_holds_all_of_a_machine(measured):
    (file,) = measured[0].iterdir()
    whole = json.loads(file.read_text())
    assert set(whole["benchmarks"]) == {"norms", "data", "train", "steps", "phases", "sweep"}
    assert whole["machine"] and whole["torch"] and whole["date"]
    for name, found in whole["benchmarks"].items():
        assert found["rows"] and all(row.keys() == found["rows"][0].keys() for row in found["rows"]), name


def test_the_report_prints_the_tables_of_the_files(measured):
    (file,) = measured[0].iterdir()
    printed = run(sys.executable, KIT / "benchmarks/report.py", file, check=0).stdout
    for name, found in json.loads(file.read_text())["benchmarks"].items():
        table = common.table(found["rows"])
        assert f"bench_{name}.py" in printed and table in printed and table in measured[1]


def test_the_whole_sweep_follows_from_a_short_and_a_long_run(measured):
    """With all that an epoch has, validation and probes: two points of a line, here by way of its equation."""
    (file,) = measured[0].iterdir()
    sweep = json.loads(file.read_text())["benchmarks"]["sweep"]
    first, short, long = sweep["rows"]
    assert (short["epochs"], long["epochs"]) == (1, 6) and short["seconds"] < long["seconds"]
    at_50 = short["seconds"] + (50 - 1) / (6 - 1) * (long["seconds"] - short["seconds"])
    assert sweep["whole_minutes"] == pytest.approx((first["seconds"] - short["seconds"] + 25 * at_50) / 60, abs=0.06)
    assert sweep["start_s"] + 6 * sweep["epoch_s"] == pytest.approx(long["seconds"], abs=0.01)


def test_what_probes_cost_is_a_multiple_of_an_epoch_without_them(tmp_path):
    file = tmp_path / "probes.json"
    flags = (
        "--rounds",
        "1",
        "--demo",
        "--max_images",
        "64",
        "--batch_size",
        "32",
        "--num_workers",
        "0",
        "--eval_every",
        "2",
    )
    run(sys.executable, KIT / "benchmarks/bench_probes.py", "--device", "cpu", "--json", file, *flags, check=0)
    found = json.loads(file.read_text())
    plain, *others = found["rows"]
    assert (plain["probes"], plain["of_none"], found["eval_every"]) == ("none", 1, 2)
    assert all(0.3 < row["of_none"] < 10 for row in others) and others[-1]["probes"] == "all"


def test_an_epoch_that_scores_and_the_others_are_each_a_median():
    import bench_probes

    assert bench_probes.typical([1, 2, 9, 10, 1, 3, 3, 20], every=4) == (3 * 2.5 + 15) / 4
    assert bench_probes.typical([5, 6, 70], every=1) == 6


def test_images_that_live_on_the_device_do_not_hinder_batches_that_are_ready(monkeypatch):
    """As on a GPU, where the demo's images have room."""
    from types import SimpleNamespace

    import bench_train
    import torch

    from maekit.data import resident

    monkeypatch.setattr(resident, "place", lambda images, device, _: resident.ResidentImages(images.store, device))
    args = SimpleNamespace(
        norms=["LayerNorm", "DynamicTanh"], with_data=False, imagenet_dir=None, num_workers=0, compile="off", seconds=0
    )
    case = {"model": "mae_vit_demo_patch8", "batch_size": 8, "steps": 1}
    rows = list(bench_train.compare(case, args, torch.device("cpu"), None, 1e12))
    assert [row["loop"] for row in rows] == ["kit, LayerNorm", "kit, DynamicTanh"]


def test_pipelines_are_compared_with_upstreams(measured):
    (file,) = measured[0].iterdir()
    found = json.loads(file.read_text())["benchmarks"]["data"]
    upstream, fresh, cached = (row["of upstream"] for row in found["rows"])
    assert upstream == 1 and 0 < min(fresh, cached)
    assert 0 < found["cached crops differ from fresh ones by (levels of 255)"] < 2


def test_norms_keep_one_tensor(measured):
    (file,) = measured[0].iterdir()
    rows = json.loads(file.read_text())["benchmarks"]["norms"]["rows"]
    kept = {row["norm"]: row["kept"] for row in rows}
    assert all(kept[name] == 1 for name in ("RMSNorm", "DynamicTanh", "AdaptiveDynamicTanh", "DynamicErf", "Saturlog"))
    assert kept["DynamicTanh, formula"] == 2 and kept["DynamicErf, formula"] == 3


def test_a_missing_gpu_is_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, KIT / "benchmarks/bench_norms.py", "--device", "cuda"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and done.stderr.count("\n") == 1 and "--device cuda" in done.stderr


def test_things_are_timed_in_turn():
    import torch

    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = common.in_turn(functions, torch.device("cpu"), seconds=0, least=3)
    assert calls == list("ab" * 4) and seconds.keys() == functions.keys()


def test_tables_are_those_of_the_files_in_results():
    printed = run(sys.executable, KIT / "benchmarks/report.py", check=0).stdout.splitlines()
    page = (KIT / "docs/performance.md").read_text(encoding="utf-8").partition("## Goals")[0]
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 60 and not set(rows) - set(printed)
