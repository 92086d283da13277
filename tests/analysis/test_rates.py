"""Every method at its best learning rate."""

import json
from pathlib import Path

import numpy as np
import pytest

from maekit.analysis import comparison, grid_figures, rates
from maekit.analysis.swept import Swept
from maekit.errors import InputError
from tests.support import train_here
from tests.support.runs import QUICK, fabricated, in_grid

LOSSES = {  # of seed 0, which chooses, and of seeds 1, 2, 3
    ("LayerNorm", 0.001): (0.40, 0.41, 0.42, 0.43),
    ("LayerNorm", 0.002): (0.38, 0.40, 0.41, 0.42),
    ("LayerNorm", 0.004): (0.39, 0.30, 0.30, 0.30),  # the best of those that do not choose
    ("DynamicTanh", 0.001): (0.41, 0.42, 0.43, 0.45),
    ("DynamicTanh", 0.002): (0.45, 0.46, 0.46, 0.47),
    ("DynamicTanh", 0.004): (0.20, 0.50, 0.51, 0.52),  # diverged with the seed that chooses
    ("NoNorm", 0.001): (9.0, 9.0, 9.0, 9.0),
    ("NoNorm", 0.002): (9.0, 9.0, 9.0, 9.0),
    ("NoNorm", 0.004): (9.0, 9.0, 9.0, 9.0),
}


@pytest.fixture
def found():
    diverges = {("DynamicTanh", 0.004, 0)} | {("NoNorm", rate, s) for rate in (0.001, 0.002, 0.004) for s in range(4)}
    return [
        in_grid(m, seed, rate, loss, status="diverged" if (m, rate, seed) in diverges else "finished")
        for (m, rate), of in LOSSES.items()
        for seed, loss in enumerate(of)
    ]


def test_rates_are_chosen_on_some_seeds_and_reported_on_the_others(found):
    grid = Swept(found, "LayerNorm", "0")
    of_main = {run["method"]: run["rate"] for run in grid.main}
    assert of_main == {"LayerNorm": 0.002, "DynamicTanh": 0.001, "NoNorm": 0.001}  # the last to be seen diverge
    assert {run["config"]["identity"]["seed"] for run in grid.main} == {1, 2, 3}
    known = grid.rates
    assert known["selected_on"] == [0] and known["common"] == 0.002
    assert {m: of["chosen"] for m, of in known["methods"].items()} == {
        "LayerNorm": 0.002,
        "DynamicTanh": 0.001,
        "NoNorm": None,
    }
    assert known["at_best"]["DynamicTanh"]["differences"] == pytest.approx({1: 0.02, 2: 0.02, 3: 0.03})
    assert known["at_common"]["DynamicTanh"]["differences"] == pytest.approx({1: 0.06, 2: 0.05, 3: 0.05})
    assert known["at_best"]["NoNorm"]["n"] == 0
    curve = known["methods"]["DynamicTanh"]["curve"]
    assert curve["0.001"]["mean"] == pytest.approx((0.41 + 0.42 + 0.43 + 0.45) / 4) and curve["0.001"]["diverged"] == 0
    assert curve["0.004"]["n"] == 3 and curve["0.004"]["diverged"] == 1
    assert known["methods"]["NoNorm"]["curve"]["0.002"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "note": "all diverged",
        "diverged": 4,
    }


def test_where_norms_are_flat_is_said_of_the_best_rate_and_the_seeds_that_are_reported(found):
    for run in found:
        if run["method"] == "DynamicTanh":
            seed, rate = run["config"]["identity"]["seed"], run["rate"]
            run["log"][-1]["norm_flat"] = seed / 10 if (rate, seed) != (0.001, 3) else None
            run["log"][0]["norm_flat"] = 0.9
            if rate != 0.001 or seed == 0:
                run["log"][-1]["norm_flat"] = 0.7
    methods = Swept(found, "LayerNorm", "0").rates["methods"]
    assert methods["DynamicTanh"]["flat"] == pytest.approx((0.1 + 0.2) / 2)
    assert methods["LayerNorm"]["flat"] is methods["NoNorm"]["flat"] is None


def test_a_rate_at_which_a_method_diverged_is_lost_and_said(found):
    said = " ".join(Swept(found, "LayerNorm", "0").sentences())
    assert (
        "For DynamicTanh the rate 0.001 was chosen, the lowest that was tried, so one beyond it may be better; at 0.004 1 of 4 "
        "runs diverged." in said
    )
    assert "NoNorm has no best rate: at every one of 0.001, 0.002, 0.004 a run that chooses diverged." in said
    assert "For LayerNorm the rate 0.002 was chosen; the seeds that did not choose ended lower at 0.004. " in said
    assert "Both at 0.002: DynamicTanh ended 0.05" in said and "Rates were chosen on seed 0; " in said


def test_a_method_without_a_best_rate_has_no_difference_though_seeds_that_did_not_choose_ended():
    found = [in_grid("LayerNorm", seed, rate, 0.4 + rate) for seed in range(3) for rate in (0.001, 0.002)]
    for seed in range(3):
        for rate in (0.001, 0.002):
            found.append(in_grid("DynamicTanh", seed, rate, 0.3, status="finished" if seed else "diverged"))
    grid = Swept(found, "LayerNorm", "0")
    assert {run["method"] for run in grid.main} == {"LayerNorm", "DynamicTanh"}  # a row in the table
    assert {run["method"] for run in grid.compared()} == {"LayerNorm"}
    assert grid.rates["methods"]["DynamicTanh"]["chosen"] is grid.rates["methods"]["DynamicTanh"]["flat"] is None
    assert grid.rates["at_best"]["DynamicTanh"]["n"] == 0
    assert "DynamicTanh has no best rate: at every one of 0.001, 0.002 a run that chooses diverged." in grid.sentences()


def test_a_rate_is_out_as_soon_as_a_seed_that_chooses_diverged_there():
    found = [in_grid("LayerNorm", seed, rate, 0.4 - rate) for seed in range(2) for rate in (0.001, 0.004)]
    found.append(in_grid("LayerNorm", 2, 0.004, 0.9, status="diverged"))
    found.append(in_grid("LayerNorm", 2, 0.001, 0.9, status=None))
    assert Swept(found, "LayerNorm", "").rates["methods"]["LayerNorm"]["chosen"] == 0.001


def test_runs_that_diverged_at_the_common_rate_are_said_not_to_be_in_the_difference():
    found = []
    for seed in range(6):
        for rate in (0.001, 0.004):
            lost = rate == 0.004 and seed > 3
            found.append(in_grid("LayerNorm", seed, rate, 0.4 - rate + 0.01 * seed))
            status = "diverged" if lost else "finished"
            found.append(in_grid("DynamicTanh", seed, rate, 0.41 + rate + 0.011 * seed, status=status))
    grid = Swept(found, "LayerNorm", "0")
    known = grid.rates["at_common"]["DynamicTanh"]
    assert grid.rates["methods"]["DynamicTanh"]["chosen"] == 0.001 and known["diverged"] == {"DynamicTanh": 2}
    said = [text for text in grid.sentences() if text.startswith("Both at 0.004")]
    assert len(said) == 1 and said[0].endswith("3 seeds); not in it: 2 runs of DynamicTanh that diverged.")
    for run in found:
        if run["method"] == "DynamicTanh" and run["rate"] == 0.004 and run["config"]["identity"]["seed"]:
            run["summary"]["status"] = "diverged"
    said = " ".join(Swept(found, "LayerNorm", "0").sentences())
    assert "DynamicTanh cannot be compared with LayerNorm: 5 runs of DynamicTanh diverged, no seed is left." in said


def test_a_rate_at_which_a_method_was_not_tried_is_noted(found):
    left = [run for run in found if (run["method"], run["rate"]) != ("DynamicTanh", 0.002)]
    assert Swept(found, "LayerNorm", "0").notices == []
    assert Swept(left, "LayerNorm", "0").notices == [
        "DynamicTanh has no run at a rate of 0.002, others have: not the same budget."
    ]


def test_without_seeds_of_their_own_all_choose_and_the_page_says_what_that_does(found):
    grid = Swept(found, "LayerNorm", "")
    assert {run["method"]: run["rate"] for run in grid.main} == {
        "LayerNorm": 0.004,
        "DynamicTanh": 0.001,
        "NoNorm": 0.001,
    }
    assert {run["config"]["identity"]["seed"] for run in grid.main} == {0, 1, 2, 3}
    assert "makes all methods look better than they are" in grid.sentences()[-1]


def test_a_choice_on_other_seeds_does_not_flatter():
    """Five rates that are equally good: on the seeds that chose the chosen one looks better than it is, on others not."""
    rng, flattered, fair = np.random.default_rng(0), [], []
    for _ in range(200):
        found = [
            in_grid("LayerNorm", seed, 0.001 * k, 0.4 + rng.normal(0, 0.01)) for k in range(1, 6) for seed in range(4)
        ]
        for seeds, losses in (("", flattered), ("0", fair)):
            losses.append(np.mean([rates.final_loss(run) for run in Swept(found, "LayerNorm", seeds).main]))
    assert np.mean(flattered) < 0.4 - 0.004
    assert abs(np.mean(fair) - 0.4) < 0.0015


def test_what_cannot_be_chosen_is_one_line(found):
    with pytest.raises(InputError, match="--select_seeds 7: no run is of this seed"):
        Swept(found, "LayerNorm", "7")
    waiting = [in_grid("LayerNorm", seed, rate, 0.4, status=None) for seed in (0, 1) for rate in (0.001, 0.002)]
    with pytest.raises(InputError, match="no seed of --select_seeds 0 has ended at all rates"):
        Swept(waiting, "LayerNorm", "0")
    with pytest.raises(InputError, match="no run of another seed is there"):
        Swept([run for run in found if run["config"]["identity"]["seed"] == 0], "LayerNorm", "0")
    with pytest.raises(InputError, match="--select_seeds x: must be whole numbers"):
        Swept(found, "LayerNorm", "x")
    with pytest.raises(InputError, match="no runs at several rates"):
        Swept([in_grid("LayerNorm", 0, None, 0.4)], "LayerNorm", "0")


def test_one_run_a_rate_and_number_of_images_is_none_twice(found):
    kept, said = comparison.without_repeats(found)
    assert kept == found and said == []
    again = in_grid("LayerNorm", 0, 0.001, 0.4)
    kept, said = comparison.without_repeats([*found, again])
    assert len(kept) == len(found) and len(said) == 1


@pytest.mark.parametrize("narrow", [False, True])
def test_the_curve_rings_the_rate_chosen_and_crosses_where_a_run_diverged(found, narrow):
    figure = grid_figures.rate_curve(Swept(found, "LayerNorm", "0").rates, narrow=narrow)
    (ax,) = figure.axes
    rings = [line for line in ax.lines if line.get_markersize() == 9]
    assert sorted(float(line.get_xdata()[0]) for line in rings) == pytest.approx([0.001, 0.002], rel=0.03)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert sorted(float(line.get_xdata()[0]) for line in crosses) == pytest.approx(
        [0.001, 0.002, 0.004, 0.004], rel=0.03
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.001", "0.002", "0.004"]


def test_a_loss_far_above_the_others_does_not_flatten_their_curves():
    found = [in_grid("LayerNorm", seed, rate, 0.4 + rate) for seed in range(3) for rate in (0.001, 0.002, 0.004)]
    found += [in_grid("NoNorm", s, r, 5.0 if r > 0.002 else 0.44 + r) for s in range(3) for r in (0.001, 0.002, 0.004)]
    (ax,) = grid_figures.rate_curve(Swept(found, "LayerNorm", "").rates).axes
    assert 0.442 < ax.get_ylim()[1] < 0.46
    (arrow,) = (line for line in ax.lines if line.get_marker() == "^")
    assert arrow.get_xdata()[0] == pytest.approx(0.004, rel=0.03) and [t.get_text() for t in ax.texts] == ["5"]
    alike = grid_figures.rate_curve(Swept(found[:9], "LayerNorm", "").rates).axes[0]
    assert not alike.texts and all(line.get_marker() != "^" for line in alike.lines)


def test_rates_are_compared_on_the_seeds_that_ended_at_all_of_them():
    """0.004 has ended with the easier of two seeds alone."""
    found = [
        in_grid("LayerNorm", 0, 0.001, 0.30),
        in_grid("LayerNorm", 1, 0.001, 0.50),
        in_grid("LayerNorm", 0, 0.004, 0.35),
    ]
    running = in_grid("LayerNorm", 1, 0.004, 0.9, status=None)
    assert Swept([*found, running], "LayerNorm", "").rates["common"] == 0.001
    none_yet = [
        in_grid("DynamicTanh", s, r, 0.4, status=None if r > 0.002 else "finished")
        for s in (0, 1)
        for r in (0.001, 0.004)
    ]
    said = " ".join(Swept([*found, *none_yet], "LayerNorm", "").sentences())
    assert "DynamicTanh has no best rate: no seed has ended at all of them." in said


def test_random_weights_are_evaluated_beside_the_first_rate_and_shown_beside_the_best():
    found = [in_grid("LayerNorm", 0, rate, loss) for rate, loss in ((0.001, 0.5), (0.004, 0.4))]
    evaluations = []
    for rate, name, init in ((0.001, "knn", "a"), (0.001, "untrained_knn", None), (0.004, "knn", "b")):
        run = in_grid("LayerNorm", 0, rate, 0.0)
        run["path"] = run["path"] / name
        run["config"]["identity"]["init"] = init
        evaluations.append(run)
    best = Path("out/LayerNorm/lr0.004/seed0")
    kept = Swept(found, "LayerNorm", "").evaluations(evaluations)
    assert [(run["path"].name, run["of"]) for run in kept] == [("untrained_knn", best), ("knn", best)]


def test_runs_of_no_grid_beside_it_are_left_out_and_counted(found):
    grid = Swept([*found, in_grid("LayerNorm", 1, None, 0.1)], "LayerNorm", "0")
    assert all(run["rate"] is not None for run in grid.main) and grid.notices[0].startswith(
        "1 runs that are of no grid of --lrs"
    )


def test_folders_above_the_comparison_s_are_not_of_its_grid():
    run = fabricated("LayerNorm", 0, [1.0, 0.4])
    run["path"] = Path("results/n100/lr0.001/LayerNorm/seed0")
    rates.place_in_grid(run, Path("results/n100/lr0.001"))
    assert run["rate"] is None and run["size"] is None


@pytest.mark.slow
def test_the_page_names_what_diverged_at_another_rate_than_the_chosen(tmp_path):
    for rate in ("0.001", "1000.0"):
        for seed in ("0", "1"):
            folder = tmp_path / "LayerNorm" / f"lr{rate}" / f"seed{seed}"
            train_here(*QUICK, "--lr", rate, "--seed", seed, "--output_dir", folder, check=0)
    comparison.write(tmp_path, select_seeds="0")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 pre-training run of a masked autoencoder, and 3 more, at other rates" in page
    assert "none diverged" not in page
    for seed in ("0", "1"):
        assert f'<b>diverged</b> <a href="LayerNorm/lr1000.0/seed{seed}' in page
    known = json.loads((tmp_path / "comparison_statistics.json").read_text())["rates"]["methods"]["LayerNorm"]
    assert (known["chosen"], known["curve"]["1000.0"]["diverged"]) == (0.001, 2)
