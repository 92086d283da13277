"""Give grid files to SLURM: an array job for each, one after the other, and the analysis after the last.

    python maekit/drivers/slurm.py --submit "SBATCH OPTIONS" [--nproc N] FILE ... [-- ANALYSIS COMMAND]
    python maekit/drivers/slurm.py --task LINES FILE     what a task of the array does: its LINES commands

A throttle, "--array=%4" among the options, bounds how many tasks run at once. A task that is preempted, or comes near
its time limit, saves its state and is queued again.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started by path, as pool.py is

from maekit import errors
from maekit.drivers import pool
from maekit.errors import InputError

WARNING_SECONDS = 120  # before its time limit a task is told to save its state
KEPT = ("PATH", "PYTHON", "PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")  # inside the jobs, whatever --export says


def submit(options, paths, nproc, analysis):
    """Submit a chain of jobs, all or none, and print their numbers."""
    if shutil.which("sbatch") is None:
        raise InputError("--slurm: there is no sbatch here. Run on a login node of the cluster, or without --slurm.")
    words, first = _own_words(options)
    largest = _largest_array()
    folder = Path(paths[0]).resolve().parent / "slurm"
    folder.mkdir(exist_ok=True)
    logs = str(folder).replace("%", "%%")  # sbatch puts numbers in for %A
    jobs = []
    try:
        for path in map(Path, paths):
            lines = len(pool.read_tasks(path))
            each = max(1, -(-lines // largest))  # commands a task
            command = [sys.executable, Path(__file__).resolve(), "--task", each, "--nproc", nproc, _kept(path, folder)]
            array = f"--array=0-{-(-lines // each) - 1}{first['--array']}"
            after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else first["--dependency"]
            named = [f"--job-name={folder.parent.name}-{path.stem}", f"--output={logs}/%A_%a.txt"]
            again = ["--requeue", "--open-mode=append", f"--signal=B:USR1@{WARNING_SECONDS}"]
            script = _script(folder / f"{path.stem}.sbatch", command)
            jobs.append(_sbatch([*named, *again, *words, array, *after], script))
            print(f"job {jobs[-1]}: {lines} runs of {path}" + (f", {each} a task" if each > 1 else ""))
        if analysis:
            named = [f"--job-name={folder.parent.name}-analysis", f"--output={logs}/%j_analysis.txt"]
            script = _script(folder / "analysis.sbatch", analysis)
            jobs.append(_sbatch([*named, *words, f"--dependency=afterany:{jobs[-1]}"], script))
            print(f"job {jobs[-1]}: the analysis, after the last of them")
    except InputError:
        if jobs:
            subprocess.run(["scancel", *jobs], check=False)
        raise
    print(
        f"watch:  squeue --jobs {','.join(jobs)}, or the same command with the word status, which counts what is done"
    )
    print(f"output: {folder}")
    print(f"cancel: scancel {' '.join(jobs)}; the same command goes on from there")


def task(path, each, nproc):
    """Run this array task's commands. Asks to be queued again if it was interrupted. Returns the exit code."""
    asked = pool.Asked()
    first = int(os.environ["SLURM_ARRAY_TASK_ID"]) * each
    worst = 0
    for number in range(first, min(first + each, len(pool.read_tasks(path)))):
        code = pool.run_line(path, number, asked, nproc, lambda words: across_nodes(words, nproc))
        if code == pool.INTERRUPTED:
            queue_again()
            return code
        worst = worst or code
    return worst


def queue_again():
    """Have SLURM queue this task again, unless it has decided already what becomes of it: that, or scancel."""
    # Not SLURM_JOB_ID: the array's last task has the number of the whole array, which would be queued again.
    own = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    shown = _ask("scontrol", "show", "job", own).stdout
    if not re.search(r"\bJobState=RUNNING\b|\bReason=TimeLimit\b", shown):
        return
    print(f"interrupted; task {own} is queued again and goes on from there.", flush=True)
    result = _ask("scontrol", "requeue", own)
    if result.returncode:
        print(f"scontrol requeue: {_reason(result.stderr)}. The same command as before goes on.", file=sys.stderr)


# srun takes SIGTERM for an order to kill at once: tell the processes that it has started instead, on all nodes.
_RELAY = """\
trap 'scancel --signal=TERM "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' TERM
"$@" &
while wait $!; code=$?; kill -0 $! 2>/dev/null; do :; done
exit $code"""


def across_nodes(words, nproc):
    """A command of one node as one of all nodes of the job: torchrun on each, started by srun."""
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    if nodes == 1:
        return words
    script = next(i for i, word in enumerate(words) if os.path.basename(word) == "train.py")
    head = _ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).stdout.split()[0]
    job = os.environ["SLURM_JOB_ID"]
    port = 20000 + int(job) % 10000  # below those that systems deal out
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    torchrun = ["-P", "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={nproc}"]
    meeting = ["--rdzv_backend=c10d", f"--rdzv_id={job}", f"--rdzv_endpoint={head}:{port}"]
    return ["bash", "-c", _RELAY, "bash", *srun, words[0], *torchrun, *meeting, *words[script:]]


_SHORT = {"-a": "--array", "-d": "--dependency"}


def _own_words(options):
    """(sbatch options of every job, those of some: {"--array": "%K" or "", "--dependency": [] or [word]})."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--slurm {options}: cannot be split into words ({error}).") from None
    every, first = [], {"--array": "", "--dependency": []}
    while words:
        word = words.pop(0)
        if word[:2] in _SHORT:
            word = f"{_SHORT[word[:2]]}={word[2:] or (words.pop(0) if words else '')}"
        elif word in first:
            word = f"{word}={words.pop(0) if words else ''}"
        name, _, value = word.partition("=")
        if name == "--dependency":
            first[name] = [word]
        elif name == "--array":
            if not re.fullmatch(r"%[1-9]\d*", value):
                raise InputError(
                    f"--slurm: --array {value}: the runs decide the array. What can be set is how many of them run "
                    "at once: --array=%4."
                )
            first[name] = value
        else:
            every.append(word)
    return every, first


def _largest_array():
    """Tasks that an array of this cluster may have."""
    shown = _ask("scontrol", "show", "config")
    if shown.returncode:
        raise InputError(f"--slurm: the cluster does not answer ({_reason(shown.stderr)}). See sinfo.")
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown.stdout)
    largest = int(found.group(1)) if found else 1001
    if largest < 1:
        raise InputError("--slurm: this cluster has no job arrays (MaxArraySize is 0). Run without --slurm in a job.")
    return largest


def _kept(path, folder):
    """A copy of a grid, named by its content: tasks that wait read their own if a later command writes another."""
    content = path.read_bytes()
    copy = folder / f"{path.stem}-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    if not copy.exists():
        draft = copy.with_suffix(f".{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(copy)
    return copy


def _script(path, words):
    """Write a batch script that runs a command in this folder and environment."""
    kept = [f"export {name}={shlex.quote(os.environ[name])}" for name in KEPT if name in os.environ]
    lines = [
        "#!/bin/bash",
        f"# what SLURM runs, from {Path(__file__).name}",
        f"cd {shlex.quote(os.getcwd())} || exit",
        *kept,
        "export SLURM_EXPORT_ENV=ALL  # srun passes that on",
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # and that',
        f"exec {shlex.join(map(str, words))}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def _sbatch(options, script):
    """Submit; the job's number."""
    result = _ask("sbatch", "--parsable", *options, str(script))
    if result.returncode:
        raise InputError(f"--slurm: sbatch refuses ({_reason(result.stderr)}); nothing is submitted. See man sbatch.")
    numbers = re.findall(r"^(\d+)(?:;.*)?$", result.stdout, re.MULTILINE)  # some sites' sbatch has more to say
    if not numbers:
        raise InputError(f"--slurm: sbatch gives no job number but {result.stdout.strip()[:200]!r}. See squeue.")
    return numbers[-1]


def _ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _reason(text):
    """The line of a SLURM command's stderr that says why."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("Try ")]
    return re.sub(r"^\w+: ((error|fatal): )?", "", lines[-1]) if lines else "no reason given"


def main(argv):
    words, analysis = (list(argv), []) if "--" not in argv else (argv[: argv.index("--")], argv[argv.index("--") + 1 :])
    parser = argparse.ArgumentParser(prog="slurm.py")
    parser.add_argument("--submit", metavar="OPTIONS")
    parser.add_argument("--task", type=int, metavar="LINES")
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("files", nargs="+")
    if words[0] == "--submit" and len(words) > 1:
        words[:2] = [f"--submit={words[1]}"]  # what is typed may be a single --word
    typed = parser.parse_args(words)
    if typed.task is not None:
        return task(typed.files[0], typed.task, typed.nproc)
    return submit(typed.submit, typed.files, typed.nproc, analysis)


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
