"""A SLURM of two nodes on this machine, with a configuration of its own, and what it is asked."""

import contextlib
import os
import pwd
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from tests.support import KIT, processes
from tests.support.pool import POOL

SUBMIT = (sys.executable, KIT / "maekit/drivers/slurm.py", "--submit")
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


@contextlib.contextmanager
def started():
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
    """What a command of SLURM prints, and its exit code."""
    return subprocess.run(words, capture_output=True, text=True, check=False)


def wait_for(what, seconds=90):
    """What a function returns, once that is something; if it never is, what the cluster does is said."""
    try:
        return processes.wait_for(what, seconds, every=0.1)
    except TimeoutError as late:
        raise TimeoutError(f"{late}\n{ask('squeue').stdout}") from None


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


def pool_here(*grids):
    """The command of a pool on this machine."""
    return (sys.executable, POOL, *grids)
