"""The gap and its bins against plain loops, and what no statistic can be made of."""

import itertools
import json
import math
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from maekit import stats
from tests.support import KIT, run

KEYS = ["bin_index", "mse_min", "mse_max", "n_points"]
KEYS += ["acc_min", "acc_max", "acc_spread", "acc_mean", "acc_std", "acc_spread_5_95"]
NAN, INF = float("nan"), float("inf")


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


def plain_original(mse, accuracy, edges, more_than):
    """Γ by the original scripts' loop over half-open bins, the last one too, so that the largest MSE is in none."""
    gamma, used = 0.0, 0
    for low, high in itertools.pairwise(edges):
        inside = [a for m, a in zip(mse, accuracy, strict=True) if low <= m < high]
        if len(inside) > more_than:
            gamma += max(inside) - min(inside)
            used += 1
    return gamma, used


@pytest.mark.parametrize("n_bins", [5, 15])
def test_the_originals_numbers_can_be_had_again(n_bins):
    """Both of them; that of the kit is another one."""
    rng = np.random.default_rng(n_bins)
    mse, accuracy = rng.gamma(2.0, 0.1, 120), rng.uniform(0, 100, 120)
    accuracy[mse.argmax()] = 500.0  # what is in no bin of theirs
    width = np.linspace(mse.min(), mse.max(), n_bins + 1)
    counts = np.quantile(mse, np.linspace(0, 1, n_bins + 1))
    for binning, edges, more_than in (("original-figure", width, 3), ("original-json", counts, 1)):
        gamma, bins = stats.gap(mse, accuracy, n_bins=n_bins, binning=binning)
        assert (gamma, len(bins)) == pytest.approx(plain_original(mse, accuracy, edges, more_than))
        ours = stats.gap(mse, accuracy, n_bins=n_bins, binning=stats.BINNINGS[binning][0])[0]
        assert abs(ours - gamma) > 1


def test_analysis_offers_every_rule():
    help_text = run(sys.executable, KIT / "analysis.py", "gap", "--help", check=0).stdout
    assert f"{{{','.join(stats.BINNINGS)}}}" in re.sub(r"\s", "", help_text)


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
        (
            lambda: stats.bin_edges([1, 2], 5, "log"),
            "binning 'log': needs one of equal, quantile, original-figure, original-json",
        ),
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
