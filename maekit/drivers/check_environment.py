"""Exit 0 if this Python has what requirements.txt asks for, else 1 and a line per problem on stderr.

With --import it must also be able to import it all, which takes seconds.
"""

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements.txt"
OLDEST_PYTHON = (3, 11)
IMPORT_NAMES = {"scikit-image": "skimage", "pillow": "PIL"}


def problems(try_imports):
    """What is wrong, cheapest check first: Python, then versions, then real imports."""
    if sys.version_info < OLDEST_PYTHON:
        return [f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, OLDEST_PYTHON))}"]
    needs = [need for line in REQUIREMENTS.read_text().splitlines() if (need := _parse(line))]
    found = [problem for name, bounds in needs if (problem := _version_problem(name, bounds))]
    if try_imports and not found:
        found = [problem for name, _ in needs if (problem := _import_problem(name))]
    return found


def _parse(line):
    """("torch", [(">=", "2.8"), ...]) of a line of requirements.txt; None for comments and optional packages."""
    need, _, comment = line.partition("#")
    if not need.strip() or "optional" in comment:
        return None
    name = re.match(r"[\w-]+", need).group()
    return name, re.findall(r"(>=|!=)\s*([\d.]+)", need)


def _version_problem(name, bounds):
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    for operator, bound in bounds:
        have, want = ([int(n) for n in re.findall(r"\d+", v)] for v in (version.partition("+")[0], bound))
        good = have >= want if operator == ">=" else have[: len(want)] != want
        if not good:
            return f"{name} {version} is not {operator} {bound}"
    return None


def _import_problem(name):
    try:
        importlib.import_module(IMPORT_NAMES.get(name, name))
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is a reason not to use it
        return f"{name} does not import: {error}"
    return None


if __name__ == "__main__":
    found = problems(try_imports="--import" in sys.argv)
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(1 if found else 0)
