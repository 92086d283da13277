"""Write the weights of a run for other programs.

    python -m maekit.export outputs/LayerNorm/seed0 exports/LayerNorm --to huggingface
    python -m maekit.export outputs/DynamicTanh/seed0 exports/DynamicTanh --to timm --push owner/name

A pre-training gives the autoencoder, or where the other program has none its encoder; a fine-tuning or a linear probing gives
the classifier. DIR has the weights, what says which network they are of, and README.md: data, recipe, numbers, and how to
load them. Hugging Face's ViT has LayerNorm alone; for timm and upstream's MAE norms.py comes along.
"""

import argparse
import os
import sys
from pathlib import Path

from .. import errors, surroundings
from ..settings.parser import Parser


def main(argv=None):
    """Export what is asked for. Returns the exit code."""
    typed = build_parser().parse_args(argv)
    surroundings.settle()
    from . import card, hub, written
    from .targets import TARGETS
    from .trained import read

    folder = Path(os.path.realpath(typed.folder))
    if typed.push:
        hub.check(typed.push)
    written.check(folder, typed.overwrite)
    trained = read(typed.run, averaged=typed.ema)
    package = TARGETS[typed.to](trained)
    text = card.text(trained, package, licence=typed.license, repository=typed.push)
    files = {**package.files, "README.md": text.encode()}
    written.write(folder, files)
    written.note(trained, typed.to, folder, None)
    print(f"{typed.folder}: {package.what}, {len(files)} files; README.md says how to load it.")
    if typed.push:
        print(f"{hub.push(folder, typed.push, private=typed.private)}: pushed.")
        written.note(trained, typed.to, folder, typed.push)
    return 0


def build_parser():
    """The parser of the command."""
    parser = Parser(
        prog="python -m maekit.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run that has ended")
    add("folder", metavar="DIR", help="what is written; a new folder, or an empty one")
    add("--to", required=True, choices=("huggingface", "timm", "upstream"), help="the program that is to read it")
    add("--ema", action="store_true", help="the moving average of the weights, of a run with --ema")
    add(
        "--license",
        metavar="ID",
        help="licence of the weights, as the hub spells it, such as cc-by-nc-4.0; you decide it",
    )
    add("--push", metavar="OWNER/NAME", help="upload DIR there, to the hub of Hugging Face (hf auth login first)")
    add("--private", action="store_true", help="where --push makes the repository, make it a private one")
    add("--overwrite", action="store_true", help="delete an export that is in DIR")
    return parser


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
