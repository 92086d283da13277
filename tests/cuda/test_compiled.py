"""Compiled training on a GPU is the same training, CUDA graphs and all."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from maekit.model import compiling
from maekit.training.trainer import Trainer
from tests.cuda.conftest import Bar, Idle, checkpoint_of, open_job, stop_request, train_on

# batches that are replayed from a CUDA graph, once it is recorded, and no smaller last one to compile anew for
RUN = ("--epochs", "2", "--max_images", "100", "--batch_size", "20", "--decoder_type", "linear")


@pytest.fixture(autouse=True)
def compiler(device, tmp_path_factory, monkeypatch):
    """Nothing compiled by an earlier run, nor what a killed one may have left half written in torch's cache."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("--compile needs a C++ compiler on a CPU")
    shared = tmp_path_factory.getbasetemp().parent / "compiled"  # by pytest's workers
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False


def assert_same_curve(ours, theirs, tolerance):
    assert len(ours.log) == len(theirs.log) == 2
    for row, other in zip(ours.log, theirs.log):
        for name in ("train_loss", "train_loss_rec", "train_loss_cls", "val_mse", "val_loss"):
            if other.get(name) is not None:
                assert row[name] == pytest.approx(other[name], rel=tolerance), (name, row["epoch"])


PROBED = ("--alpha", "0.1", "--probes", "joint frozen")


def assert_compiled_and_plain_agree(device, tmp_path, tolerance, *flags):
    """The first epoch compiled and the second plain, and the other way round, equal two plain ones."""
    plain = train_on(device, tmp_path / "plain", *flags)
    assert not counters["stats"]["unique_graphs"]
    for first, second in (("on", "off"), ("off", "on")):
        folder = tmp_path / first
        with stop_request(epoch=0):
            train_on(device, folder, *flags, "--compile", first, check=143)
        assert bool(counters["stats"]["unique_graphs"]) == (first == "on")
        run = train_on(device, folder, *flags, "--compile", second)
        assert "goes on with epoch 1" in run.result.stdout and counters["stats"]["unique_graphs"]
        assert_same_curve(run, plain, tolerance)
        assert checkpoint_of(folder)["model"].keys() == checkpoint_of(plain.folder)["model"].keys()
        torch._dynamo.reset()
        counters.clear()


def test_layernorm_in_the_device_s_own_precision(device, tmp_path):
    assert_compiled_and_plain_agree(device, tmp_path, 2e-2, *RUN, "--norm", "LayerNorm")


def test_adaptive_tanh_and_both_probes_in_float32(device, tmp_path, full_precision):
    flags = (*RUN, *PROBED, "--norm", "adyt", "--precision", "float32")
    assert_compiled_and_plain_agree(device, tmp_path, 1e-3, *flags)


def test_a_second_alpha_compiles_nothing(device, tmp_path):
    """Of neither sign, with a smaller last batch of validation images; its losses are those of a plain run."""
    flags = ("--epochs", "2", "--max_images", "96", "--batch_size", "16", "--decoder_type", "linear", "--norm", "adyt")
    flags += ("--probes", "joint frozen", "--precision", "float32", "--alpha")
    train_on(device, tmp_path / "first", *flags, "0.1", "--compile", "on")
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    for alpha in ("0.5", "-0.5"):
        run = train_on(device, tmp_path / alpha, *flags, alpha, "--compile", "on")
        assert counters["stats"]["unique_graphs"] == graphs, alpha
        plain = train_on(device, tmp_path / f"plain{alpha}", *flags, alpha)
        assert_same_curve(run, plain, 2e-3)


def test_fine_tuning(device, trained, tmp_path):
    """Without drop path, whose random numbers a compiler draws from another stream."""
    flags = (
        "--task",
        "finetune",
        "--init",
        trained.folder,
        "--epochs",
        "2",
        "--max_images",
        "100",
        "--batch_size",
        "20",
        "--drop_path",
        "0",
    )
    assert_compiled_and_plain_agree(device, tmp_path, 2e-2, *flags)


@pytest.mark.parametrize(
    "norm, precision, blocks",
    [
        ("LayerNorm", "bfloat16", "eager"),
        ("AdaptiveDynamicTanh", "float16", "eager"),
        ("AdaptiveDynamicTanh", "bfloat16", "compiled"),
        ("DynamicErf", "float32", "eager"),
    ],
)
def test_steps_as_one_cuda_graph_are_the_same_steps(norm, precision, blocks, gpu, monkeypatch):
    """With both probes, over three epochs: what is written over at a replay is read before."""
    flags = (
        "--epochs",
        "3",
        "--max_images",
        "96",
        "--batch_size",
        "16",
        "--norm",
        norm,
        "--precision",
        precision,
        "--alpha",
        "0.1",
        "--probes",
        "joint frozen",
        "--compile",
        "on" if blocks == "compiled" else "off",
    )
    found = {}
    for graph in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(compiling, "captures", lambda *_, graph=graph: graph)
            job = open_job(gpu, *flags)
        found[graph] = [Trainer(job, saver=Idle(), bar=Bar()).train_epoch(epoch) for epoch in range(3)]
        found[graph].append(job.validate(2))
        assert (job.captured is not None) == graph
    for eager, captured in zip(found[False], found[True]):
        assert captured == pytest.approx(eager, rel=2e-3, abs=6)  # accuracies, of 200 images, may differ by some
        for name in ("train_loss", "val_mse"):
            assert captured.get(name) == pytest.approx(eager.get(name), rel=2e-3)


def test_a_captured_run_goes_on_as_one(gpu, tmp_path, monkeypatch):
    """Stopped within an epoch and continued; its losses are those of the run without a stop."""
    monkeypatch.setattr(compiling, "WORTH_CAPTURE", 1)
    flags = (
        "--epochs",
        "2",
        "--max_images",
        "96",
        "--batch_size",
        "16",
        "--norm",
        "dyt",
        "--alpha",
        "0.1",
        "--probes",
        "joint frozen",
        "--compile",
        "auto",
    )
    whole = train_on(gpu, tmp_path / "whole", *flags)
    assert whole.job.captured is not None
    with stop_request(1, 0.5):
        train_on(gpu, tmp_path / "stopped", *flags, check=143)
    going_on = train_on(gpu, tmp_path / "stopped", *flags)
    assert going_on.job.captured is not None
    for ours, theirs in zip(going_on.log, whole.log):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
        assert ours["val_mse"] == pytest.approx(theirs["val_mse"], rel=1e-5)
