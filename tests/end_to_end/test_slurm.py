"""--slurm on a real cluster: a SLURM of two nodes on this machine, started here with a configuration of its own."""

import contextlib
import csv
import json
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from maekit import locks
from maekit.drivers import pool, slurm
from maekit.runs.folder import RunFolder
from maekit.runs.status import PREEMPTED
from tests.support import KIT, run

QUICK, COMPARISON = KIT / "quick_sweep_test.sh", KIT / "run_comparison.sh"
SUBMIT = (sys.executable, KIT / "maekit/drivers/slurm.py", "--submit")
SMALL = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")
LARGEST_ARRAY = 3
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
CryptoType=crypto/munge
# a job that is queued again waits until no credential of its first start is valid: not 2 minutes here
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
KillWait=20
MaxArraySize={largest}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=2
NodeName={host},{host}-second NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=8
PartitionName=main Nodes={host},{host}-second Default=YES PriorityTier=1
PartitionName=urgent Nodes={host},{host}-second PriorityTier=2
"""


def not_tested(why):
    """Skip, and say so where nobody overlooks it."""
    warnings.warn(f"NOT TESTED, SLURM: {why}", stacklevel=2)
    pytest.skip(f"NOT TESTED, SLURM: {why}")


def free_ports(n):
    """Numbers of ports that nobody listens on, below those that the system hands out to whoever asks for any."""
    free = []
    while len(free) < n:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            free.append(port)
    return free


@pytest.fixture(scope="session")
def cluster():
    """munged, slurmctld and two slurmd, for as long as the tests take; SLURM_CONF names their configuration."""
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{path}:/usr/sbin"
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # sockets want short names
    folder.chmod(0o755)
    daemons, commands = [], ()
    try:
        missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
        if missing:
            not_tested(f"{', '.join(missing)} not installed. apt-get install slurm-wlm munge")
        (folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=folder,
                host=host,
                user=pwd.getpwuid(os.getuid()).pw_name,
                ports=free_ports(3),
                largest=LARGEST_ARRAY,
            )
        )
        os.environ["SLURM_CONF"] = str(configuration)
        munge = [f"--{name}={folder}/munge.{name[:4]}" for name in ("pid-file", "log-file", "seed-file")]
        commands = [
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c", "-N", host],
            ["slurmd", "-D", "-c", "-N", f"{host}-second"],
        ]
        for command in commands:
            output = open(folder / f"{command[0]}{len(daemons)}.txt", "wb")  # noqa: SIM115 - the daemon's
            daemons.append(subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL))
            output.close()
            if command[0] == "munged":
                wait_for(lambda: (folder / "munge.socket").exists() or daemons[0].poll() is not None, 10)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: nodes() == ["idle", "idle"] or any(d.poll() is not None for d in daemons), 30)
        if any(d.poll() is not None for d in daemons) or nodes() != ["idle", "idle"]:
            said = [f.read_text(errors="replace")[-500:] for f in (*folder.glob("*.log"), *folder.glob("*.txt"))]
            not_tested("its daemons do not come up here: " + " | ".join(said))
        yield folder
    finally:
        if len(daemons) == len(commands) and all(d.poll() is None for d in daemons):
            ask("scancel", "--state=PENDING", f"--user={os.getuid()}")
            ask("scancel", f"--user={os.getuid()}")
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not ask("squeue", "-h").stdout.strip(), 30)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ["PATH"] = path
        os.environ.pop("SLURM_CONF", None)


def nodes():
    """States of the nodes."""
    return ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split()


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def wait_for(what, seconds=90):
    """What a function returns, once that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what} in {seconds} s\n{ask('squeue').stdout}")


def jobs_of(result):
    """Numbers of the jobs that a driver says it has submitted."""
    return re.findall(r"^job (\d+):", result.stdout, re.MULTILINE)


def shown(job):
    """{field: value} that scontrol shows of a job or a task of an array."""
    text = ask("scontrol", "show", "job", job).stdout.split("\n\n")[0]
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def is_over(job):
    return shown(job).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL")


def wait_over(*jobs):
    """Until these jobs, or tasks of arrays, have ended."""
    wait_for(lambda: all(map(is_over, jobs)))


def counted(*command, cwd):
    """{state: number} as a driver with `status` prints it."""
    head = run(*command, check=0, cwd=cwd).stdout.splitlines()[0]
    return {state: int(n) for n, state in re.findall(r"(\d+) (\w+)", head)}


def without_clocks(log):
    with open(log, newline="") as f:
        return [
            {k: v for k, v in row.items() if k not in ("epoch_time_s", "images_per_s", "peak_memory_mb")}
            for row in csv.DictReader(f)
        ]


def grid_of(path, scripts):
    """A grid file of cheap commands of bash in place of trainings, each with its run folder as $2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = [path.parent / f"run {i}" for i in range(len(scripts))]
    for folder in folders:
        folder.mkdir()
    path.write_text(
        "".join(shlex.join(["bash", "-c", s, "bash", "--output_dir", str(f)]) + "\n" for s, f in zip(scripts, folders))
    )
    return folders


def test_a_sweep_that_is_preempted_twice_ends_as_the_local_one(cluster, tmp_path):
    """Three tasks, two at once. The first is queued again by an administrator in the middle of its training, the last,
    whose number is that of the whole array, is told that its time limit is near."""
    where = tmp_path / "a folder"
    where.mkdir()
    epochs = 12
    flags = (QUICK, *SMALL, "--probes", "joint", "--epochs", epochs, "--output_dir")
    status = (QUICK, "status", "--demo", "--output_dir", "on it")
    submitted = run(*flags, "on it", "--slurm", "--array=%2 --time 30", check=0, cwd=where)
    array, analysis = jobs_of(submitted)
    assert f"squeue --jobs {array},{analysis}" in submitted.stdout and f"scancel {array} {analysis}" in submitted.stdout
    root = where / "on it/demo-mae-reconstruction-gap/quick"
    assert f"output: {root}/slurm" in submitted.stdout
    folders = [where / task.folder.path for task in pool.read_tasks(root / "commands.txt")]
    assert [folder.parent.name for folder in folders] == ["-0.5", "0.0", "0.5"]

    def trains(task):
        folder = RunFolder(folders[task])
        return folder.log.exists() and without_clocks(folder.log) and locks.is_held(folder.lock)

    at_once = []

    def sampled(what):
        running = ask("squeue", "-h", "-j", array, "-t", "R", "-o", "%i").stdout.split()
        at_once.append(len(running))
        return what()

    wait_for(lambda: sampled(lambda: trains(0)))
    assert ask("scontrol", "requeue", f"{array}_0").returncode == 0
    assert wait_for(lambda: counted(*status, cwd=where)["running"]) <= 2
    wait_for(lambda: sampled(lambda: trains(2)))
    assert ask("scancel", "--signal=USR1", "--batch", f"{array}_2").returncode == 0
    assert shown(f"{array}_2")["JobId"] == array
    halfway = counted(*status, cwd=where)
    assert halfway["runs"] == 3 and halfway["failed"] == 0
    wait_for(lambda: sampled(lambda: all(is_over(f"{array}_{i}") for i in range(3))))
    left = [(folder / "summary.json").stat().st_mtime for folder in folders]
    wait_over(analysis)

    assert max(at_once) == 2, "the throttle, --array=%2"
    tasks = [shown(f"{array}_{i}") for i in range(3)]
    assert [t["JobState"] for t in tasks] == ["COMPLETED"] * 3
    assert [t["Restarts"] for t in tasks] == ["1", "0", "1"]
    texts = [(root / f"slurm/{array}_{i}.txt").read_text() for i in range(3)]
    assert "stopped by SIGTERM" in texts[0] and "interrupted; task" not in texts[0]
    assert "stopped by SIGTERM" in texts[2] and f"interrupted; task {array}_2 is queued again" in texts[2]
    assert "stopped by" not in texts[1]
    assert all(text.count(f"finished after {epochs} epochs") == 1 for text in texts)
    statistics = where / "on it/analysis_demo-quick/gap_statistics.json"
    assert statistics.stat().st_mtime > max(left)
    assert counted(*status, cwd=where) == {"runs": 3, "done": 3, "running": 0, "failed": 0, "diverged": 0, "left": 0}

    run(*flags, "here", "--alphas", "-0.5 0.5", "--jobs", "2", check=0, cwd=where, env={"OMP_NUM_THREADS": "1"})
    for folder in (folders[0], folders[2]):
        local = where / "here" / folder.relative_to(where / "on it")
        assert len(without_clocks(folder / "log.csv")) == epochs
        assert without_clocks(folder / "log.csv") == without_clocks(local / "log.csv")
        assert json.loads((folder / "trajectory.json").read_text()) == json.loads(
            (local / "trajectory.json").read_text()
        )


def test_a_run_that_fails_is_counted_and_the_others_and_the_analysis_go_on(cluster, tmp_path):
    flags = (QUICK, *SMALL, "--probes", "joint", "--epochs", "1", "--alphas", "-1 0.5 1", "--output_dir", tmp_path)
    broken = tmp_path / "checkpoints/demo-quick/demo_alpha--1.0_LayerNorm_lr0.004_seed0"
    broken.mkdir(parents=True)
    for name in ("checkpoint.pth", "checkpoint.previous.pth"):
        (broken / name).write_bytes(b"damaged")
    array, analysis = jobs_of(run(*flags, "--slurm", "", check=0))
    wait_over(analysis)
    assert [shown(job)["JobState"] for job in (f"{array}_0", f"{array}_1", f"{array}_2", analysis)] == [
        "FAILED",
        "COMPLETED",
        "COMPLETED",
        "COMPLETED",
    ]
    status = run(QUICK, "status", "--demo", "--output_dir", tmp_path, check=0).stdout
    assert status.startswith("3 runs: 2 done, 0 running, 1 failed, 0 diverged, 0 left") and "damaged" in status
    statistics = json.loads((tmp_path / "analysis_demo-quick/gap_statistics.json").read_text())
    assert statistics["summary"]["n_experiments"] == 2


def test_more_runs_than_an_array_may_have_are_several_a_task(cluster, tmp_path):
    """Seven where an array has three tasks at most: three a task; one that fails does not end its task."""
    scripts = ['touch "$2/ran"'] * 7
    scripts[3] += "; exit 7"
    folders = grid_of(tmp_path / "grid.txt", scripts)
    submitted = run(*SUBMIT, "", tmp_path / "grid.txt", check=0)
    (job,) = jobs_of(submitted)
    assert f"job {job}: 7 runs of {tmp_path}/grid.txt, 3 a task" in submitted.stdout
    wait_over(*(f"{job}_{i}" for i in range(3)))
    assert all((folder / "ran").exists() for folder in folders)
    assert [shown(f"{job}_{i}")["JobState"] for i in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert not shown(f"{job}_3")


def test_two_nodes_train_one_model_and_save_it_when_the_time_is_up(cluster, tmp_path):
    """A grid line for one process, by srun and torchrun as one of two nodes: equal to one at twice the batch."""

    def grid(name, *more):
        flags = ["--demo", "--max_images", "64", "--num_workers", "0", "--epochs", "8", "--lr", "1e-3", *more]
        words = [sys.executable, KIT / "train.py", *flags, "--output_dir", tmp_path / name]
        (tmp_path / f"{name}.txt").write_text(shlex.join(map(str, words)) + "\n")
        return tmp_path / f"{name}.txt"

    (job,) = jobs_of(run(*SUBMIT, "--nodes=2", grid("two", "--batch_size", "8"), check=0))
    assert shown(job)["NumNodes"].startswith("2")
    wait_for(lambda: (tmp_path / "two/log.csv").exists() and without_clocks(tmp_path / "two/log.csv"))
    ask("scancel", "--signal=USR1", "--batch", f"{job}_0")
    run(*pool_here(grid("one", "--batch_size", "16")), check=0)
    wait_over(f"{job}_0")
    text = next((tmp_path / "slurm").glob(f"{job}_0.txt")).read_text()
    assert shown(f"{job}_0")["JobState"] == "COMPLETED" and shown(f"{job}_0")["Restarts"] == "1", text
    assert "stopped by" in text and "goes on with epoch" in text and f"task {job}_0 is queued again" in text
    one, two = (without_clocks(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=1e-3)
    assert json.loads((tmp_path / "two/config.json").read_text())["identity"]["processes"] == 2


def pool_here(*grids):
    return (sys.executable, KIT / "maekit/drivers/pool.py", *grids)


def test_a_folders_environment_holds_in_the_jobs_whatever_is_exported(cluster, tmp_path):
    where = tmp_path / "a 100%A folder, it's"
    says = 'echo "$PWD|$PYTHON|$PYTHONPATH|${OTHER-none}" >"$2/said"'
    folders = grid_of(where / "grid.txt", [says])
    env = {"PYTHONPATH": "/a b:/c", "PYTHON": "my python", "OTHER": "x"}
    for options, other in (("", "x"), ("--export=NONE", "none")):
        analysis = ("--", "bash", "-c", says, "bash", "--output_dir", where)
        jobs = jobs_of(run(*SUBMIT, options, "grid.txt", *analysis, cwd=where, env=env, check=0))
        wait_over(jobs[-1])
        for folder in (*folders, where):
            assert (folder / "said").read_text().strip() == f"{where}|my python|/a b:/c|{other}"
            (folder / "said").unlink()
        assert (where / "slurm" / f"{jobs[0]}_0.txt").exists() and (
            where / "slurm" / f"{jobs[1]}_analysis.txt"
        ).exists()


def test_a_second_grid_waits_for_the_whole_first_and_each_task_reads_the_grid_it_was_submitted_with(cluster, tmp_path):
    stamp = 'date +%s.%N >"$2/began"; sleep 0.5; date +%s.%N >"$2/ended"; '
    first = grid_of(tmp_path / "one/commands.txt", [stamp, stamp + "exit 3", stamp])
    second = grid_of(tmp_path / "two/evaluations.txt", [stamp])
    blocked = ask("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 2").stdout.strip()
    grids = (tmp_path / "one/commands.txt", tmp_path / "two/evaluations.txt")
    options = f"--array=%1 --dependency afterany:{blocked}"
    jobs = jobs_of(run(*SUBMIT, options, *grids, "--", "bash", "-c", stamp, "bash", "--output_dir", tmp_path, check=0))
    assert len(jobs) == 3
    grids[0].write_text("another grid\n")
    wait_over(jobs[2])
    times = [tuple(float((f / name).read_text()) for name in ("began", "ended")) for f in (*first, *second, tmp_path)]
    assert all(before[1] < after[0] for before, after in zip(sorted(times[:3]), sorted(times[:3])[1:])), "--array=%1"
    assert max(t[1] for t in times[:3]) < times[3][0] and times[3][1] < times[4][0]
    assert [shown(f"{jobs[0]}_{i}")["JobState"] for i in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]


PATIENT = (  # a run that takes its time, and ends like train.py when asked to; the second start has nothing to do
    'folder=$2; end() { echo saved >>"$folder/saved"; exit 143; }; trap end TERM; [ ! -e "$2/saved" ] || exit 0; '
    'touch "$2/began"; for i in {1..600}; do sleep 0.1; done; exit 1'
)


def test_what_is_cancelled_stays_cancelled(cluster, tmp_path):
    (folder,) = grid_of(tmp_path / "grid.txt", [PATIENT])
    (job,) = jobs_of(run(*SUBMIT, "", tmp_path / "grid.txt", check=0))
    wait_for((folder / "began").exists)
    began = time.monotonic()
    ask("scancel", job)
    wait_over(f"{job}_0")
    assert time.monotonic() - began < 10 and (folder / "saved").read_text() == "saved\n"
    assert shown(f"{job}_0")["JobState"] == "CANCELLED"


def test_a_job_of_higher_priority_takes_the_nodes_and_gives_them_back(cluster, tmp_path):
    (folder,) = grid_of(tmp_path / "grid.txt", [PATIENT])
    (job,) = jobs_of(run(*SUBMIT, "", tmp_path / "grid.txt", check=0))
    wait_for((folder / "began").exists)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    other = ask("sbatch", "--parsable", *urgent).stdout.strip()
    wait_over(other, f"{job}_0")
    assert (folder / "saved").read_text() == "saved\n"
    assert shown(f"{job}_0")["JobState"] == "COMPLETED" and shown(f"{job}_0")["Restarts"] == "1"


def test_what_sbatch_refuses_is_one_line_and_submits_nothing(cluster, tmp_path):
    grids = [tmp_path / "a/grid.txt", tmp_path / "b/grid.txt"]
    for grid in grids:
        grid_of(grid, ["true"])
    for options, says in (
        ("--partition=none", "invalid partition"),
        ("--no-such-option", "no-such-option"),
        ("--time=soon", "time"),
        ("--array=1-3%2", "--array=%4"),
        ("-a 1-3", "--array=%4"),
        ("--comment 'open", "cannot be split"),
        ("--dependency=soon", "dependency"),
    ):
        result = run(*SUBMIT, options, *grids, "--", "true", check=2)
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert result.stderr.startswith("error: --slurm") and says.lower() in result.stderr.lower()
    assert not ask("squeue", "-h").stdout.strip()


def test_the_first_job_does_not_run_when_the_second_is_refused(cluster, tmp_path, monkeypatch):
    grids = [tmp_path / "a/grid.txt", tmp_path / "b/grid.txt"]
    (folder,) = grid_of(grids[0], ['touch "$2/began"'])
    grid_of(grids[1], ["true"])
    real = slurm._sbatch

    def once(options, script):
        return real(
            [*options, *(["--partition=none"] if any(o.startswith("--dependency") for o in options) else [])], script
        )

    monkeypatch.setattr(slurm, "_sbatch", once)
    with pytest.raises(slurm.InputError, match="nothing is submitted"):
        slurm.submit("--begin=now+600", grids, 1, ["true"])
    wait_for(lambda: not ask("squeue", "-h").stdout.strip())
    assert not (folder / "began").exists()


def test_without_slurm_it_is_one_line(tmp_path):
    """A machine without SLURM: a PATH with what the driver needs, and no sbatch."""
    for name in ("bash", "dirname", "sed", "mkdir", "mv", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    flags = ("--slurm", "--time 5", "--output_dir", tmp_path / "out")
    result = run("bash", QUICK, *SMALL, "--epochs", "1", *flags, env={"PATH": str(tmp_path)}, check=2)
    assert result.stderr.strip() == (
        "error: --slurm: there is no sbatch here. Run on a login node of the cluster, or without --slurm."
    )


def test_a_comparison_with_evaluations_is_three_jobs(cluster, tmp_path):
    """Held, so that only what is submitted counts: the evaluations wait for the trainings, the analysis for those."""
    flags = (
        "--demo",
        "--methods",
        "ln dyt",
        "--epochs",
        "1",
        "--eval",
        "knn",
        "--output_dir",
        tmp_path,
        "--nproc",
        "2",
    )
    jobs = jobs_of(run(COMPARISON, *flags, "--slurm", "--hold --array %3", check=0))
    assert len(jobs) == 3
    fields = [shown(job) for job in jobs]
    assert [f.get("ArrayTaskId") for f in fields] == ["0-1%3", "0-1%3", None]  # 4 evaluations, 3 tasks at most: 2 each
    assert [f["Dependency"].split("(")[0].replace("_*", "") for f in fields] == [
        "",
        f"afterany:{jobs[0]}",
        f"afterany:{jobs[1]}",
    ]
    assert all(f["Requeue"] == "1" for f in fields[:2])
    assert "--standalone --nproc_per_node 2" in (tmp_path / "commands.txt").read_text()
    assert counted(COMPARISON, "status", "--output_dir", tmp_path, cwd=tmp_path)["left"] == 6
    ask("scancel", *jobs)


def test_a_command_across_nodes_is_torchrun_on_each(monkeypatch, tmp_path):
    line = ["/my python", "/kit/train.py", "--output_dir", "a/train.py", "--seed", "0"]
    torchrun = ["/my python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "8", *line[1:]]
    monkeypatch.setenv("SLURM_NNODES", "1")
    assert slurm.across_nodes(torchrun, 8) == torchrun
    monkeypatch.delenv("SLURM_NNODES")
    assert slurm.across_nodes(line, 1) == line
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\necho node9\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("SLURM_NNODES", "3"), ("SLURM_JOB_NODELIST", "node[7-9]"), ("SLURM_JOB_ID", "123456")):
        monkeypatch.setenv(name, value)
    words = slurm.across_nodes(torchrun, 8)
    assert words[:2] == ["bash", "-c"]
    assert words[4:9] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "/my python"]
    meeting = "--rdzv_backend=c10d --rdzv_id=123456 --rdzv_endpoint=node7:23456"
    torchrun = f"-m torch.distributed.run --nnodes=3 --nproc_per_node=8 {meeting}"
    assert words[9:] == f"{torchrun} /kit/train.py --output_dir a/train.py --seed 0".split()
    assert slurm.across_nodes(line, 8) == words


def test_a_signal_to_all_processes_of_a_run_still_saves_it(tmp_path):
    """SLURM tells every process of a job, those that decode images as well, and the task passes on what it is told."""
    flags = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "2", "--epochs", "500")
    process = subprocess.Popen(
        [sys.executable, KIT / "train.py", *flags, "--output_dir", tmp_path],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for((tmp_path / "checkpoint.pth").exists)
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode in (143, -signal.SIGTERM) and "Traceback" not in error
    assert "worker" not in error and json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"


def test_a_run_that_fails_after_it_was_preempted_once_is_not_preempted_again(tmp_path):
    """What status.json says of an earlier start does not have the task queued again and again."""
    before = {"status": PREEMPTED, "epoch": 1, "epochs": 2, "time": time.time() - 60}
    (folder,) = grid_of(tmp_path / "grid.txt", ["exit 2"])
    (folder / "status.json").write_text(json.dumps(before))
    assert run(*pool_here("--line", "0", tmp_path / "grid.txt")).returncode == 2
    now = {**before, "time": time.time() + 60}
    (folder / "status.json").write_text(json.dumps(now))
    assert run(*pool_here("--line", "0", tmp_path / "grid.txt")).returncode == pool.INTERRUPTED
