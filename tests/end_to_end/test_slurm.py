"""--slurm on a real cluster: a SLURM of two nodes on this machine, started here with a configuration of its own."""

import json
import re
import shlex
import sys
import time

import pytest

from maekit import locks
from maekit.drivers import pool, slurm
from maekit.runs.folder import RunFolder
from tests.support import KIT, run
from tests.support.cluster import SUBMIT, ask, grid_of, is_over, jobs_of, pool_here, shown, started, wait_for, wait_over
from tests.support.runs import losses

QUICK, COMPARISON = KIT / "quick_sweep_test.sh", KIT / "run_comparison.sh"
SMALL = ("--demo", "--max_images", "64", "--batch_size", "16", "--num_workers", "0")


@pytest.fixture(scope="session")
def cluster():
    """The folder of a SLURM that runs for as long as the tests take."""
    with started() as folder:
        yield folder


def counted(*command, cwd):
    """{state: number} as a driver with `status` prints it."""
    head = run(*command, check=0, cwd=cwd).stdout.splitlines()[0]
    return {state: int(n) for n, state in re.findall(r"(\d+) (\w+)", head)}


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
        return folder.log.exists() and losses(folder.path) and locks.is_held(folder.lock)

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
        assert len(losses(folder)) == epochs
        assert losses(folder) == losses(local)
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
    wait_for(lambda: (tmp_path / "two/log.csv").exists() and losses(tmp_path / "two"))
    ask("scancel", "--signal=USR1", "--batch", f"{job}_0")
    run(*pool_here(grid("one", "--batch_size", "16")), check=0)
    wait_over(f"{job}_0")
    text = next((tmp_path / "slurm").glob(f"{job}_0.txt")).read_text()
    assert shown(f"{job}_0")["JobState"] == "COMPLETED" and shown(f"{job}_0")["Restarts"] == "1", text
    assert "stopped by" in text and "goes on with epoch" in text and f"task {job}_0 is queued again" in text
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=1e-3)
    assert json.loads((tmp_path / "two/config.json").read_text())["identity"]["processes"] == 2


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
