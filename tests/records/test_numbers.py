"""What templates of records ask for."""

import pytest

from tests.support.records import numbers

ROWS = numbers.Rows(
    [
        {"method": method, "lr": lr, "seed": seed, "val_mse": base + seed / 100, "knn_accuracy": None}
        for method, lr, base in (("a", 0.1, 0.4), ("a", 0.2, 0.5), ("b", 0.1, 0.6))
        for seed in range(3)
    ]
)


def test_rows_are_chosen_by_their_values():
    assert len(ROWS(method="a")) == 6 and len(ROWS(method="a", lr=0.1)) == 3 and len(ROWS.without(method="a")) == 3
    assert ROWS.distinct("lr") == [0.1, 0.2]
    with pytest.raises(KeyError, match="no row with .*0.3"):
        ROWS(method="a")(lr=0.3)


def test_means_and_deviations():
    of = ROWS(method="a", lr=0.1)
    assert of.mean("val_mse") == pytest.approx(0.41) and of.std("val_mse") == pytest.approx(0.01)
    assert (of.least("val_mse"), of.most("val_mse")) == (0.4, pytest.approx(0.42))
    assert of.values("knn_accuracy") == []


def test_differences_are_paired_by_seed_and_of_one_setting():
    known = ROWS(method="b", lr=0.1).minus(ROWS(method="a", lr=0.1).without(seed=0), "val_mse")
    assert (known.n, known.low) == (2, None) and known.mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="several settings"):
        ROWS(method="a").minus(ROWS(method="b"), "val_mse")


def test_a_difference_in_words():
    up = numbers.Difference.of({0: 1.1, 1: 1.2, 2: 1.3}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert up.text(2) == "+0.20 (-0.05 to +0.45)" and not up.established
    clear = numbers.Difference.of({0: 1.19, 1: 1.2, 2: 1.21}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert clear.text() == "0.200 (0.175 to 0.225)" and clear.inside() == "0.200, 0.175 to 0.225"
    assert clear.claim(2, " points") == "0.20 points (95 % interval 0.18 to 0.22, n = 3)" and clear.established
    down = numbers.Difference.of({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.19, 1: 1.2, 2: 1.21})
    assert down.text() == "-0.200 (-0.225 to -0.175)" and down.size.text() == clear.text()
    assert numbers.minus(clear, up).mean == pytest.approx(0)


def test_a_sentence_is_given_what_holds():
    assert numbers.given(True) == ""
    with pytest.raises(numbers.NotBorneOut):
        numbers.given(False)


@pytest.mark.parametrize(
    ("seconds", "words"), [(50, "50 s"), (100, "2 min"), (3600, "1 h"), (8400, "2 h 20 min"), (3599, "1 h")]
)
def test_times_in_words(seconds, words):
    assert numbers.span(seconds) == words


def test_lists_in_words():
    assert numbers.listed([1]) == "1" and numbers.listed("ab") == "a and b" and numbers.listed("abc") == "a, b and c"


def test_a_share_has_its_exact_interval():
    """Clopper and Pearson's for 2 of 12 is 0.0209 to 0.4841; of none of 12 it ends at 1 - 0.025 ** (1 / 12)."""
    assert numbers.share(2, 12) == "2 of 12 (95 % interval 2 to 48 %, n = 12)"
    assert numbers.share(0, 12) == "0 of 12 (95 % interval 0 to 26 %, n = 12)" and 100 * (1 - 0.025 ** (1 / 12)) < 26.5
