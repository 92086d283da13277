"""The gap, its interval and noise floor, and rank correlations: against plain loops, tables and a simulation."""

import json
import math
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from maekit import stats
from tests.support import KIT

KEYS = ["bin_index", "mse_min", "mse_max", "n_points"]
KEYS += ["acc_min", "acc_max", "acc_spread", "acc_mean", "acc_std", "acc_spread_5_95"]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def no_library_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def plain_percentile(values, percent):
    """Linear interpolation between the two nearest of the sorted values."""
    values = sorted(values)
    place = percent / 100 * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def plain_gap(mse, accuracy, edges):
    """Γ by a loop over bins and a loop over points."""
    bins = []
    for i in range(len(edges) - 1):
        inside = []
        for m, a in zip(mse, accuracy, strict=True):
            if edges[i] <= m < edges[i + 1] or (i == len(edges) - 2 and m == edges[-1]):
                inside.append(a)
        if len(inside) > 1:
            mean = sum(inside) / len(inside)
            variance = sum((a - mean) ** 2 for a in inside) / len(inside)
            low, high = min(inside), max(inside)
            middle = plain_percentile(inside, 95) - plain_percentile(inside, 5)
            row = (i, edges[i], edges[i + 1], len(inside), low, high, high - low, mean, math.sqrt(variance), middle)
            bins.append(dict(zip(KEYS, row, strict=True)))
    return sum(b["acc_spread"] for b in bins), bins


def same_gap(got, expected):
    (gamma, bins), (expected_gamma, expected_bins) = got, expected
    assert gamma == pytest.approx(expected_gamma)
    assert len(bins) == len(expected_bins)
    for b, e in zip(bins, expected_bins, strict=True):
        assert list(b) == KEYS
        assert b == pytest.approx(e)


# Bins


def test_equal_bins_run_from_the_smallest_to_the_largest_mse():
    assert stats.bin_edges([3.0, 1.0, 2.0], n_bins=4).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert stats.bin_edges([3.0, 1.0, 2.0], n_bins=1).tolist() == [1.0, 3.0]
    assert stats.bin_edges(np.random.default_rng(0).random(100)).shape == (16,)


def test_quantile_bins_hold_as_many_points_each():
    mse = np.random.default_rng(0).exponential(size=60)
    edges, ordered = stats.bin_edges(mse, 15, "quantile"), sorted(mse.tolist())
    assert edges.tolist() == pytest.approx([plain_percentile(ordered, 100 * i / 15) for i in range(16)])
    assert edges[0] == ordered[0] and edges[-1] == ordered[-1]
    _, bins = stats.gap(mse, mse, 15, "quantile")
    assert [b["n_points"] for b in bins] == [4] * 15


def test_quantiles_that_coincide_are_one_edge():
    mse = [1, 1, 1, 1, 1, 2, 3, 4]  # quartiles at places 0, 1.75, 3.5, 5.25 and 7: 1, 1, 1, 2.25, 4
    assert stats.bin_edges(mse, 4, "quantile").tolist() == [1.0, 2.25, 4.0]
    gamma, bins = stats.gap(mse, [10, 20, 30, 40, 50, 60, 70, 90], 4, "quantile")
    assert gamma == (60 - 10) + (90 - 70)
    assert [b["n_points"] for b in bins] == [6, 2]


def test_equal_edges_closer_than_floats_are_one_edge():
    mse = [1.0, np.nextafter(1.0, 2), 1.0]
    assert stats.bin_edges(mse, 15).tolist() == [1.0, mse[1]]
    assert stats.gap(mse, [10, 20, 40])[0] == 30


# The gap


def test_gap_by_hand():
    mse = [0.0, 0.5, 1.0, 1.5, 3.0, 3.5, 4.0]
    accuracy = [10, 12, 50, 57, 80, 70, 95]
    gamma, bins = stats.gap(mse, accuracy, n_bins=4)  # [0, 1) [1, 2) [2, 3) [3, 4]
    assert gamma == 2 + 7 + 25
    assert [b["bin_index"] for b in bins] == [0, 1, 3]  # [2, 3) is empty
    assert bins[2] == pytest.approx(
        {
            "bin_index": 3,
            "mse_min": 3.0,
            "mse_max": 4.0,
            "n_points": 3,
            "acc_min": 70.0,
            "acc_max": 95.0,
            "acc_spread": 25.0,
            "acc_mean": 245 / 3,
            "acc_std": math.sqrt((80**2 + 70**2 + 95**2) / 3 - (245 / 3) ** 2),
            "acc_spread_5_95": (80 + 0.9 * 15) - (70 + 0.1 * 10),
        }
    )
    assert stats.gap_percentile(bins) == pytest.approx(0.9 * 2 + 0.9 * 7 + 22.5)


@pytest.mark.parametrize("n_bins", [1, 2, 15, 200])
@pytest.mark.parametrize("binning", ["equal", "quantile"])
def test_gap_is_that_of_plain_loops(n_bins, binning):
    rng = np.random.default_rng(n_bins)
    mse = np.round(rng.gamma(2.0, 0.2, 300), 2)  # ties
    accuracy = rng.normal(60, 10, 300)
    edges = stats.bin_edges(mse, n_bins, binning)
    same_gap(stats.gap(mse, accuracy, n_bins, binning), plain_gap(mse.tolist(), accuracy.tolist(), edges.tolist()))


def test_the_largest_mse_counts():
    assert stats.gap([0.0, 0.9, 1.0], [40, 50, 99], n_bins=2)[0] == 49
    assert stats.gap([0.0, 0.9, 1.0], [40, 50, 99], n_bins=2, binning="quantile")[0] == 49
    assert stats.gap([0.0, 0.9, 1.0], [40, 50, 99], edges=[0.0, 0.5, 1.0])[0] == 49


def test_a_point_on_an_inner_edge_belongs_to_the_bin_above():
    gamma, bins = stats.gap([0, 1, 1, 2, 3], [10, 20, 23, 30, 70], n_bins=3)  # [0, 1) [1, 2) [2, 3]
    assert gamma == 3 + 40
    assert [(b["bin_index"], b["n_points"]) for b in bins] == [(1, 2), (2, 2)]


def test_two_points_make_a_bin_count_and_one_does_not():
    assert stats.gap([0.0, 0.1, 1.0], [10, 30, 99], n_bins=2)[0] == 20
    assert stats.gap([0.0, 1.0], [10, 30], n_bins=2) == (0.0, [])


def test_one_bin_is_the_range_of_the_accuracy():
    assert stats.gap([0.3, 0.1, 0.2], [50, 90, 20], n_bins=1)[0] == 70


def test_points_of_equal_mse_share_a_given_bin():
    assert stats.gap([0.5, 0.5], [10, 15], edges=[0, 1])[0] == 5


def test_the_order_of_points_does_not_matter():
    rng = np.random.default_rng(3)
    mse, accuracy, order = rng.random(200), rng.random(200), rng.permutation(200)
    same_gap(stats.gap(mse[order], accuracy[order]), stats.gap(mse, accuracy))


def test_given_edges_stand_in_for_n_bins():
    mse, accuracy = [0.1, 0.2, 0.3, 0.6], [1, 4, 9, 16]
    edges = [0.0, 0.25, 0.6]
    same_gap(stats.gap(mse, accuracy, n_bins=99, binning="quantile", edges=edges), plain_gap(mse, accuracy, edges))


def test_everything_goes_to_json_and_back():
    rng = np.random.default_rng(4)
    mse, accuracy = rng.random(60).astype(np.float32), rng.random(60).astype(np.float32)
    edges, seed = stats.bin_edges(mse), np.arange(60) % 3
    result = [
        stats.gap(mse, accuracy, edges=edges),
        stats.spearman(mse, accuracy),
        stats.gap_over_seeds(mse, accuracy, seed, edges)["values"][np.int64(2)],
        stats.noise_floor(mse, accuracy, np.zeros(60), seed, edges),
    ]
    assert json.loads(json.dumps(result)) == [list(result[0]), *result[1:]]


def test_fifty_thousand_points_take_milliseconds():
    rng = np.random.default_rng(5)
    mse, accuracy = rng.random(50_000), rng.random(50_000)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        stats.gap(mse, accuracy)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1


def test_importing_it_does_not_wait_for_scipy():
    code = "import maekit.stats, sys; sys.exit(any(m in sys.modules for m in ('scipy', 'torch', 'pandas')))"
    subprocess.run([sys.executable, "-c", code], cwd=KIT, check=True)


# Refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: stats.bin_edges([1, 2], 0), "n_bins 0: needs 1 or more"),
        (lambda: stats.bin_edges([1, 2], 5, "log"), "binning 'log': needs equal or quantile"),
        (lambda: stats.bin_edges([]), "mse: needs a row of 1 values or more, got shape (0,)"),
        (lambda: stats.bin_edges([[1, 2]]), "mse: needs a row of 1 values or more, got shape (1, 2)"),
        (lambda: stats.bin_edges([1, NAN, 2]), "mse: value 1 of 3 is nan"),
        (lambda: stats.bin_edges([1, 2, INF]), "mse: value 2 of 3 is inf"),
        (lambda: stats.bin_edges([0.5] * 4), "mse: 4 points with 1 distinct value, 0.5; bins need two"),
        (lambda: stats.gap([0.5], [70]), "mse: 1 points with 1 distinct value, 0.5"),
        (lambda: stats.gap([1, 2], [70, None]), "accuracy: value 1 of 2 is nan"),
        (lambda: stats.gap([1, 2], [70, 71, 72]), "accuracy: 3 values for 2 of mse"),
        (lambda: stats.gap([1, 2, 9], [1, 2, 3], edges=[1, 2]), "edges: 1 to 2 leave out 1 points, mse 9"),
        (lambda: stats.gap([0, 1, 2], [1, 2, 3], edges=[1, 2]), "edges: 1 to 2 leave out 1 points, mse 0"),
        (lambda: stats.gap([1, 2], [1, 2], edges=[1, 1, 2]), "edges: need to increase strictly, got [1.0, 1.0, 2.0]"),
        (lambda: stats.gap([1, 2], [1, 2], edges=[1]), "edges: needs a row of 2 values or more"),
        (lambda: stats.spearman([1, 2, 3], [1, 2]), "y: 2 values for 3 of x"),
        (lambda: stats.spearman([1, 2, NAN], [1, 2, 3]), "x: value 2 of 3 is nan"),
        (lambda: stats.t_interval([]), "values: needs a row of 1 values or more"),
        (lambda: stats.t_interval([1, 2, 3], level=95), "level 95: needs to lie between 0 and 1"),
        (lambda: stats.gap_over_seeds([1, 2], [1, 2], [0], [1, 2]), "seed: 1 values for 2 of mse"),
        (lambda: stats.gap_over_seeds([1, 2], [1, 2], [0, NAN], [1, 2]), "seed: value 1 of 2 is nan"),
        (lambda: stats.gap_over_seeds([1, 2], [1], [0, 1], [1, 2]), "accuracy: 1 values for 2 of mse"),
        (lambda: stats.gap_over_seeds([1, 2], [1, 2], [0, 0], [1, 1.5]), "edges: 1 to 1.5 leave out 1 points, mse 2"),
        (lambda: stats.noise_floor([1, 2], [1, 2], [("a", NAN)] * 2, [0, 1], [1, 2]), "configuration: value 0 of 2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, text):
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


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
    top, bottom = np.full((sweeps, seeds, BINS), -INF), np.full((sweeps, seeds, BINS), INF)
    np.maximum.at(top, row, accuracy)
    np.minimum.at(bottom, row, accuracy)
    return np.where(top > bottom, top - bottom, 0).sum(-1)


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
