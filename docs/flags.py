"""docs/flags.md, the reference of all flags, from the parsers and from the comments at the top of the drivers.

python docs/flags.py [FILE]        writes it, there or to FILE
"""

import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import analysis
from maekit.drivers.windows import banner
from maekit.settings.parser import build_parser

DRIVERS = ("run_comparison.sh", "run_alpha_sweep.sh", "quick_sweep_test.sh", "lr_alpha_sweep.sh")

ABOUT = (
    "Written by `python docs/flags.py` from the parsers and from the drivers themselves. `train.py` does one run; a flag "
    "that a driver does not list goes to every pre-training as it is, and evaluations get those on data, model, norm and "
    "device, and `--overwrite`. `run_comparison.bat` has the flags of `run_comparison.sh` but for `--slurm`."
)


def page():
    """The whole page."""
    parts = [
        "# Every flag",
        ABOUT,
        "## train.py",
        tables(build_parser("train.py", "")),
        "## analysis.py",
    ]
    for name, command in subcommands(analysis.build_parser()):
        parts += [f"### analysis.py {name}", tables(command)]
    for name in DRIVERS:
        parts += [f"## {name}", f"```text\n{banner(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def tables(parser):
    """A table of flags for each group of a parser that has some."""
    made = []
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if "--help" not in action.option_strings]
        title = [f"**{group.title}**", ""] if group.title not in ("options", "positional arguments") else []
        if rows:
            made.append("\n".join([*title, "| flag | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(made)


def row(action):
    """A flag as a row: how it is typed, what it means, and its default where the help does not say."""
    value = "" if action.nargs == 0 else f" {action.metavar or '{' + ','.join(action.choices or 'X') + '}'}"
    text = action.help.replace("%%", "%").replace("|", "\\|")
    if action.default not in (None, False, "==SUPPRESS=="):
        text += f" (default: {action.default})"
    return f"| `{action.option_strings[-1]}{value}` | {text}{' (required)' if action.required else ''} |"


def subcommands(parser):
    """(name, parser) of the commands of a parser."""
    return next(action.choices for action in parser._actions if action.dest == "command").items()


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else KIT / "docs/flags.md").write_text(page(), encoding="utf-8")
