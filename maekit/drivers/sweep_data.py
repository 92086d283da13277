"""What the folders of a sweep are named after: its data.

    python -P -m maekit.drivers.sweep_data OUTPUT_DIR NAME FLAG ...    -> imagenette

FLAG ...: of train.py, with those that say which data. Sweeps of all data but the demo were in imagenette-... once; one that
is there goes on there, and stderr says so. It needs no packages.
"""

import os
import re
import sys
from pathlib import Path

from maekit import errors, files
from maekit.settings.parser import build_parser

IMAGENETTE = ("frgfm/imagenette", "320px")  # the sweeps' own data: data set and configuration


def data_name(typed):
    """The name that the data of train.py's flags have in names of folders: the last part of the data set's or folder's."""
    if typed.demo:
        return "demo"
    name = os.path.basename(os.path.abspath(typed.imagenet_dir or typed.hf_dataset))
    if not typed.imagenet_dir and typed.hf_config and (typed.hf_dataset, typed.hf_config) != IMAGENETTE:
        name += f"-{typed.hf_config}"
    return re.sub(r"[^\w.-]+", "_", name) or "data"


def main(argv):
    output_dir, name, *flags = argv
    typed = build_parser("train.py", "").parse_args(flags)
    data = data_name(typed)
    old, new = (Path(output_dir, f"{of}-mae-reconstruction-gap", name) for of in ("imagenette", data))
    earlier = [] if data == "demo" or new.exists() else _data_of_runs(old)
    if _told(vars(typed)) in earlier:
        print(
            f"{old}: holds runs of these data, from before folders were named after them; they go on there.",
            file=sys.stderr,
        )
        data = "imagenette"
    elif others := [
        dict(told) for told in earlier if told != _told(dict(zip(("hf_dataset", "hf_config"), IMAGENETTE)))
    ]:
        of = " ".join(f"--{flag} {value}" for flag, value in others[0].items())
        print(f"{old}: holds runs of {of}; the runs of {data} are in {new}.", file=sys.stderr)
    print(data)


def _data_of_runs(folder):
    """What _told says of the runs of a sweep, each once."""
    found = []
    for config in sorted(folder.glob("*/*/config.json")):
        try:
            told = _told(files.read_json(config)["settings"]["data"])
        except (errors.InputError, OSError, LookupError, TypeError):
            continue
        if told not in found:
            found.append(told)
    return found


def _told(settings):
    """Which data settings, or flags as typed, stand for: ((flag, value), ...) that can be compared."""
    if settings.get("imagenet_dir"):
        return (("imagenet_dir", os.path.realpath(settings["imagenet_dir"])),)
    return tuple((flag, settings[flag]) for flag in ("hf_dataset", "hf_config") if settings.get(flag))


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
