"""Rank correlation, intervals over seeds and the noise floor: against tables and a simulation."""

import math

import numpy as np
import pytest

from maekit import stats

# Rank correlation


def ranks(values):
    """From 1, ties share the mean of their places."""
    return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    xy = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return xy / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_spearman_is_pearson_of_the_ranks_with_a_t_test():
    x, y = [0.4, 0.1, 0.1, 0.9, 0.6], [70, 85, 80, 70, 71]
    assert ranks(x) == [3, 1.5, 1.5, 5, 4]
    r = pearson(ranks(x), ranks(y))
    assert r == pytest.approx(-7.5 / 9.5)  # deviations from 3: (0 -1.5 -1.5 2 1) and (-1.5 2 1 -1.5 0)
    t = abs(r) * math.sqrt(3 / (1 - r * r))
    p = 1 - 2 / math.pi * (t / math.sqrt(3) / (1 + t * t / 3) + math.atan(t / math.sqrt(3)))  # t, 3 degrees of freedom
    assert stats.spearman(x, y) == pytest.approx({"spearman_r": r, "p_value": p})


def test_spearman_sees_order_alone():
    x = np.arange(1.0, 21)
    assert stats.spearman(x, np.exp(x))["spearman_r"] == pytest.approx(1)
    assert stats.spearman(x, 1 / x)["spearman_r"] == pytest.approx(-1)
    assert stats.spearman([1, 2, 3], [3, 2, 1])["spearman_r"] == pytest.approx(-1)


@pytest.mark.parametrize("x", [[], [1], [1, 2], [5, 5, 5, 5]])
def test_spearman_of_too_little_is_none(x):
    y = list(range(len(x)))
    nothing = {"spearman_r": None, "p_value": None}
    assert stats.spearman(x, y) == nothing
    assert stats.spearman(y, x) == nothing


# Intervals

TABLE = {3: 4.303, 5: 2.776, 10: 2.262}  # 97.5th percentile of Student's t with n - 1 degrees of freedom


@pytest.mark.parametrize("n", TABLE)
def test_interval_is_students_of_the_table(n):
    values = [math.sin(i) * 30 + 400 for i in range(n)]
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    result = stats.t_interval(values)
    assert result["n"] == n and result["note"] is None
    assert result["mean"] == pytest.approx(mean)
    assert result["low"] - mean == pytest.approx(-TABLE[n] * error, rel=2e-4)
    assert result["high"] - mean == pytest.approx(TABLE[n] * error, rel=2e-4)


def test_interval_of_another_level():
    wide, narrow = stats.t_interval([1, 2, 3]), stats.t_interval([1, 2, 3], level=0.5)
    assert narrow["high"] - 2 == pytest.approx(0.8165 / math.sqrt(3), rel=1e-4)  # t at 75 %, 2 degrees of freedom
    assert wide["low"] < narrow["low"] < 2 < narrow["high"] < wide["high"]


@pytest.mark.parametrize(("values", "there"), [([400.0], "1 seed"), ([400.0, 420.0], "2 seeds")])
def test_fewer_than_three_seeds_have_no_interval(values, there):
    result = stats.t_interval(values)
    assert result["mean"] == pytest.approx(sum(values) / len(values))
    assert result["low"] is None and result["high"] is None
    assert result["note"] == f"{there}, so no interval; it takes 3"


MSE = [0.1, 0.2, 0.3, 0.9] * 3 + [0.8]
ACCURACY = [50, 60, 70, 70, 50, 61, 75, 71, 40, 66, 70, 90, 95]
SEED = [7] * 4 + [2] * 4 + [10] * 5
EDGES = [0.1, 0.5, 0.9]


def test_each_seed_has_its_gap_in_the_shared_bins():
    result = stats.gap_over_seeds(MSE, ACCURACY, SEED, EDGES)
    assert result["values"] == {2: 25, 7: 20, 10: 30 + 5}
    assert list(result["values"]) == [2, 7, 10]
    error = math.sqrt(((25 - 80 / 3) ** 2 + (20 - 80 / 3) ** 2 + (35 - 80 / 3) ** 2) / 2 / 3)
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(80 / 3)
    assert result["low"] == pytest.approx(80 / 3 - 4.303 * error, rel=1e-3)
    assert result["high"] == pytest.approx(80 / 3 + 4.303 * error, rel=1e-3)


def test_seeds_of_unequal_size_are_said():
    note = stats.gap_over_seeds(MSE, ACCURACY, SEED, EDGES)["note"]
    assert note == "seeds hold 4 to 5 points, and Γ grows with their number"
    assert stats.gap_over_seeds(MSE[:12], ACCURACY[:12], SEED[:12], EDGES)["note"] is None


def test_two_seeds_have_their_gaps_but_no_interval():
    result = stats.gap_over_seeds(MSE[:8], ACCURACY[:8], SEED[:8], EDGES)
    assert result == {
        "values": {2: 25.0, 7: 20.0},
        "mean": 22.5,
        "low": None,
        "high": None,
        "n": 2,
        "note": "2 seeds, so no interval; it takes 3",
    }


# Noise floor


def test_noise_floor_by_hand():
    # Two bins. Configuration a: seeds 0 and 1; b: seeds 0 and 1; c: one seed, so it counts nowhere.
    points = [
        # mse, accuracy, configuration, seed
        (0.1, 50, "a", 0),
        (0.2, 52, "a", 0),
        (0.9, 60, "a", 0),
        (0.1, 55, "a", 1),
        (0.3, 56, "a", 1),
        (0.8, 63, "a", 1),
        (0.1, 20, "b", 0),
        (0.2, 20, "b", 0),
        (0.7, 99, "b", 0),
        (0.1, 30, "b", 1),
        (0.2, 21, "b", 1),
        (0.2, 22, "b", 1),
        (0.1, 0, "c", 0),
        (0.2, 99, "c", 0),
    ]
    mse, accuracy, configuration, seed = zip(*points, strict=True)
    expected = {
        "mean": ((6 + 3) + 10) / 2,  # a: 50 to 56 and 60 to 63; b: 20 to 30, and 99 alone
        "largest": 10.0,
        "one_run": (2 + 1 + 0 + 9) / 4,
        "n": 2,
        "note": None,
    }
    assert stats.noise_floor(mse, accuracy, configuration, seed, [0, 0.5, 1]) == expected
    # Any naming of the configurations will do, and the order of points does not matter.
    tuples = [(name, 0.5) for name in configuration]
    table = np.array([[ord(name), 1] for name in configuration])
    assert stats.noise_floor(mse, accuracy, tuples, seed, [0, 0.5, 1]) == expected
    assert stats.noise_floor(mse, accuracy, table, np.array(seed), [0, 0.5, 1]) == expected
    backwards = (column[::-1] for column in (mse, accuracy, configuration, seed))
    assert stats.noise_floor(*backwards, [0, 0.5, 1]) == expected


def test_alpha_does_not_raise_the_noise_floor():
    rng = np.random.default_rng(6)
    alpha, seed = np.repeat(np.arange(10), 30), np.tile(np.repeat([0, 1, 2], 10), 10)
    mse, noise = np.tile(rng.random(30), 10), rng.normal(60, 1, 300)
    edges = stats.bin_edges(mse)
    quiet, loud = (stats.noise_floor(mse, noise + effect * alpha, alpha, seed, edges) for effect in (0, 5))
    assert loud == pytest.approx(quiet)
    assert stats.gap(mse, noise + 5 * alpha)[0] > 3 * stats.gap(mse, noise)[0]
    assert loud["one_run"] < loud["mean"] < loud["largest"] < stats.gap(mse, noise)[0]  # low, even against noise alone


def test_one_seed_has_no_noise_floor():
    result = stats.noise_floor(MSE[:4], ACCURACY[:4], [1, 1, 2, 2], [0] * 4, EDGES)
    assert result == {
        "mean": None,
        "largest": None,
        "one_run": None,
        "n": 0,
        "note": "no configuration has 2 seeds, so no noise floor",
    }


# Simulation: does the interval cover what it says it covers?

ALPHAS, EPOCHS, BINS = 25, 12, 15


def simulated_sweeps(rng, sweeps, seeds):
    """(mse, accuracy) of shape (sweeps, seeds, ALPHAS, EPOCHS): alphas differ, seeds and points scatter around them."""
    alpha = np.linspace(-1, 1, ALPHAS)[:, None]
    epoch = np.arange(EPOCHS)
    runs, points = (sweeps, seeds, ALPHAS, 1), (sweeps, seeds, ALPHAS, EPOCHS)
    mse = 0.45 + 0.06 * alpha**2 + 0.2 * np.exp(-epoch / 4) + rng.normal(0, 0.01, runs) + rng.normal(0, 0.004, points)
    steepness = rng.normal(1, 0.1, (sweeps, seeds, 1, 1))  # how much alpha matters to a seed
    accuracy = 60 + 12 * alpha * steepness + 1.2 * epoch + rng.normal(0, 3, runs) + rng.normal(0, 2, points)
    return mse, accuracy


def gaps_of_seeds(mse, accuracy):
    """Γ of each seed, (sweeps, seeds): bins by division, extremes by scatter, all sweeps at once."""
    sweeps, seeds = mse.shape[:2]
    mse, accuracy = mse.reshape(sweeps, seeds, -1), accuracy.reshape(sweeps, seeds, -1)
    low, high = mse.min((1, 2), keepdims=True), mse.max((1, 2), keepdims=True)
    bins = np.minimum(np.floor((mse - low) / (high - low) * BINS).astype(int), BINS - 1)
    row = np.arange(sweeps)[:, None, None], np.arange(seeds)[None, :, None], bins
    top, bottom = np.full((sweeps, seeds, BINS), -np.inf), np.full((sweeps, seeds, BINS), np.inf)
    np.maximum.at(top, row, accuracy)
    np.minimum.at(bottom, row, accuracy)
    return np.where(top > bottom, top - bottom, 0).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_expectation(seeds):
    expectation = gaps_of_seeds(*simulated_sweeps(np.random.default_rng(100 + seeds), 2000, seeds)).mean()
    rng, covered = np.random.default_rng(200 + seeds), 0
    which = np.repeat(np.arange(seeds), ALPHAS * EPOCHS)
    for _ in range(300):
        sweep = simulated_sweeps(rng, 1, seeds)
        mse, accuracy = (values.ravel() for values in sweep)
        result = stats.gap_over_seeds(mse, accuracy, which, stats.bin_edges(mse, BINS))
        assert list(result["values"].values()) == pytest.approx(gaps_of_seeds(*sweep)[0])
        covered += result["low"] <= expectation <= result["high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_the_gap_of_pooled_runs_grows_with_their_number():
    """Why a Γ is compared at equal numbers of runs only, and why the interval is about one seed's sweep."""
    rng = np.random.default_rng(300)
    mean = {}
    for seeds in (1, 2, 4, 8):
        pooled = [[values.ravel() for values in simulated_sweeps(rng, 1, seeds)] for _ in range(20)]
        mean[seeds] = np.mean([stats.gap(*points)[0] for points in pooled])
    assert mean[1] * 1.04 < mean[2] and mean[2] * 1.04 < mean[4] and mean[4] * 1.04 < mean[8]
