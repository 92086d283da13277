#!/usr/bin/env python3
"""Gather finished and unfinished runs into tables, figures and statistics.

    python analysis.py comparison --output_dir ./output_comparison
    python analysis.py gap --log_dir outputs/imagenette-mae-reconstruction-gap --output_dir outputs/analysis
    python analysis.py --help

Both write report.html, a page with everything in it that can be mailed. `comparison` reads every run below a folder and
writes into it comparison_table.csv, comparison_statistics.json (means, intervals, paired differences, speed),
loss_comparison, paired_differences, timing_comparison, reconstruction_comparison, evaluation_comparison and
alpha_dynamics, and loss_curve into each run's own folder.
`gap` reads every trajectory.json below a folder, the original gap scripts' included, and writes gap_statistics.json,
gap_table.csv, tube_scatter_signed_alpha, alpha_vs_final_metrics, negative_vs_positive_comparison, mse_over_epochs and
accuracy_over_epochs; those of the frozen probe and of k-NN have a suffix. Figures are PNG and PDF; those wider than a
column of a paper are there a second time for one, as <name>_column.
"""

import argparse
import os
import sys
from pathlib import Path

from maekit import errors, surroundings
from maekit.errors import InputError
from maekit.runs import loggers, measures
from maekit.settings import recipes
from maekit.settings.parser import Parser


def main(argv=None):
    """Do what is asked for. Returns the exit code."""
    typed = build_parser().parse_args(argv)
    surroundings.settle()
    project = typed.wandb_project or (os.environ.get("WANDB_PROJECT") or recipes.WANDB_PROJECT if typed.wandb else None)
    loggers.check_wandb(project)
    page = Path(typed.output_dir).resolve() / "report.html"
    before = page.stat().st_mtime_ns if page.exists() else None
    try:
        if typed.command == "comparison":
            from maekit.analysis import comparison

            comparison.write(typed.output_dir, typed.reference, typed.select_seeds)
        else:
            write_gap(typed)
        if project is not None:
            loggers.log_analysis(project, Path(typed.output_dir))
    finally:  # a sweep without a gap is bad input, too, but has its page
        if typed.open and page.exists() and page.stat().st_mtime_ns != before:
            open_report(page)
    return 0


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of a flag that has one."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser():
    """The parser of both commands."""
    parser = Parser(
        prog="analysis.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = {"allow_abbrev": False, "formatter_class": Defaults}
    add = commands.add_parser("comparison", help="methods side by side", **shared).add_argument
    add("--output_dir", required=True, metavar="DIR", help="the comparison's folder")
    add(
        "--reference",
        default="LayerNorm",
        metavar="METHOD",
        help="the method that the others are held against, such as dyt or DynamicTanh-alpha2.0",
    )
    add(
        "--select_seeds",
        default="",
        metavar='"A ..."',
        help="of runs at several learning rates: the seeds that choose each method's, and are left out of the rest",
    )
    add_common(add)

    add = commands.add_parser("gap", help="accuracy against reconstruction", **shared).add_argument
    add("--log_dir", default="outputs/imagenette-mae-reconstruction-gap", metavar="DIR", help="folder of trajectories")
    add("--output_dir", default="outputs/analysis", metavar="DIR", help="where figures and statistics go")
    add("--n_bins", type=int, default=15, metavar="N", help="MSE bins of the gap")
    add(
        "--binning",
        choices=("equal", "quantile", "original-figure", "original-json"),
        default="equal",
        help="bins of equal width or of equal counts; those of the original scripts' figure and JSON, for their numbers again",
    )
    add(
        "--accuracy",
        choices=(*measures.ACCURACIES, "all"),
        default="all",
        help="which probe's accuracy; all: every one that was measured",
    )
    add_common(add)
    return parser


def add_common(add):
    """The flags of both commands."""
    add(
        "--wandb",
        action="store_true",
        help=f"log figures and tables to Weights & Biases, project $WANDB_PROJECT, else {recipes.WANDB_PROJECT}",
    )
    add("--wandb_project", metavar="NAME", help="likewise, to this project")
    add("--open", action="store_true", help="open report.html in the browser")


def write_gap(typed):
    """The analysis of a sweep."""
    if typed.n_bins < 1:
        raise InputError(f"--n_bins {typed.n_bins}: must be 1 or more.")
    from maekit.analysis import gap

    gap.write(typed.log_dir, typed.output_dir, n_bins=typed.n_bins, binning=typed.binning, accuracy=typed.accuracy)


def open_report(page):
    """Open a page in the browser; say where it is if there is none."""
    import webbrowser

    if not webbrowser.open(page.as_uri()):
        print(f"note: no browser to open {page}.")


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
