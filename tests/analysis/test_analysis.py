"""Tables and figures of a comparison, from real runs."""

import csv
import itertools
import json
import shutil
import statistics

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import maekit.analysis.comparison
from maekit import files
from maekit.analysis import comparison_figures, figures
from maekit.runs.reading import is_evaluation
from tests.support import analyse_here, train_here
from tests.support.runs import fabricated

QUICK = ("--demo", "--epochs", "2", "--max_images", "32", "--batch_size", "32", "--num_workers", "0")
METHODS = ("LayerNorm", "DynamicTanh", "AdaptiveDynamicTanh")
FIGURES = ("loss_comparison", "paired_differences", "timing_comparison", "reconstruction_comparison", "alpha_dynamics")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison of three methods by two seeds, without its analysis."""
    root = tmp_path_factory.mktemp("comparison")
    for method in METHODS:
        for seed in (0, 1):
            folder = root / method / f"seed{seed}"
            train_here(*QUICK, "--norm", method, "--seed", seed, "--output_dir", folder, check=0)
    return root


@pytest.fixture
def copy(comparison, tmp_path):
    return shutil.copytree(comparison, tmp_path / "runs")


def analyse(root, check=0, draw=False):
    return analyse_here("comparison", "--output_dir", root, check=check, draw=draw)


def test_the_table_says_what_the_logs_say(copy):
    """Recomputed from log.csv with the csv module and plain Python."""
    analyse(copy)
    with open(copy / "comparison_table.csv", newline="") as f:
        table = {(row["model"], row["seed"]): row for row in csv.DictReader(f)}
    assert list(table) == [(m, s) for m in METHODS for s in ("0", "1")] + [
        (m, s) for m in METHODS for s in ("mean", "std")
    ]
    for method in METHODS:
        finals, times = [], []
        for seed in "01":
            with open(copy / method / f"seed{seed}" / "log.csv", newline="") as f:
                log = list(csv.DictReader(f))
            row, losses = table[method, seed], [float(r["train_loss"]) for r in log]
            assert float(row["final_loss"]) == losses[-1] and float(row["min_loss"]) == min(losses)
            assert int(row["min_loss_epoch"]) == losses.index(min(losses)) and int(row["total_epochs"]) == 2
            assert float(row["val_mse"]) == float(log[-1]["val_mse"])
            mean_time = sum(float(r["epoch_time_s"]) for r in log) / 2
            assert float(row["avg_epoch_time"]) == pytest.approx(mean_time, rel=1e-12)
            assert 0 < float(row["smooth_colour"]) < float(row["flat_colour"])
            assert 5 < float(row["psnr"]) < 40 and 0 < float(row["ssim"]) < 1
            finals.append(float(log[-1]["val_mse"]))
            times.append(float(row["total_time"]))
        assert float(table[method, "mean"]["val_mse"]) == pytest.approx(statistics.mean(finals), rel=1e-12)
        assert float(table[method, "std"]["val_mse"]) == pytest.approx(statistics.stdev(finals), rel=1e-9)
        assert float(table[method, "mean"]["total_time"]) == pytest.approx(statistics.mean(times), rel=1e-12)


@pytest.mark.slow
def test_every_figure_is_there_as_png_and_pdf_and_shows_something(copy):
    result = analyse(copy, draw=True)
    for name in FIGURES:
        pixels = np.asarray(Image.open(copy / f"{name}.png").convert("RGB"))
        assert pixels.shape[1] >= 900 and pixels.std() > 10, name
        assert (copy / f"{name}.pdf").read_bytes().startswith(b"%PDF") and name in result.stdout
        column = copy / f"{name}_column.png"  # where a figure is wider than a column of a paper, 85 mm at 300 dpi
        assert column.exists() == (pixels.shape[1] > 1004)
        assert not column.exists() or (Image.open(column).width == 1003 and column.with_suffix(".pdf").exists())
    assert (copy / "LayerNorm/seed0/loss_curve.png").exists()


@pytest.mark.slow
def test_the_printed_table_has_methods_spread_and_baselines(copy):
    out = analyse(copy).stdout
    assert all(method in out for method in METHODS) and " ± " in out
    assert "flat colour" in out and "smoothed colour" in out


def test_another_method_can_be_the_reference(copy):
    """In the statistics, in the sentences, on the axis of differences, in the ratios of times and on the page."""
    out = analyse_here("comparison", "--output_dir", copy, "--reference", "dyt", check=0, draw=False).stdout
    known = json.loads((copy / "comparison_statistics.json").read_text())
    assert known["reference"] == "DynamicTanh" and list(known["differences"]["val_mse"]) == [METHODS[0], METHODS[2]]
    assert " below DynamicTanh in " in out or " above DynamicTanh in " in out
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "Differences to DynamicTanh, paired by seed" in page and "minus that of DynamicTanh" in page
    assert "ratio to DynamicTanh" in page and "{reference}" not in page
    found = [fabricated(m, 0, [0.5], seconds=s, status=None) for m, s in (("LayerNorm", 1.0), ("DynamicTanh", 2.0))]
    figure = comparison_figures.timing_comparison(maekit.analysis.comparison.tabulate(found), "DynamicTanh")
    said = [text.get_text() for text in figure.axes[0].texts]
    assert [text.split(", ")[1] for text in said] == ["0.50×", "1.00×"]


@pytest.mark.parametrize(
    ("typed", "said"), [("derf", "no run is of DynamicErf. There are LayerNorm, "), ("x", "unknown")]
)
def test_a_reference_that_is_not_there_is_one_line(comparison, typed, said):
    error = analyse_here("comparison", "--output_dir", comparison, "--reference", typed, check=2, draw=False).stderr
    assert error.startswith(f"error: --reference {typed}: {said}") and len(error.splitlines()) == 1


@pytest.mark.slow
def test_unfinished_and_diverged_runs_are_shown_and_named(copy):
    killed, diverged = copy / "DynamicTanh/seed1", copy / "AdaptiveDynamicTanh/seed1"
    for name in ("summary.json", "reconstructions.npz"):
        (killed / name).unlink()
    summary = json.loads((diverged / "summary.json").read_text())
    files.write_json(diverged / "summary.json", {**summary, "status": "diverged"})
    out = analyse(copy).stdout
    assert f"{killed}: unfinished after 2 epochs" in out and f"{diverged}: diverged after 2 epochs" in out
    with open(copy / "comparison_table.csv", newline="") as f:
        rows = {(row["model"], row["seed"]): row for row in csv.DictReader(f)}
    assert rows["DynamicTanh", "1"]["status"] == "unfinished" and rows["DynamicTanh", "1"]["val_mse"]
    assert ("DynamicTanh", "mean") not in rows and ("LayerNorm", "mean") in rows


def test_the_printed_table_is_of_finished_runs_where_there_are_any():
    found = [fabricated("LayerNorm", 0, [0.5]), fabricated("LayerNorm", 1, [9.0], status=None)]
    found.append(fabricated("RMSNorm", 0, [0.25], status=None))
    head, *lines = maekit.analysis.comparison.render(maekit.analysis.comparison.tabulate(found)).splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    assert head.split()[:3] == ["method", "n", "status"]
    assert rows["LayerNorm"][1:3] == ["1", "finished"] and "0.5" in rows["LayerNorm"]
    assert rows["RMSNorm"][1:3] == ["1", "unfinished"] and "0.25" in rows["RMSNorm"]


def test_runs_that_shared_the_machine_are_said_to_have():
    for together, said in ((1, 0), (2, 1), (3, 1)):
        found = [fabricated("LayerNorm", seed, [0.5]) for seed in (0, 1)]
        found[1]["config"]["runs_at_a_time"] = together
        notices = list(maekit.analysis.comparison.notices_on(found, [], maekit.analysis.comparison.tabulate(found)))
        assert len(notices) == said and all(f"Up to {together} runs at a time" in notice for notice in notices)


@pytest.mark.slow
def test_a_run_that_diverged_before_its_first_epoch_is_named(copy):
    train_here(
        *QUICK, "--norm", "rms", "--lr", "1e18", "--batch_size", "16", "--output_dir", copy / "RMSNorm/seed0", check=0
    )
    out = analyse(copy).stdout
    assert "RMSNorm" in out and "diverged after 0 epochs" in out


@pytest.mark.slow
def test_runs_of_unequal_settings_are_called_no_fair_comparison(copy):
    train_here(*QUICK, "--norm", "derf", "--lr", "1e-3", "--output_dir", copy / "DynamicErf/seed0", check=0)
    out = analyse(copy).stdout
    assert "differ in lr (0.001, " in out and "not a fair comparison" in out
    assert "differ in adyt" not in out and "differ in norm" not in out


@pytest.mark.slow
def test_a_run_from_other_weights_is_no_fair_comparison(copy):
    config = json.loads((copy / "DynamicTanh/seed0/config.json").read_text())
    config["identity"]["init"] = "sha256:0123456789abcdef"
    files.write_json(copy / "DynamicTanh/seed0/config.json", config)
    assert "note: The runs differ in init (None, sha256:0123456789abcdef)" in analyse(copy).stdout


@pytest.mark.slow
def test_a_method_and_seed_counts_once(copy):
    """A folder that was copied, and the unfinished of two."""
    shutil.copytree(copy / "LayerNorm/seed0", copy / "LayerNorm/copy of seed0")
    (copy / "LayerNorm/copy of seed0/summary.json").unlink()
    other = shutil.copytree(copy / "LayerNorm/seed1", copy / "LayerNorm/a backup")
    config = json.loads((other / "config.json").read_text())
    config["identity"]["lr"] = 0.5
    files.write_json(other / "config.json", config)
    out = analyse(copy).stdout
    assert (
        f"note: {copy}/LayerNorm/copy of seed0: LayerNorm with seed 0 again, beside {copy}/LayerNorm/seed0; left out"
        in out
    )
    assert f"note: {other}: LayerNorm with seed 1 again, beside {copy}/LayerNorm/seed1, with lr 0.5 in place of" in out
    with open(copy / "comparison_table.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["model"] == "LayerNorm"]
    assert [row["seed"] for row in rows] == ["0", "1", "mean", "std"] and rows[2]["status"] == "n = 2"


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_runs_in_folders_of_other_names_the_one_that_has_ended_counts(first):
    pair = [fabricated("LayerNorm", 0, [0.5], status=status) for status in ("finished", None)]
    for run_, name in zip(pair, ("ended", "not ended")):
        run_["path"] = run_["path"].with_name(name)
    kept, repeated = maekit.analysis.comparison.without_repeats([pair[first], pair[1 - first]])
    assert kept == [pair[0]] and len(repeated) == 1 and repeated[0].startswith("LayerNorm/not ended: ")


def evaluated(run_, accuracy, init, task="linprobe", classes=10):
    """An evaluation below the folder of a run."""
    identity = {**run_["config"]["identity"], "task": task, "init": init}
    return {
        **run_,
        "path": run_["path"] / (task if init else f"untrained_{task}"),
        "config": {"identity": identity, "data": {"classes": classes}},
        "summary": {**run_["summary"], "acc1": accuracy},
    }


def test_what_pre_training_adds_to_an_accuracy_has_the_sign_of_more():
    found = [fabricated("LayerNorm", seed, [0.5]) for seed in range(3)]
    evaluations = [evaluated(run_, 60.0 + run_["config"]["identity"]["seed"], "sha256:0") for run_ in found]
    evaluations += [evaluated(run_, 40.0 + run_["config"]["identity"]["seed"], None) for run_ in found]
    text = maekit.analysis.comparison.render_evaluations(maekit.analysis.comparison.tabulate(found, evaluations))
    assert "61.0 % ± 1.0" in text and "41.0 % ± 1.0" in text
    assert "+20.0 (95 %: +20.0 to +20.0), n = 3" in text


def test_chance_is_one_of_the_classes_and_unknown_where_their_number_differs():
    run_ = fabricated("LayerNorm", 0, [0.5])
    ten, twenty = (evaluated(run_, 50.0, None, classes=classes) for classes in (10, 20))
    assert maekit.analysis.comparison.chance([ten, ten]) == 10 and maekit.analysis.comparison.chance([twenty]) == 5
    assert maekit.analysis.comparison.chance([ten, twenty]) is None


def test_baselines_are_drawn_though_the_first_run_has_none_yet(copy):
    (copy / "LayerNorm/seed0/summary.json").unlink()
    found, _ = maekit.analysis.comparison.load(copy)
    table = maekit.analysis.comparison.tabulate(found)
    assert np.isnan(table["flat_colour"].iloc[0]) and table["flat_colour"].notna().any()
    figure = comparison_figures.loss_comparison(maekit.analysis.comparison.stack(found, "log"), table)
    assert any("flat" in text.get_text() for legend in figure.legends for text in legend.get_texts())


@pytest.mark.slow
def test_an_evaluation_that_diverged_has_no_accuracy(copy):
    folder = copy / "DynamicTanh/seed0/linprobe"
    shutil.copytree(copy / "DynamicTanh/seed0", folder)
    config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
    config["identity"] |= {"task": "linprobe", "init": "sha256:0"}
    files.write_json(folder / "config.json", config)
    for status, known in (("finished", True), ("diverged", False)):
        files.write_json(folder / "summary.json", {**summary, "acc1": 12.5, "status": status})
        found, _ = maekit.analysis.comparison.load(copy)
        evaluations = [run for run in found if is_evaluation(run)]
        table = maekit.analysis.comparison.tabulate([run for run in found if run not in evaluations], evaluations)
        assert ("linprobe_accuracy" in table) is known
    assert f"{folder}: diverged" in analyse(copy).stdout


def test_one_run_alone_can_be_analysed(comparison, tmp_path):
    shutil.copytree(comparison / "LayerNorm/seed0", tmp_path / "alone")
    out = analyse(tmp_path).stdout
    assert "LayerNorm" in out and "±" not in out and not (tmp_path / "alpha_dynamics.png").exists()


def test_a_run_with_a_damaged_file_is_left_out_of_a_comparison_and_named(tmp_path):
    identity = {"norm": "LayerNorm", "seed": 0, "task": "pretrain"}
    ended = {"status": "finished", "seed": 0, "total_epochs": 0}
    for name, config, summary in (
        ("whole", {"identity": identity}, ended),
        ("config", "{", ended),
        ("summary", {"identity": identity}, "["),
    ):
        (tmp_path / name).mkdir()
        for file, content in (("config.json", config), ("summary.json", summary)):
            (tmp_path / name / file).write_text(content if isinstance(content, str) else json.dumps(content))
    found, problems = maekit.analysis.comparison.load(tmp_path)
    assert [run["path"].name for run in found] == ["whole"]
    assert [line.partition(": ")[0] for line in problems] == [
        f"{tmp_path}/{name}/{name}.json" for name in ("config", "summary")
    ]


def test_a_folder_without_runs_is_one_line_and_exit_code_2(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        error = analyse(folder, check=2).stderr
        assert len(error.strip().splitlines()) == 1 and str(folder) in error and "Run the comparison first" in error


def test_every_norm_has_a_look_of_its_own():
    from maekit.settings import methods

    assert set(figures.LOOK) == set(methods.NORMS)
    assert len({str(look) for look in figures.LOOK.values()}) == len(figures.LOOK)


def test_pictures_of_other_images_are_left_out(comparison, copy):
    file = copy / "DynamicTanh/seed0/reconstructions.npz"
    arrays = dict(np.load(file))
    files.write_arrays(file, {**arrays, "image": arrays["image"][::-1]})
    (copy / "DynamicTanh/seed1/reconstructions.npz").unlink()
    assert list(maekit.analysis.comparison.load_pictures(maekit.analysis.comparison.load(copy)[0])) == [
        "LayerNorm",
        "AdaptiveDynamicTanh",
    ]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 10])
def test_no_two_titles_of_pictures_are_written_over_each_other(n, narrow):
    methods = ["AdaptiveDynamicTanh", *(f"AdaptiveDynamicTanh-lambda0.0{i}" for i in range(n - 1))]
    shown = np.zeros((8, 16, 16, 3), np.uint8)
    arrays = {**dict.fromkeys(("image", "masked", "reconstruction"), shown), "mask": np.zeros((8, 4), bool)}
    figure = comparison_figures.reconstruction_comparison(dict.fromkeys(methods, arrays), narrow)
    FigureCanvasAgg(figure).draw()
    texts = [text for ax in figure.axes for text in (ax.title, ax.yaxis.label) if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == n + 2 + (n <= 3 and not narrow) * n
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(0 <= box.x0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height for box in boxes)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_epochs_are_ticked_at_integers(epochs):
    figure = figures.new_figure(figures.COLUMN, 2)
    ax = figure.subplots()
    ax.plot(range(epochs), range(epochs), "o")
    figures.epoch_axis(ax)
    ticks = ax.get_xticks()
    assert len(ticks) and all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("epochs", [1, 2, 7, 26, 50, 300, 1600])
@pytest.mark.parametrize("methods", [1, 4])
@pytest.mark.parametrize("narrow", [False, True])
def test_no_two_epochs_are_written_over_each_other(epochs, methods, narrow):
    """In the narrowest axes that there are, those of alpha_dynamics."""
    rows = [
        {"model": model, "seed": 0, "epoch": epoch, "layer": "norm", "alpha": 0.5, "saturated": 0.0}
        for model in ("DynamicTanh", "AdaptiveDynamicTanh", "DynamicErf", "DynamicTanh-alpha2.0")[:methods]
        for epoch in range(epochs)
    ]
    figure = comparison_figures.alpha_dynamics(pd.DataFrame(rows), narrow)
    FigureCanvasAgg(figure).draw()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        ticks = [
            tick for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
        ]
        assert all(float(tick.get_loc()).is_integer() for tick in ticks)
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(("n", "narrow", "lowest"), [(5, False, [2, 3, 4]), (2, False, [0, 1]), (3, True, [2])])
def test_panels_of_flat_activations_have_their_epochs_below_every_column(n, narrow, lowest):
    """Five panels in rows of three: the third one has no other below it."""
    names = ("DynamicTanh", "DynamicErf", "Hardtanh", "Arctan", "ISRU")[:n]
    rows = [
        {"model": name, "seed": seed, "epoch": epoch, "layer": layer, "flat": 0.1 * i + 0.01 * seed}
        for name in names
        for seed in range(2)
        for epoch in (4, 9)
        for i, layer in enumerate(("blocks.0.norm1", "decoder_norm"))
    ]
    figure = comparison_figures.flat_activations(pd.DataFrame(rows), narrow)
    figure.draw_without_rendering()
    labelled = [i for i, ax in enumerate(figure.axes) if any(label.get_visible() for label in ax.get_xticklabels())]
    assert labelled == [i for i, ax in enumerate(figure.axes) if ax.get_xlabel() == "epoch"] == lowest
    (mean,) = (line for line in figure.axes[0].lines if line.get_color() == "black")
    assert mean.get_ydata() == pytest.approx(
        [5.5, 5.5]
    )  # percent: of both layers, mean of 0 and 10 with seed 0, 1 more with 1
