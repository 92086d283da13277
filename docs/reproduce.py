"""What docs/reproduce.sh calls, see there."""

import argparse
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

from records import numbers, record, reproduce

from maekit.errors import InputError

ABOUT = """Run a record of docs/results.md again, and compare what comes out with its committed numbers.

  docs/reproduce.sh --list              all records, and how long each took
  docs/reproduce.sh demo                run the commands of one; the same again goes on where it stopped
  docs/reproduce.sh demo --check        compare its runs with the committed numbers; exit code 1 if they are off
  docs/reproduce.sh cifar10 --data DIR  with its data in a folder of your own
"""


def main(argv):
    parser = argparse.ArgumentParser(
        "docs/reproduce.sh", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a record, see --list")
    parser.add_argument("--list", action="store_true", help="name all records")
    parser.add_argument("--check", action="store_true", help="compare, run nothing")
    parser.add_argument("--data", metavar="DIR", help="where the record's data are")
    args = parser.parse_args(argv)
    try:
        if args.list:
            print(reproduce.listing())
            return 0
        if not args.name:
            raise InputError("no record named. docs/reproduce.sh --list names them.")
        of = record.read(args.name)
        if not args.check:
            where = f" on {numbers.listed(of.about['machines'])}" if of.taken else ""
            print(f"{of.title}. Time it took: {reproduce.took(of)}{where}.")
            return reproduce.run(of, args.data)
        lines, held = reproduce.check(of)
        print("\n".join(lines))
        return 0 if held else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
