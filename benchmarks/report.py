#!/usr/bin/env python3
"""The tables of the benchmarks from their JSON files, as Markdown.

python benchmarks/report.py                                # of all machines in benchmarks/results
python benchmarks/report.py --gather DIR FILE ...          # put the files of one machine into one, DIR/<machine>.json
"""

import argparse
import json
import re
from pathlib import Path

from common import KIT, table

RESULTS = KIT / "benchmarks" / "results"
OF_MACHINE = ("machine", "processor", "cores", "torch", "python", "date")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", metavar="DIR", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    args = parser.parse_args()
    if args.gather:
        print(gather(args.gather, args.files))
        return
    files = args.files or sorted(RESULTS.glob("*.json"))
    print("\n".join(tables(json.loads(file.read_text(encoding="utf-8"))) for file in files) or "nothing measured yet")


def gather(folder, files):
    """Write one file of one machine: {machine, ..., benchmarks: {name: {rows, ...}}}. Returns its path."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    # of a GPU where one was used: bench_data.py knows the processor alone
    machine = next((part for part in parts if "threads" not in part["machine"]), parts[0])
    whole = {name: machine[name] for name in OF_MACHINE}
    whole["benchmarks"] = {
        part["benchmark"]: {k: v for k, v in part.items() if k not in (*OF_MACHINE, "benchmark")} for part in parts
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", machine["machine"].lower()).strip("-") + ".json")
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return path


def tables(whole):
    """The tables of one machine."""
    lines = [f"### {whole['machine']}", "", f"torch {whole['torch']}, {whole['cores']} cores, {whole['date']}", ""]
    for name, found in whole["benchmarks"].items():
        more = ", ".join(f"{key} {value}" for key, value in found.items() if key != "rows")
        script, _, which = name.partition(", ")
        title = f"bench_{script}.py" if (KIT / "benchmarks" / f"bench_{script}.py").exists() else script
        lines += [f"**{title}**{which and f', {which}'}" + (f": {more}" if more else ""), "", table(found["rows"]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
