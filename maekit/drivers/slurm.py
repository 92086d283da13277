"""Give grid files to SLURM: an array job for each, one after the other, and the analysis after the last.

    python maekit/drivers/slurm.py --submit "SBATCH OPTIONS" [--nproc N] FILE ... [-- ANALYSIS COMMAND]
    python maekit/drivers/slurm.py --task LINES FILE      what a task of the array does: its LINES commands, through pool.py

A throttle, "--array=%4" among the options, bounds how many tasks run at once. A task that is preempted, or reaches its
time limit, saves its state and is queued again.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maekit import errors
from maekit.drivers import pool
from maekit.errors import InputError

WARNING_SECONDS = 120  # before its time limit a task is told to save its state


def submit(options, paths, nproc, analysis):
    """Submit a chain of jobs and print their numbers."""
    if shutil.which("sbatch") is None:
        raise InputError("--slurm: there is no sbatch here. Run on a login node of the cluster, or without --slurm.")
    words, throttle = _split_throttle(shlex.split(options))
    jobs, last = [], None
    for path in map(Path, paths):
        lines = len(pool.read_tasks(path))
        largest = _largest_array()
        each = -(-lines // largest)  # commands a task
        array = f"--array=0-{-(-lines // each) - 1}{throttle}"
        script = _script(path, [sys.executable, __file__, "--task", str(each), "--nproc", str(nproc), path.resolve()])
        last = _sbatch([array, "--requeue", f"--signal=B:USR1@{WARNING_SECONDS}", "--open-mode=append",
                        f"--output={_logs(path) / '%A_%a.txt'}", *_after(last), *words], script)  # fmt: skip
        jobs.append(last)
        print(f"job {last}: {lines} runs of {path}" + (f", {each} a task" if each > 1 else ""))
    if analysis:
        path = Path(paths[0])
        script = _script(path.with_name("analysis"), analysis)
        last = _sbatch([f"--output={_logs(path) / 'analysis_%j.txt'}", *_after(last), *words], script)
        jobs.append(last)
        print(f"job {last}: the analysis, after the last of them")
    print(f"watch: squeue --jobs {','.join(jobs)}; output: {_logs(Path(paths[0]))}; the same command with `status` in "
          "front of its options counts what is done; cancel: scancel " + " ".join(jobs))  # fmt: skip


def task(path, each, nproc):
    """Run this array task's commands. Queues the job again if one was preempted. Returns the exit code."""
    first = int(os.environ["SLURM_ARRAY_TASK_ID"]) * each
    worst = 0
    for number in range(first, min(first + each, len(pool.read_tasks(path)))):
        code = pool.run_line(path, number, lambda words: across_nodes(words, nproc))
        if code == 143:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
            return code
        worst = worst or code
    return worst


def across_nodes(words, nproc):
    """A command of one node as one of all nodes of the job: torchrun on each, started by srun."""
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    if nodes == 1:
        return words
    script = next(i for i, word in enumerate(words) if word.endswith("train.py"))
    head = subprocess.run(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True,
                          text=True, check=True).stdout.split()[0]  # fmt: skip
    job = os.environ["SLURM_JOB_ID"]
    port = 20000 + int(job) % 40000
    return [
        "srun", f"--nodes={nodes}", "--ntasks-per-node=1", words[0], "-m", "torch.distributed.run",
        f"--nnodes={nodes}", f"--nproc_per_node={nproc}", "--rdzv_backend=c10d", f"--rdzv_id={job}",
        f"--rdzv_endpoint={head}:{port}", *words[script:],
    ]  # fmt: skip


def _split_throttle(words):
    """(other words, "%K" or "") of sbatch options; the array's size is the grid's."""
    other, throttle, words = [], "", list(words)
    while words:
        word = words.pop(0)
        if word in ("--array", "-a") and words:
            word = f"--array={words.pop(0)}"
        if not word.startswith("--array="):
            other.append(word)
            continue
        found = re.fullmatch(r"--array=(%[1-9]\d*)", word)
        if not found:
            raise InputError(
                f"--slurm: {word}: the grid decides the array. Of it only a throttle can be set: --array=%4."
            )
        throttle = found.group(1)
    return other, throttle


def _largest_array():
    """Tasks that an array of this cluster may have."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return int(found.group(1)) if found else 1001


def _logs(path):
    folder = path.resolve().parent / "slurm"
    folder.mkdir(exist_ok=True)
    return folder


def _script(path, words):
    """A batch script beside a grid file that runs a command in the present folder."""
    script = path.with_suffix(".sbatch")
    command = shlex.join(str(word) for word in words)
    script.write_text(f"#!/bin/bash\n# what SLURM runs, see {Path(__file__).name}\nexec {command}\n", encoding="utf-8")
    return script


def _after(job):
    return [f"--dependency=afterany:{job}"] if job else []


def _sbatch(options, script):
    """Submit; the job's number."""
    result = subprocess.run(
        ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        why = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--slurm: sbatch refuses ({why}). See the options in {shlex.join(options)}.")
    return result.stdout.strip().split(";")[0]


def main(argv):
    words, analysis = (argv, []) if "--" not in argv else (argv[: argv.index("--")], argv[argv.index("--") + 1 :])
    parser = argparse.ArgumentParser(prog="slurm.py")
    parser.add_argument("--submit", metavar="OPTIONS")
    parser.add_argument("--task", type=int, metavar="LINES")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("files", nargs="+")
    typed = parser.parse_args(words)
    if typed.task is not None:
        return task(typed.files[0], typed.task, typed.nproc)
    return submit(typed.submit, typed.files, typed.nproc, analysis)


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
