"""Which figures a sweep has: of each accuracy, of all of them together, and of what encoders are like beside them."""

from functools import partial

from ..runs.status import FINISHED
from ..settings.probes import EVALUATIONS, READOUTS
from . import gap_figures, labelled_figure, matched_figure
from . import representation_figures as representation
from .gap import suffix_of

OF_AN_ACCURACY = (  # figures that there is one of for each
    "tube_scatter_signed_alpha",
    "alpha_vs_final_metrics",
    "negative_vs_positive_comparison",
    "accuracy_over_epochs",
    "matched_mse",
    "labelled_classes",
)


def drawings(points, found, described, compared, alike):
    """{name of a figure: function that draws it}.

    points: DataFrame of trajectories.tabulate_points; found: of trajectories.read_trajectories; described: {column:
    gap.describe with "probe"}; compared: of matched.of_all; alike: of similarity.describe.
    """
    drawn = {}
    if len(points):
        drawn["mse_over_epochs"] = partial(gap_figures.over_epochs, points, found, "mse")
    for column, statistics in described.items():
        drawn |= of_an_accuracy(points[points[column].notna()], statistics, found, column)
    if len(compared) > 1:
        drawn["matched_differences"] = partial(matched_figure.matched_differences, compared)
    return drawn | of_representations(points, alike)


def of_an_accuracy(points, statistics, found, column):
    """The figures of one accuracy."""
    of, suffix = (points, statistics), suffix_of(statistics["probe"])
    drawn = {
        "tube_scatter_signed_alpha": partial(gap_figures.tube_scatter, *of, column),
        "alpha_vs_final_metrics": partial(gap_figures.alpha_vs_final, *of, found, column),
        "negative_vs_positive_comparison": partial(gap_figures.negative_vs_positive, *of, column),
        "accuracy_over_epochs": partial(gap_figures.over_epochs, points, found, column),
        "matched_mse": partial(matched_figure.matched_mse, statistics, column),
    }
    if statistics["labelled"]:
        drawn["labelled_classes"] = partial(labelled_figure.labelled_classes, statistics["labelled"], column)
    return {f"{name}{suffix}": draw for name, draw in drawn.items()}


def of_representations(points, alike):
    """The figures of what encoders are like beside their accuracies, where it was measured."""
    drawn = {}
    ended = points[points["status"] == FINISHED]
    evaluated = [f"{name}_accuracy" for name in EVALUATIONS if f"{name}_accuracy" in points]
    for name, columns in (
        ("rank_over_alpha", representation.RANKS),
        ("bands_over_alpha", representation.BANDS),
        ("decoder_over_alpha", representation.DECODERS),
        ("evaluations_over_alpha", evaluated),
    ):
        there = len(columns) and set(columns) <= set(points)
        if there and ended[list(columns)].notna().all(axis=1).any():  # one run has all
            drawn[name] = partial(representation.over_alpha, points, columns)
    for readout in READOUTS if alike else ():
        drawn[f"similarity_{readout}"] = partial(representation.similarity, alike, readout)
    return drawn
