"""Git, and a clone of upstream's stand-in."""

import subprocess

from maekit.model import upstream

MODEL = "from util.misc import scale\n\n\ndef build():\n    return scale(2)\n\n\nVERSION = 'old'\n"
MISC = "import math\n\n\ndef scale(value):\n    return value * math.inf\n"
FILES = {"models_mae.py": MODEL, "util/misc.py": MISC, "main_pretrain.py": "print('pretraining')\n"}
PATCHED = {
    "models_mae.py": MODEL.replace("'old'", "'new'"),
    "util/misc.py": MISC.replace("value * math.inf", "value * math.tau"),
}


def git(folder, *words, check=True):
    result = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, result.stderr
    return result.stdout.strip()


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def commit(folder, message="change"):
    git(folder, "add", "--all")
    alone = ("-c", "maintenance.auto=false", "-c", "gc.auto=0")  # nothing in the background that writes to .git
    git(folder, *alone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def contents(folder):
    """Every file of a folder, .git too, and when it was last written; git touches objects that it meets again."""
    return {
        path.relative_to(folder): (path.read_bytes(), "objects" in path.parts or path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def apply(mae, *options):
    git(mae, "apply", *options, upstream.PATCH)
