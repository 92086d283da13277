"""The tests that need a GPU. MAEKIT_TEST_DEVICE=cpu rehearses them with the CPU in its place, where that makes sense."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

# Of several workers of pytest each would start as many threads as there are cores; torch reads these when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

import pytest
import torch

from maekit import files
from maekit.data import cache, sources
from maekit.settings.parser import build_parser
from maekit.settings.resolution import resolve
from maekit.training.saving import Saver
from tests.support import train_here, train_module

DEMO = ("--demo", "--num_workers", "0", "--compile", "off")
QUICK = ("--epochs", "2", "--max_images", "96", "--batch_size", "32")


@pytest.hookimpl(optionalhook=True)  # there is no such hook without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """In the order of their files, slow ones first, each test by itself but for those that share a run."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid.partition("::")[0] if "test_going_on" in nodeid or "test_readouts" in nodeid else nodeid

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def device():
    """The GPU, or what stands in for it."""
    name = os.environ.get("MAEKIT_TEST_DEVICE", "cuda")
    if name != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cpu") if name == "cpu" else torch.device("cuda", 0)


@pytest.fixture(scope="session")
def gpu(device):
    """The GPU, for what a CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("no CUDA device: nothing that a CPU could stand in for")
    return device


@pytest.fixture(autouse=True)
def settings_of_torch():
    """What a run sets for its whole process is afterwards as it was before."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def full_precision(monkeypatch):
    """No TF32 in matrix products or convolutions, whatever a run asks for."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    monkeypatch.undo()


def resolved(device, *flags):
    typed = (*DEMO, "--device", device.type, *flags)
    return resolve(build_parser("train.py", "").parse_args([str(flag) for flag in typed]))


def with_cache(run):
    return cache.cached(sources.open_source(run.data, run.seed), run.data.cache, run.model.input_size, print)


def open_job(device, *flags):
    """The Job of a run on the demo's images, ready for its steps."""
    run = resolved(device, *flags)
    job = train_module.open_task(run, with_cache(run))
    job.prepare()
    return job


class Bar:
    """A progress bar that is never drawn; `after` is called with the number of batches so far."""

    mininterval = 1e9

    def __init__(self, after=lambda batches: None):
        self.batches, self.after = 0, after

    def update(self, images):
        self.batches += 1
        self.after(self.batches)


class Idle:
    """A Saver that never saves."""

    def after_step(self, position, epoch, share):
        pass


def train_on(device, folder, *flags, check=0):
    """Run train.py in this process: its result, job, log, config and summary, what there is of them."""
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        make = train_module.open_task
        patch.setattr(train_module, "open_task", lambda *args: opened.append(make(*args)) or opened[-1])
        result = train_here(*DEMO, "--device", device.type, *flags, "--output_dir", folder, check=check)
    log = files.read_csv(folder / "log.csv") if (folder / "log.csv").exists() else []
    config, summary = (
        files.read_json(folder / name) if (folder / name).exists() else None for name in ("config.json", "summary.json")
    )
    job = opened[0] if opened else None
    return SimpleNamespace(result=result, folder=folder, job=job, log=log, config=config, summary=summary)


def checkpoint_of(folder):
    return torch.load(folder / "checkpoint.pth", map_location="cpu", weights_only=True)


@contextmanager
def stop_request(epoch, share=None):
    """Within it, runs are asked to stop: at a share of an epoch from 0 to 1, or when the epoch has been measured."""
    name = "after_epoch" if share is None else "after_step"
    proceed = getattr(Saver, name)

    def ask(self, *args):
        now = args[0] if share is None else args[1]
        if now == epoch and (share is None or args[2] >= share):
            self.stop.name = "SIGTERM"
        proceed(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, name, ask)
        yield


@pytest.fixture(scope="session")
def trained(device, tmp_path_factory):
    """A finished run of one epoch, for what starts from the weights of a run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train_on(device, folder, "--epochs", "1", "--max_images", "64", "--batch_size", "32", "--norm", "dyt")


def distance(a, b):
    """||a - b|| / ||b|| in float64."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm())
