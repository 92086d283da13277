"""docs/results.md, and what the README says of results, printed from the records in docs/results/ (see docs/records).

python docs/results.py              writes both pages anew
python docs/results.py --check      writes nothing; exits with 1 if a page says something else
python docs/results.py --take NAME  first takes the numbers of a record from the folders of its runs
"""

import argparse
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

from records import collect, page, record

from maekit.errors import InputError


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", metavar="NAME")
    args = parser.parse_args(argv)
    try:
        if args.take:
            collect.write(record.read(args.take), KIT)
        return write(page.printed(), check=args.check)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def write(pages, *, check):
    """Write pages, {path: text}, or say which of them say something else; the exit status."""
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(KIT)}: not what docs/results/ says. Run python docs/results.py.", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
