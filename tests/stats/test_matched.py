"""Accuracy at equal MSE: interpolation, differences paired by seed, and how often a difference is found that is not there."""

import numpy as np
import pytest

from maekit import stats


def test_the_accuracy_at_an_mse_is_that_of_the_first_time_it_is_reached():
    mse, accuracy = [1.0, 0.6, 0.4, 0.7, 0.2], [10, 30, 40, 90, 50]
    at = lambda target: stats.accuracy_at(mse, accuracy, target)
    assert at(1.0) == 10 and at(0.6) == 30 and at(0.5) == pytest.approx(35) and at(0.4) == 40
    assert at(0.3) == pytest.approx(58) and at(0.2) == 50  # from 0.7 down to 0.2
    assert at(1.1) is None and at(0.1) is None


def test_the_common_range_is_what_all_runs_pass():
    assert stats.common_range([[1.0, 0.5, 0.6], [0.9, 0.4]]) == (0.5, 0.9)
    assert stats.common_range([[1.0, 0.8], [0.7, 0.4]]) is None


def run(rng, gain, start=1.0, end=0.3, epochs=15, noise=0.5, faster=1.0):
    """A trajectory whose accuracy is a function of its MSE, plus `gain`: 60 points on the way from start to end."""
    mse = end + (start - end) * np.exp(-faster * np.arange(epochs) / 5)
    return mse, 20 + 60 * (start - mse) + gain + rng.normal(0, noise, epochs)


@pytest.mark.parametrize("faster", [0.7, 1.0, 1.5])
def test_a_run_that_is_only_faster_does_not_differ_at_equal_mse(faster):
    """Though at equal epochs it is far ahead."""
    rng = np.random.default_rng(0)
    runs = {seed: run(rng, 0, noise=0, faster=faster, epochs=60) for seed in range(3)}
    reference = {seed: run(rng, 0, noise=0, epochs=60) for seed in range(3)}
    known = stats.matched(runs, reference)
    assert known["mean"] == pytest.approx(0, abs=1e-9) and known["n"] == 3
    assert known["mse_range"][1] == 1.0 and 0.3 < known["mse_range"][0] < 0.301 + 0.02
    above = {seed: (mse, accuracy + 4) for seed, (mse, accuracy) in runs.items()}
    assert stats.matched(above, reference)["mean"] == pytest.approx(4)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_of_matched_differences_cover_the_true_one(n):
    """What seeds share is ten times as large as what is between two of their runs, and must not matter."""
    rng, covered = np.random.default_rng(n), 0
    for _ in range(600):
        shared = rng.normal(0, 10, n)
        pairs = [{seed: run(rng, shared[seed] + gain + rng.normal(0, 1)) for seed in range(n)} for gain in (2.0, 0.0)]
        known = stats.matched(*pairs)
        covered += known["low"] <= 2.0 <= known["high"]
        assert known["n"] == n
    assert abs(covered / 600 - 0.95) <= 0.03, covered


@pytest.mark.parametrize("noisier", [1, 5])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_no_difference_is_found_in_95_percent_of_sweeps_without_one(n, noisier):
    """Six alphas against one, all looked at, one perhaps far noisier; single intervals would find one far more often."""
    rng, found, single = np.random.default_rng(n), 0, 0
    for _ in range(1000):
        values = rng.normal(0, 10, (n, 1)) + rng.normal(0, 1, (n, 7)) * np.array([1, noisier, 1, 1, 1, 1, 1])
        known = stats.at_once({i: values[:, i] - values[:, 0] for i in range(1, 7)}).values()
        found += any(of["low"] > 0 or of["high"] < 0 for of in known)
        alone = [stats.t_interval(values[:, i] - values[:, 0]) for i in range(1, 7)]
        single += any(of["low"] > 0 or of["high"] < 0 for of in alone)
    assert 0.01 < found / 1000 <= 0.07, found
    assert single / 1000 > 0.1


def test_a_difference_that_is_there_is_found():
    rng = np.random.default_rng(0)
    values = {i: 12 * i + rng.normal(0, 1, 3) for i in (1, 0)}
    known = stats.at_once({**values, "few": [1.0, 2.0]})
    assert known[1]["low"] > 0 > known[0]["low"] and known["few"]["low"] is None
    assert known[0]["high"] == pytest.approx(stats.t_interval(values[0], 0.975)["high"])  # of two


def test_nothing_in_common_is_said():
    rng = np.random.default_rng(0)
    a, b = {0: run(rng, 0)}, {1: run(rng, 0)}
    assert stats.matched(a, b)["note"] == "no difference: no seed in common"
    slow = {0: (np.array([3.0, 2.0]), np.array([1.0, 2.0]))}
    known = stats.matched(a, slow)
    assert known["mean"] is None and "no range of MSE" in known["note"] and known["mse_range"] is None


def test_linear_cka_is_one_for_the_same_space_and_small_for_others():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8))
    turned = 3 * x @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + 5
    assert stats.cka(x, turned) == pytest.approx(1, abs=1e-12)
    assert stats.cka(x, rng.standard_normal((400, 8))) < 0.1
    assert stats.cka(x[:, :1], x[:, 1:2]) == pytest.approx(np.corrcoef(x[:, 0], x[:, 1])[0, 1] ** 2)
    half = stats.cka(np.c_[x[:, 0], x[:, 1]], np.c_[x[:, 0], rng.standard_normal(400)])
    assert half == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="399 images for 400"):
        stats.cka(x, x[1:])
