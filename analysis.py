#!/usr/bin/env python3
"""Gather finished and unfinished runs into tables, figures and statistics.

    python analysis.py comparison --output_dir ./output_comparison
    python analysis.py gap --log_dir outputs/imagenette-mae-reconstruction-gap --output_dir outputs/analysis
    python analysis.py --help

`comparison` reads every run below a folder and writes into it comparison_table.csv, loss_comparison,
timing_comparison, reconstruction_comparison and alpha_dynamics, and loss_curve into each run's own folder.
`gap` reads every trajectory.json below a folder, the original gap scripts' included, and writes gap_statistics.json,
gap_table.csv, tube_scatter_signed_alpha, alpha_vs_final_metrics, negative_vs_positive_comparison, mse_over_epochs and
accuracy_over_epochs; those of the frozen probe and of k-NN have a suffix. Figures are PNG and PDF.
"""

import argparse
import sys

from maekit import errors, flags
from maekit.errors import InputError


def main(argv=None):
    """Parse the command and do it. Returns the exit code."""
    parser = flags.Parser(
        prog="analysis.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("comparison", help="methods side by side", allow_abbrev=False).add_argument
    add("--output_dir", required=True, metavar="DIR", help="the comparison's folder")

    command = commands.add_parser(
        "gap", help="accuracy against reconstruction", allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = command.add_argument
    add("--log_dir", default="outputs/imagenette-mae-reconstruction-gap", metavar="DIR", help="folder of trajectories")
    add("--output_dir", default="outputs/analysis", metavar="DIR", help="where figures and statistics go")
    add("--n_bins", type=int, default=15, metavar="N", help="MSE bins of the gap")
    add("--binning", choices=("equal", "quantile"), default="equal", help="bins of equal width or of equal counts")
    add("--accuracy", choices=("joint", "frozen", "knn", "all"), default="all",
        help="which probe's accuracy; all: every one that was measured")  # fmt: skip

    typed = parser.parse_args(argv)
    if typed.command == "comparison":
        from maekit import comparison

        comparison.write(typed.output_dir)
        return 0
    if typed.n_bins < 1:
        raise InputError(f"--n_bins {typed.n_bins}: must be 1 or more.")
    from maekit import gap

    gap.write(typed.log_dir, typed.output_dir, n_bins=typed.n_bins, binning=typed.binning, accuracy=typed.accuracy)
    return 0


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
