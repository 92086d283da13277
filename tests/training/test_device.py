"""The device and the precision that a run gets. Of GPUs that are not here, what torch would say is made up."""

import os
from contextlib import contextmanager

import pytest
import torch
from timm.models.vision_transformer import Block

from maekit.data import resident
from maekit.errors import InputError
from maekit.probes import frozen, knn
from maekit.training import validation
from maekit.training.device import Device, choose
from tests.support import train_here
from tests.support.gpus import write_nvidia_smi


@pytest.fixture
def gpus(monkeypatch):
    """Function that lets torch see so many GPUs; returns the list of those that are made current."""

    def see(count, bfloat16=True):
        current = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
        )
        monkeypatch.setattr(torch._C, "_cuda_setDevice", current.append, raising=False)
        return current

    return see


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_has_its_number(name, number, gpus):
    current = gpus(2)
    device = Device(name, "auto")
    assert (device.torch, device.precision, current) == (torch.device("cuda", number), "bfloat16", [number])


def test_each_of_several_processes_has_a_gpu_of_its_own(gpus, monkeypatch):
    current = gpus(4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for rank in "2013":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert Device("auto", "bfloat16").torch == torch.device("cuda", int(rank))
    assert current == [2, 0, 1, 3]


def test_what_the_hardware_does_not_have_is_not_emulated(gpus):
    """Of two bytes a number, an older GPU computes float16 alone, which needs its losses scaled."""
    gpus(1, bfloat16=False)
    device = Device("auto", "auto")
    assert device.precision == "float16" and device.scaler.is_enabled()


@pytest.mark.parametrize(
    ("name", "count", "processes", "says"),
    [
        ("cuda", 0, 1, "--device cuda: torch .* sees no CUDA device"),
        ("cuda:2", 2, 1, "--device cuda:2: there are 2 CUDA devices, counted from 0"),
        ("cuda:1", 2, 2, "--device cuda:1: 2 processes need a GPU each. Use --device cuda;"),
        ("auto", 2, 3, "--device cuda: 3 processes need a GPU each, there are 2. Use fewer"),
    ],
)
def test_gpus_that_are_not_there(name, count, processes, says, gpus, monkeypatch):
    gpus(count)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    with pytest.raises(InputError, match=says):
        choose(name)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Function that puts an nvidia-smi of a driver, and of the newest CUDA that it has, first on the PATH; None: one that fails."""

    def put(driver, cuda):
        write_nvidia_smi(tmp_path, driver, cuda)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


@pytest.mark.skipif(os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd"), reason="has a GPU, which is asked")
@pytest.mark.parametrize(("driver", "cuda"), [("470.256.02", "11.4"), ("535.104.05", "12.2"), ("570.86.10", "12.8")])
def test_a_gpu_that_torch_cannot_use_is_said_before_a_cpu_takes_a_hundred_times_as_long(
    driver, cuda, nvidia_smi, gpus, tmp_path, monkeypatch
):
    gpus(0)
    nvidia_smi(driver, cuda)
    flags = ("--demo", "--max_images", 32, "--epochs", 1, "--probes", "none", "--output_dir", tmp_path / "run")
    line = train_here(*flags, check=2).stderr
    assert line.startswith(
        f"error: --device auto: there is an NVIDIA GPU (driver {driver}, for CUDA up to {cuda}), but torch"
    )
    assert "--device cpu" in line and line.count("\n") == 1 and not (tmp_path / "run").exists()
    for hidden in ("", "-1", "none", "NoDevFiles", "7"):  # who hides the GPU means the CPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert choose("auto") == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    train_here(*flags, "--device", "cpu", check=0)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0") or os.path.exists("/dev/kfd"), reason="has a GPU, which is asked")
@pytest.mark.parametrize("chosen", [None, "0", "none"])
def test_an_nvidia_smi_without_a_gpu_is_none(chosen, nvidia_smi, gpus, monkeypatch):
    gpus(0)
    nvidia_smi(None, None)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert choose("auto") == torch.device("cpu")


def test_on_windows_a_torch_for_cpus_alone_is_warned_of(nvidia_smi, gpus, monkeypatch, capsys):
    """It is the one that pip has there, and that the kit's own environment gets."""
    gpus(0)
    nvidia_smi("570.86.10", "12.8")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match=r"built for CPUs alone, cannot use it\. Set PYTHON to a Python with pytorch"):
        choose("auto")
    monkeypatch.setattr("maekit.training.device.sys.platform", "win32")
    assert choose("auto") == torch.device("cpu")
    assert "warning: there is an NVIDIA GPU" in capsys.readouterr().err


def test_a_device_is_looked_for_before_anything_is_computed_but_not_on_a_login_node(tmp_path, gpus):
    """Which is where drivers check flags and data, with --dry_run, before they hand the runs to a cluster."""
    gpus(0)
    flags = ("--demo", "--device", "cuda", "--output_dir", tmp_path / "run")
    error = train_here(*flags, check=2).stderr
    assert error.startswith("error: --device cuda: torch") and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert "training images of" in train_here(*flags, "--dry_run", check=0).stdout


def test_more_processes_than_gpus_are_said_before_anything_is_computed(tmp_path, gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    error = train_here("--demo", "--output_dir", tmp_path / "run", check=2).stderr
    assert "3 processes need a GPU each, there are 2" in error and not (tmp_path / "run").exists()


def numerics():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_device_changes_torch_s_settings_for_the_time_of_a_pass_alone(precision, gpus):
    before = numerics()
    gpus(1)
    device = Device("cuda", precision)
    assert numerics() == before == ("highest", False)
    with device.products():
        assert numerics() == ("high", True)
    with pytest.raises(KeyError), device.autocast():
        assert numerics() == ("high", True)
        assert torch.is_autocast_enabled("cuda") == (precision != "float32")
        raise KeyError
    assert numerics() == before and not torch.is_autocast_enabled("cuda")
    with Device("cpu", "float32").autocast():
        assert numerics() == before


def test_encoder_and_decoder_may_be_multiplied_as_tf32_pixels_k_nn_and_probes_never(tmp_path, monkeypatch):
    """Of each, where in a run it is computed: within Device.products, forward and backward, or outside."""
    inside, seen = [False], {}

    @contextmanager
    def products(self):
        before, inside[0] = inside[0], True
        yield
        inside[0] = before

    def watch(owner, name, what):
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            seen.setdefault(what, set()).add(inside[0])
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    def backward(ctx, grad):
        seen.setdefault("backward of a block", set()).add(inside[0])
        return grad

    class Watch(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.view_as(x))

    Watch.backward = staticmethod(backward)
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: Watch.apply(forward(self, x)))
    monkeypatch.setattr(Device, "products", products)
    watch(Block, "forward", "block")
    watch(knn, "knn_predict", "k-NN")
    watch(frozen, "step_all", "probe's step")
    watch(frozen, "predict_all", "probe's prediction")
    watch(validation, "smooth_colour", "pixels")
    watch(resident.ResidentImages, "_crop", "crops")
    monkeypatch.setattr(
        resident, "place", lambda images, *_: resident.ResidentImages(images.store, torch.device("cpu"))
    )
    monkeypatch.setenv("MAEKIT_CACHE", str(tmp_path / "cache"))
    flags = ("--demo", "--epochs", "1", "--max_images", "32", "--batch_size", "16", "--num_workers", "0")
    train_here(*flags, "--probes", "all", "--output_dir", tmp_path / "run", check=0)
    within = {name for name, places in seen.items() if places == {True}}
    outside = {name for name, places in seen.items() if places == {False}}
    assert within == {"block", "backward of a block"}
    assert outside == {"k-NN", "probe's step", "probe's prediction", "pixels", "crops"}


def test_a_linear_probe_is_trained_in_float32(tmp_path, monkeypatch):
    places = []

    @contextmanager
    def products(self):
        places.append(True)
        yield
        places.pop()

    class Watch(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.view_as(x))
        backward = staticmethod(lambda ctx, grad: seen.append(list(places)) or grad)

    seen, layer = [], torch.nn.Linear.forward
    monkeypatch.setattr(Device, "products", products)
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: Watch.apply(layer(self, x)))
    flags = ("--demo", "--task", "linprobe", "--init", "untrained", "--epochs", "1", "--max_images", "32")
    train_here(*flags, "--batch_size", "16", "--num_workers", "0", "--output_dir", tmp_path, check=0)
    assert seen and not any(seen)
