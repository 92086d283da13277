"""The pool of the drivers, and quick runs that look like train.py to it."""

import sys

from tests.support import KIT, run

POOL = KIT / "maekit/drivers/pool.py"

# What train.py is to the pool: claims its folder, says where it is, saves its state on SIGTERM, leaves a summary.
STAND_IN = """
import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path
flag = argparse.ArgumentParser().add_argument
for name, default in dict(output_dir="", seconds=0.0, code=0, say="", child="", deaf=0, device="", launcher=0).items():
    flag("--" + name, type=type(default), default=default)
typed = flag.__self__.parse_args()
sys.path.insert(0, KIT)
from maekit import errors
from maekit.runs.folder import RunFolder
from maekit.runs.status import PREEMPTED, RUNNING, Status
folder = RunFolder(typed.output_dir)
shown = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}

def main():
    if folder.claim({}) is not None:
        print("finished already", flush=True)
        return 0
    (folder.path / "config.json").write_text('{"identity": {}}')
    status = Status(folder, 4)
    status.write(RUNNING, 1, 0.0, 50.0)
    def stop(*_):
        status.write(PREEMPTED, 1)
        folder.release()
        os._exit(143)
    if typed.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, stop)
    if typed.child:
        subprocess.Popen(["sleep", typed.child], start_new_session=True, stdout=subprocess.DEVNULL)
    started = time.time()
    with open(folder.path / "trained.txt", "a") as f:
        f.write(f"{os.getppid()}\\n")
    print(typed.say, flush=True)
    time.sleep(typed.seconds)
    if typed.code > 128:
        os.kill(os.getpid(), typed.code - 128)
    if typed.code == 0:
        ended = {"status": "finished", "from": started, "to": time.time(), **shown}
        folder.summary.write_text(json.dumps(ended))
    folder.release()
    return typed.code

code = errors.exit_code(main)
sys.exit(min(code, 1) if typed.launcher else code)  # torchrun makes 1 of every code
"""


def words(file, jobs, *flags, analysis=()):
    """The command of a pool that runs a grid file, or several."""
    files_ = file if isinstance(file, (list, tuple)) else [file]
    return [
        str(w)
        for w in (sys.executable, POOL, "--jobs", jobs, *flags, *files_, *(("--", *analysis) if analysis else ()))
    ]


def go(file, jobs, *flags, analysis=(), check=None, **env):
    """Run a pool to its end."""
    without = {"OMP_NUM_THREADS": None, "CUDA_VISIBLE_DEVICES": None, **env}
    return run(
        "env",
        *(f"-u{name}" for name, value in without.items() if value is None),
        *(f"{name}={value}" for name, value in without.items() if value is not None),
        *words(file, jobs, *flags, analysis=analysis),
        check=check,
    )


def trainings(grid):
    """How often each run of a grid was begun."""
    return [len((folder.path / "trained.txt").read_text().splitlines()) for folder in grid.folders]
