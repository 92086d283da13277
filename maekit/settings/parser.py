"""The parser of train.py, made of the table of flags, and the one that all scripts share. No torch."""

import argparse
import re

from .flags import GROUPS


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which takes -1e-05 for the number it is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+|inf)(e[+-]?\d+)?$", re.IGNORECASE)

    def error(self, message):
        self.exit(2, f"error: {message}. See {self.prog} --help.\n")


def build_parser(prog, description):
    """The parser of train.py. Nothing has an argparse default: what was not typed is None until resolution.resolve()."""
    parser = Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    return parser


def _add(group, flag):
    if flag.kind is bool:
        group.add_argument(f"--{flag.name}", action="store_true", default=None, help=flag.help.replace("%", "%%"))
        return
    named = {"default": flag.default, "demo": flag.demo, **flag.tasks}
    named = [f"{of}: {value}" for of, value in named.items() if value is not None]
    text = f"{flag.help} ({'; '.join(named)})" if named else flag.help
    group.add_argument(f"--{flag.name}", type=flag.kind, metavar=flag.metavar, help=text.replace("%", "%%"))
