"""What a comparison says: names of methods, paired differences, speed, and whether AdaptiveDynamicTanh adapts."""

import math
from pathlib import Path

import numpy as np
import pytest

from maekit import stats
from maekit.analysis import comparison, findings
from maekit.errors import InputError
from maekit.settings import methods
from tests.support.runs import fabricated

T_975 = {3: 4.302653, 5: 2.776445, 10: 2.262157}  # Student's t, n - 1 degrees of freedom, from a table


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_paired_differences_covers_the_true_one(n):
    """1,000 comparisons of n seeds whose difference is 0.08; what seeds share, ten times as large, must not matter."""
    rng, covered = np.random.default_rng(n), 0
    for _ in range(1000):
        seeds = dict(enumerate(rng.normal(0.4, 0.1, n)))
        method = {seed: value + 0.08 + rng.normal(0, 0.01) for seed, value in seeds.items()}
        known = stats.paired(method, seeds)
        covered += known["low"] <= 0.08 <= known["high"]
        assert known["high"] - known["low"] < 0.2  # not widened by what they share
    assert abs(covered / 1000 - 0.95) <= 0.03, covered


@pytest.mark.parametrize("n", [3, 5, 10])
def test_paired_differences_are_those_of_the_table_of_students_t(n):
    values = [0.5 + 0.01 * i * i for i in range(n)]
    reference = {seed: 0.4 + 0.003 * seed for seed in range(n)}
    known = stats.paired(dict(enumerate(values)), {**reference, 99: 1.0})  # a seed that only one has does not count
    differences = [value - reference[seed] for seed, value in enumerate(values)]
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = T_975[n] * deviation / math.sqrt(n)
    assert known["n"] == n and known["mean"] == pytest.approx(mean)
    assert (known["low"], known["high"]) == (pytest.approx(mean - half, rel=1e-5), pytest.approx(mean + half, rel=1e-5))
    assert list(known["differences"].values()) == pytest.approx(differences)


def test_few_seeds_and_none_in_common_have_no_interval():
    one = stats.paired({0: 0.5}, {0: 0.4, 1: 0.4})
    assert (
        one["mean"] == pytest.approx(0.1) and one["low"] is None and one["note"] == "1 seed, so no interval; it takes 3"
    )
    none = stats.paired({0: 0.5}, {1: 0.4})
    assert none["mean"] is None and none["n"] == 0 and none["differences"] == {}


def test_a_loss_is_reached_when_it_first_is_no_higher():
    assert stats.reached([1.0, 0.6, 0.5, 0.7, 0.4], [2, 3, 4, 5, 6], 0.5) == (3, 9.0)
    assert stats.reached([1.0, 0.6], [2, 3], 0.5) is None
    with pytest.raises(ValueError, match="1 values for 2"):
        stats.reached([1.0, 0.6], [2], 0.5)


def difference(mean, half=None, n=3):
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"differences": {}, "mean": mean, "low": low, "high": high, "n": n, "note": half is None and "no interval"}


def test_sentences_on_differences_say_what_the_numbers_say():
    say = lambda d: findings.on_difference("DynamicTanh", "LayerNorm", d)
    above, below = "DynamicTanh ended 0.087 above LayerNorm", "DynamicTanh ended 0.031 below LayerNorm"
    assert say(difference(0.087, 0.007)) == f"{above} in validation loss (95 % interval 0.080 to 0.094, 3 seeds)."
    assert say(difference(-0.031, 0.006)) == f"{below} in validation loss (95 % interval 0.025 to 0.037, 3 seeds)."
    way_out = "so no interval, which takes 3: --seeds"
    assert (
        say(difference(0.45, n=1)) == f"DynamicTanh ended 0.45 above LayerNorm in validation loss (1 seed, {way_out})."
    )
    assert say(difference(0.087, n=2)).endswith(f"(mean of 2 seeds, {way_out}).")
    assert "no finished seed in common, so they cannot be compared" in say({**difference(None, n=0), "mean": None})


@pytest.mark.parametrize(("mean", "word"), [(0.15, "0.15 above"), (-0.15, "0.15 below")])
def test_a_difference_whose_interval_includes_0_is_not_claimed(mean, word):
    below, above = (f"{abs(mean - 0.48):.2f}", f"{mean + 0.48:.2f}")
    assert findings.on_difference("RMSNorm", "LayerNorm", difference(mean, 0.48)) == (
        f"RMSNorm ended {word} LayerNorm in validation loss, but the 95 % interval goes from {below} below to {above} above "
        "(3 seeds), so these runs do not show which of the two ends lower."
    )


def described(found, reference="LayerNorm"):
    return findings.describe(found, comparison.tabulate(found), reference)


def test_only_finished_runs_count():
    found = [fabricated("LayerNorm", seed, [0.9, 0.5]) for seed in range(3)]
    found += [fabricated("DynamicTanh", seed, [0.9, val]) for seed, val in ((0, 0.5), (1, 0.4))]
    found += [
        fabricated("DynamicTanh", 2, [0.1, 0.1], status="diverged"),
        fabricated("RMSNorm", 0, [0.1, 0.1], status="diverged"),
        fabricated("DynamicErf", 0, [0.1, 0.1], status=None),
    ]
    known = described(found)
    assert known["n"] == {"LayerNorm": 3, "DynamicTanh": 2} and list(known["means"]) == ["LayerNorm", "DynamicTanh"]
    mean = known["means"]["DynamicTanh"]["val_mse"]
    assert (mean["n"], mean["mean"]) == (2, pytest.approx(0.45))
    assert list(known["convergence"]["DynamicTanh"]["per_seed"]) == [0, 1]
    assert known["differences"]["val_mse"]["DynamicTanh"]["differences"] == {0: 0.0, 1: pytest.approx(-0.1)}


def test_a_seed_without_a_measurement_has_no_part_in_its_mean():
    found = [fabricated("LayerNorm", seed, [0.5], measured={"psnr": psnr}) for seed, psnr in ((0, 20.0), (1, 30.0))]
    found.append(fabricated("LayerNorm", 2, [0.5]))
    means = described(found)["means"]["LayerNorm"]
    assert (means["psnr"]["n"], means["psnr"]["mean"]) == (2, 25.0) and means["val_mse"]["n"] == 3


@pytest.mark.parametrize(("seeds", "note"), [(1, "LayerNorm (1)."), (2, "LayerNorm (2)."), (3, None)])
def test_that_there_is_no_interval_is_noted_where_there_is_none(seeds, note):
    known = described([fabricated("LayerNorm", seed, [0.9, 0.5 + seed / 100]) for seed in range(seeds)])
    assert (known["means"]["LayerNorm"]["val_mse"]["low"] is None) == (note is not None)
    said = [
        text for text in known["notes"] if text.startswith("Too few finished seeds for an interval, which takes 3: ")
    ]
    assert len(said) == (note is not None) and all(note in text for text in said)


def test_the_loss_to_reach_is_the_one_that_layer_norm_ends_with_not_its_best():
    ended = [fabricated("LayerNorm", 0, [0.9, 0.3, 0.5]), fabricated("RMSNorm", 0, [0.6, 0.45, 0.4])]
    assert findings.speed("RMSNorm", "LayerNorm", ended)["per_seed"] == {0: {"epochs": 2, "seconds": 4.0}}


def test_how_soon_it_is_reached_is_said_where_every_seed_gets_there():
    ended = [fabricated("LayerNorm", seed, [0.9, 0.5]) for seed in (0, 1)]
    ended += [fabricated("RMSNorm", 0, [0.5, 0.4]), fabricated("RMSNorm", 1, [0.7, 0.4])]
    said = findings.on_speed("RMSNorm", "LayerNorm", findings.speed("RMSNorm", "LayerNorm", ended))
    goal = "the validation loss that LayerNorm ended with"
    assert said == f"RMSNorm reached {goal} after 1.50 epochs and 3.00 s of training (2 seeds)."
    late = [*ended[:2], fabricated("RMSNorm", 0, [0.9, 0.8])]
    assert (
        findings.on_speed("RMSNorm", "LayerNorm", findings.speed("RMSNorm", "LayerNorm", late))
        == f"RMSNorm never reached {goal} (1 seed)."
    )


@pytest.mark.parametrize("mean", [0.25, -0.25])
def test_an_interval_that_ends_at_0_holds_it(mean):
    assert "do not show which" in findings.on_difference("RMSNorm", "LayerNorm", difference(mean, 0.25))
    assert "do not show which" not in findings.on_difference("RMSNorm", "LayerNorm", difference(mean, 0.24))


def test_speed_is_measured_against_the_same_seed():
    ended = [
        fabricated("LayerNorm", 0, [0.9, 0.5, 0.4]),
        fabricated("LayerNorm", 1, [0.9, 0.5, 0.6]),
        fabricated("RMSNorm", 0, [0.4, 0.3, 0.3], seconds=3.0),
        fabricated("RMSNorm", 1, [0.9, 0.8, 0.7]),
        fabricated("RMSNorm", 2, [0.1, 0.1, 0.1]),
    ]
    known = findings.speed("RMSNorm", "LayerNorm", ended)
    assert known["per_seed"] == {0: {"epochs": 1, "seconds": 3.0}, 1: None} and (known["reached"], known["n"]) == (1, 2)
    assert known["epochs"] is None and "in 1 of 2 seeds, so there is no mean" in findings.on_speed(
        "RMSNorm", "LayerNorm", known
    )
    own = findings.speed("LayerNorm", "LayerNorm", ended)
    assert [when["epochs"] for when in own["per_seed"].values()] == [3, 2] and own["epochs"]["mean"] == 2.5


def test_the_others_are_held_against_the_method_that_is_asked_for():
    found = [fabricated("LayerNorm", seed, [0.9, 0.5]) for seed in range(3)]
    found += [fabricated("DynamicTanh", seed, [0.9, 0.625], seconds=3.0) for seed in range(3)]
    found += [fabricated("RMSNorm", seed, [0.625, 0.75]) for seed in range(3)]
    for reference, others in (("DynamicTanh", {"LayerNorm": -0.125, "RMSNorm": 0.125}), ("RMSNorm", {})):
        known = described(found, reference)
        differences = {m: d["mean"] for m, d in known["differences"]["val_mse"].items()}
        assert known["reference"] == reference and reference not in differences and len(differences) == 2
        assert others.items() <= differences.items()
    assert known["convergence"]["LayerNorm"]["epochs"]["mean"] == 2  # of 0.75, which RMSNorm ends with
    said = described(found, "DynamicTanh")["sentences"]
    assert said[0].startswith("LayerNorm ended 0.125 below DynamicTanh in validation loss")
    assert said[3].startswith("RMSNorm reached the validation loss that DynamicTanh ended with after 1 (")
    assert not any("below LayerNorm" in text or "above LayerNorm" in text for text in said)


def test_a_difference_is_said_once_where_the_control_is_the_reference():
    other = "DynamicTanh-alpha2.0"
    found = [fabricated("AdaptiveDynamicTanh", s, [0.9, 0.5], layers=SATURATED, adyt_alpha_max=2.0) for s in range(3)]
    found += [fabricated(other, s, [0.9, 0.75], dyt_alpha_init=2.0) for s in range(3)]
    said = described(found, other)["sentences"]
    assert sum(text.count(f"below {other} in validation loss") for text in said) == 1
    assert any(text.startswith(f"{other} learns its α, which ended at") for text in said)


def test_a_reference_that_has_not_finished_is_noted_with_the_way_out():
    found = [fabricated("LayerNorm", 0, [0.9]), fabricated("DynamicTanh", 0, [0.9], status=None)]
    known = described(found, "DynamicTanh")
    assert known["reference"] is None and known["differences"] == {}
    assert any("No DynamicTanh run has finished" in note and "--reference" in note for note in known["notes"])


SATURATED, FREE = [[0.5, 0.6, 0.7, 2.0], [2.0, 2.0, 1.0, 2.0]], [[0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 2.0, 0.8]]


@pytest.mark.parametrize(
    ("layers", "losses", "control", "answer"),
    [
        (
            SATURATED,
            (0.5, 0.52, 0.48),
            (0.5, 0.5, 0.5),
            "was found: there is no evidence that it is more than DynamicTanh",
        ),
        (
            SATURATED,
            (0.5, 0.51, 0.52),
            (0.4, 0.41, 0.43),
            "at a bound, and it ended above DynamicTanh-alpha2.0: starting",
        ),
        (
            FREE,
            (0.3, 0.31, 0.32),
            (0.4, 0.41, 0.43),
            "inside their range, and it ended below DynamicTanh-alpha2.0: starting",
        ),
        (
            FREE,
            (0.5, 0.52, 0.48),
            (0.5, 0.5, 0.5),
            "was found: if adapting made a difference, these runs do not show it",
        ),
        (
            SATURATED,
            (0.5,),
            (0.4,),
            "ended at a bound, but the loss cannot answer it (1 seed, so no interval, which takes 3",
        ),
        (
            SATURATED,
            (0.5, 0.52, 0.48),
            None,
            "cannot tell: none is of DynamicTanh that starts from α = 2.0 (--control adds",
        ),
    ],
)
def test_whether_it_adapts_is_answered_by_the_share_at_a_bound_and_the_control(layers, losses, control, answer):
    name, other = "AdaptiveDynamicTanh", "DynamicTanh-alpha2.0"
    ended = [fabricated(name, s, [0.9, v], layers=layers, adyt_alpha_max=2.0) for s, v in enumerate(losses)]
    ended += [fabricated(other, s, [0.9, v], dyt_alpha_init=2.0) for s, v in enumerate(control or ())]
    ended += [fabricated("DynamicTanh", 0, [0.9, 0.9], dyt_alpha_init=0.5)]  # no control: it starts lower
    seen = findings.lens(name, ended, {name: dict(enumerate(losses)), other: dict(enumerate(control or ()))})
    assert seen["share_over_time"] == ([0.25, 0.75] if layers is SATURATED else [0.0, 0.25]) and seen["layers"] == 4
    assert seen["most_since"] == (1 if layers is SATURATED else None) and seen["upper"] == 4 * seen["share"]
    said = findings.on_lens(name, seen)
    assert answer in said[-1], said
    assert f"{4 * seen['share']:.0f} of 4 norm layers" in said[0]


def adapted(layers, difference=None):
    """What lens says of one run of AdaptiveDynamicTanh beside its control, and the sentences, of a given difference."""
    ended = [
        fabricated("AdaptiveDynamicTanh", 0, [0.9] * len(layers), layers=layers, adyt_alpha_max=2.0),
        fabricated("DynamicTanh-alpha2.0", 0, [0.9, 0.8, 0.7], dyt_alpha_init=2.0),
    ]
    seen = findings.lens("AdaptiveDynamicTanh", ended, {run["method"]: {0: 0.5} for run in ended})
    return seen, findings.on_lens("AdaptiveDynamicTanh", seen | ({"difference": difference} if difference else {}))


def test_layers_at_the_lower_bound_are_not_at_the_upper_one():
    seen, said = adapted([[0.1, 0.1, 2.0, 0.5]])
    assert (seen["share"], seen["upper"], seen["layers"]) == (0.75, 1, 4)
    assert "3 of 4 norm layers (75 %) ended with α at a bound of its range, 1 of them at the upper one, 2.0" in said[0]


def test_layers_that_left_their_bound_again_are_not_counted():
    seen, said = adapted([[2.0, 2.0, 2.0, 0.5], [2.0, 0.5, 0.5, 0.5]])
    assert seen["share_over_time"] == [0.75, 0.25] and seen["share"] == 0.25 and seen["most_since"] is None
    assert "1 of 4 norm layers (25 %)" in said[0] and "From epoch" not in said[0] and "inside their range" in said[-1]


def test_half_of_the_layers_are_said_to_be_half_or_more():
    seen, said = adapted([[0.5, 0.5], [2.0, 0.5]])
    assert seen["share"] == 0.5 and seen["most_since"] == 1
    assert "From epoch 1 on half of the layers or more were." in said[0] and "ended at a bound" in said[-1]


def test_the_alpha_of_the_control_is_the_one_that_it_ends_with():
    seen, said = adapted([[2.0, 0.5]])
    assert seen["control_alpha"] == 3.5 and "which ended at 3.50 on average" in said[1]


@pytest.mark.parametrize("mean", [-0.2, 0.2])
def test_the_largest_difference_that_remains_possible_is_of_either_sign(mean):
    _, said = adapted([[2.0, 2.0]], difference(mean, 0.3))  # -0.5 to 0.1, or -0.1 to 0.5
    assert "A difference of up to 0.50 remains possible" in said[-1]


def test_names_of_methods_have_one_spelling_and_bad_ones_are_told():
    assert methods.spelled("adyt-smooth.99-lambda1e-2") == "AdaptiveDynamicTanh-lambda0.01-smooth0.99"
    assert methods.spelled("dyt-alpha2") == "DynamicTanh-alpha2.0" and methods.spelled("ln") == "LayerNorm"
    for text, says in (
        ("ln-alpha2", "no option of LayerNorm"),
        ("dyt-", "its end is no option"),
        ("dyt-alphax", "x is not"),
        ("adyt-smooth1", "never adapt"),
        ("adyt-lambdanan", "finite"),
        ("what-alpha1", "unknown"),
    ):
        with pytest.raises(InputError, match=says):
            methods.spelled(text)


def test_runs_are_called_by_their_folder_if_that_is_true_else_by_their_options():
    def run(path, **identity):
        return {"path": Path(path), "config": {"identity": {"norm": "DynamicTanh", "dyt_alpha_init": 0.5, **identity}}}

    found = [
        run("o/DynamicTanh-alpha2.0/seed0", dyt_alpha_init=2.0),
        run("o/DynamicTanh-alpha0.5/seed0/knn"),
        run("o/DynamicTanh-alpha2.0/seed1"),
        run("o/LayerNorm/seed0"),
        run("alone", dyt_alpha_init=1.0),
        run("o/LayerNorm/seed0", norm="LayerNorm"),
        run("o/<b>/seed0"),
    ]
    methods.name_runs(found)
    assert [r["method"] for r in found] == [
        "DynamicTanh-alpha2.0",
        "DynamicTanh-alpha0.5",
        "DynamicTanh",
        "DynamicTanh",
        "DynamicTanh-alpha1.0",
        "LayerNorm",
        "DynamicTanh",
    ]
    lie = [run("o/DynamicTanh-alpha2.0/seed1")]
    methods.name_runs(lie)
    assert lie[0]["method"] == "DynamicTanh"
    mixed = [run("a/DynamicTanh/seed0"), run("b/DynamicTanh/seed0", dyt_alpha_init=1.0)]  # one name, two things
    methods.name_runs(mixed)
    assert [r["method"] for r in mixed] == ["DynamicTanh", "DynamicTanh-alpha1.0"]
