"""Differences to the reference over numbers of training images."""

import json

import pytest

from maekit.analysis import comparison, grid_figures, sizes
from maekit.analysis.swept import Swept
from tests.support import train_here
from tests.support.runs import in_grid

SHORT = ("--demo", "--num_workers", "0")


def test_differences_over_the_number_of_images_are_paired_at_each():
    gains = {200: -0.03, 1000: 0.0, "all": 0.05}  # of DynamicTanh: better on few images, worse on many
    found = []
    for size, gain in gains.items():
        for seed, noise in enumerate((0.0, 0.02, 0.05)):
            found.append(in_grid("LayerNorm", seed, None, 0.4 + noise, size=size))
            found.append(in_grid("DynamicTanh", seed, None, 0.4 + noise + gain + 0.001 * seed, size=size))
    grid = Swept(found, "LayerNorm", "")
    assert {run["size"] for run in grid.main} == {float("inf")} and len(grid.main) == 6
    assert grid.sizes["images"] == {"200": 200, "1000": 1000, "all": 9469}
    for size, gain in gains.items():
        assert grid.sizes["differences"]["DynamicTanh"][str(size)]["mean"] == pytest.approx(gain + 0.001)
    said = " ".join(grid.sentences())
    assert "With 200 images DynamicTanh ended 0.029" in said and "With 9,469 images DynamicTanh ended 0.051" in said
    change = grid.sizes["change"]["DynamicTanh"]
    assert change["mean"] == pytest.approx(-0.08) and change["n"] == 3
    assert "That difference with 200 images minus the one with 9,469 is -0.08" in said
    assert "so it depends on the number of images." in said


def test_differences_that_change_by_no_more_than_chance_are_not_said_to_depend_on_the_number_of_images():
    """On few images below LayerNorm in the mean, on many above it: its line crosses 0, and that says nothing."""
    found = []
    for seed, few, many in ((0, -0.05, 0.04), (1, 0.05, -0.02), (2, -0.03, 0.0)):
        for size, difference in ((200, few), ("all", many)):
            found.append(in_grid("LayerNorm", seed, None, 0.4, size=size))
            found.append(in_grid("DynamicTanh", seed, None, 0.4 + difference, size=size))
    grid = Swept(found, "LayerNorm", "")
    by_size = grid.sizes["differences"]["DynamicTanh"]
    assert by_size["200"]["mean"] < 0 < by_size["all"]["mean"]
    assert grid.sentences()[-1].endswith("so these runs do not show that it depends on the number of images.")
    assert grid.notes() == [
        "Neither are the 2 intervals at one common rate and over numbers of images corrected for their number."
    ]


@pytest.mark.parametrize("narrow", [False, True])
def test_runs_that_diverged_on_some_number_of_images_are_said_and_crossed(narrow):
    found = []
    for seed in range(3):
        for size in (200, 1000, "all"):
            found.append(in_grid("LayerNorm", seed, None, 0.4 + 0.01 * seed, size=size))
            lost = size == 200 or (size == "all" and not seed)
            found.append(in_grid("Hardtanh", seed, None, 0.5, size=size, status="diverged" if lost else "finished"))
    grid = Swept(found, "LayerNorm", "")
    by_size = grid.sizes["differences"]["Hardtanh"]
    assert [of["diverged"].get("Hardtanh", 0) for of in by_size.values()] == [3, 0, 1]
    said = " ".join(grid.sentences())
    assert "With 200 images Hardtanh cannot be compared with LayerNorm: 3 runs of Hardtanh diverged" in said
    assert "; not in it: 1 run of Hardtanh that diverged." in said
    assert grid.sizes["change"]["Hardtanh"] is None
    (ax,) = grid_figures.difference_over_images(grid.sizes, "LayerNorm", narrow=narrow).axes
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == pytest.approx([200], rel=0.03)


def test_a_number_of_images_of_which_no_rate_can_be_chosen_yet_is_noted():
    found = [
        in_grid("LayerNorm", 0, rate, 0.4, size=size, status=None if (rate, size) == (0.004, "all") else "finished")
        for rate in (0.001, 0.004)
        for size in (500, "all")
    ]
    grid = Swept(found, "LayerNorm", "")
    assert {run["size"] for run in grid.main} == {500}
    assert grid.notices == ["--max_images all: no rate can be chosen yet, so it is left out."]


def test_runs_of_one_number_of_images_that_differ_in_more_than_the_norm_are_seen_though_others_are_compared():
    found = [
        in_grid(method, seed, None, 0.4, size=size, epochs=200 if (method, size) == ("DynamicTanh", 500) else 10)
        for method in ("LayerNorm", "DynamicTanh")
        for seed in range(2)
        for size in (500, "all")
    ]
    grid = Swept(found, "LayerNorm", "")
    unfair = [text for group in grid.alike() for text in comparison.unequal_settings(group)]
    assert unfair == ["The runs differ in epochs (10, 200), so this is not a fair comparison."]
    assert grid.sizes["steps"]["500"] == "several"


@pytest.mark.parametrize(
    ("epochs", "steps", "says"),
    [
        ((10, 10), (30, 1470), "Numbers of images differ in steps as well, 30 with 200 images and 1,470 with 9,469: "),
        (
            (600, 10),
            (1800, 1470),
            "Numbers of images differ in steps as well, 1,470 with 9,469 images and 1,800 with 200: ",
        ),
        ((490, 10), (1470, 1470), "All numbers of images have 1,470 steps, so fewer images were seen more often."),
        (
            (480, 10),
            (1440, 1470),
            "All numbers of images have 1,440 to 1,470 steps, so fewer images were seen more often.",
        ),
    ],
)
def test_it_is_said_what_the_number_of_images_changes_beside_itself(epochs, steps, says):
    found = [
        in_grid(method, seed, None, 0.4, size=size, epochs=of)
        for method in ("LayerNorm", "DynamicTanh")
        for seed in range(3)
        for size, of in zip((200, "all"), epochs)
    ]
    known = Swept(found, "LayerNorm", "").sizes
    assert tuple(known["steps"].values()) == steps
    assert known["sentences"][0].startswith(says)


def test_rates_are_chosen_anew_on_every_number_of_images():
    found = []
    for size, better in ((200, 0.001), (1000, 0.004)):
        for rate in (0.001, 0.004):
            for seed in range(3):
                found.append(in_grid("LayerNorm", seed, rate, 0.4 if rate == better else 0.5, size=size))
    grid = Swept(found, "LayerNorm", "")
    assert {run["rate"] for run in grid.main} == {0.004} and {run["size"] for run in grid.main} == {1000}
    assert grid.rates["common"] == 0.004 and sizes.spelled(200) == "200"
    assert grid.sizes["rates"] == {"200": {"LayerNorm": 0.001}, "1000": {"LayerNorm": 0.004}}
    assert "Rates chosen with 200 images: LayerNorm 0.001." in grid.sentences()


@pytest.mark.slow
def test_runs_of_as_many_steps_on_other_numbers_of_images_are_seen_as_such(tmp_path):
    """A length in steps is that in epochs: the same command with these has nothing to do."""
    length = {32: "4", 64: "2"}  # epochs of 16 images a step
    for images, epochs in length.items():
        for norm in ("LayerNorm", "DynamicTanh"):
            folder = tmp_path / norm / f"n{images}" / "seed0"
            flags = (*SHORT, "--max_images", images, "--batch_size", "16", "--norm", norm, "--output_dir", folder)
            train_here(*flags, "--steps", "8", check=0)
            again = train_here(*flags, "--epochs", epochs, check=0)
            assert again.stdout.strip() == f"{folder}: finished already, nothing to do."
    comparison.write(tmp_path)
    known = json.loads((tmp_path / "comparison_statistics.json").read_text())["sizes"]
    assert known["steps"] == {"32": 8, "64": 8}
    assert "All numbers of images have 8 steps" in (tmp_path / "report.html").read_text(encoding="utf-8")
