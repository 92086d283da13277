"""The package of records, which lies in docs/, and a record made for a test."""

import sys

from maekit.files import write_csv, write_json
from tests.support import KIT

sys.path.insert(0, str(KIT / "docs"))
from records import collect, numbers, page, record, reproduce, tables

sys.path.remove(str(KIT / "docs"))

__all__ = ["a_record", "collect", "numbers", "page", "record", "reproduce", "tables"]

ABOUT = {
    "runs": 6,
    "evaluations": 0,
    "diverged": 0,
    "seeds": [0, 1, 2],
    "commits": ["abcdef0"],
    "machines": ["cpu: x86_64, 1 thread"],
    "versions": ["python 3.11.7"],
    "data": ["0123"],
    "at_a_time": 1,
    "seconds": 100,
}
RECORDS = """records = ["made"]
[data.none]
folder = ""
what = "nothing"
get = ""
"""


def a_record(folder, losses, text="", **more):
    """A Record in a folder: final validation losses {method: (of seed 0, of seed 1, ...)}; more: what its record.toml has."""
    made = folder / "made"
    made.mkdir(parents=True)
    rows = [
        {
            "method": method,
            "seed": seed,
            "status": "finished",
            "val_mse": loss,
            "flat_colour": 1.0,
            "smooth_colour": 0.9,
        }
        for method, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    write_csv(made / "runs.csv", list(rows[0]), rows)
    write_json(made / "about.json", ABOUT)
    (made / "text.md").write_text(text, encoding="utf-8")
    (folder / "records.toml").write_text(RECORDS, encoding="utf-8")
    known = {"title": "Made", "commands": ("true",), "data": "none", "runs": "out", "tolerance": {"val_mse": 0.01}}
    return record.Record(name="made", results=folder, **{**known, **more})
