"""Where a run computes and in which precision."""

import sys
from contextlib import contextmanager, nullcontext

import torch

from .. import distributed
from ..errors import InputError
from ..machine import gpu_here, matrix_products, processor


class Device:
    """A torch device with the run's precision: contexts of its passes, its GradScaler, its peak memory.

    name: auto (CUDA, then MPS, then CPU), cpu, mps, cuda, cuda:N; of several processes each has a GPU of its own.
    precision: auto is float32 on CPU and MPS, on CUDA bfloat16 where the hardware has it, else float16. Raises InputError
    when the device is not there.
    """

    def __init__(self, name, precision):
        self.torch = choose(name)
        kind = self.torch.type
        if kind == "cuda":
            torch.cuda.set_device(self.torch)
        if precision == "auto":
            half = kind == "cuda" and (
                "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
            )
            precision = half or "float32"
        self.precision = precision
        self.sum_dtype = torch.float32 if kind == "mps" else torch.float64  # of sums over thousands of losses
        self.scaler = torch.amp.GradScaler(kind, enabled=precision == "float16")

    @contextmanager
    def autocast(self):
        """Context of the encoder's and decoder's forward passes; of their backward passes `products` is."""
        half = self.precision != "float32"
        with (
            self.products(),
            torch.autocast(self.torch.type, dtype=getattr(torch, self.precision)) if half else nullcontext(),
        ):
            yield

    @contextmanager
    def products(self):
        """Context in which float32 is multiplied as TF32 on CUDA (10 bits of mantissa, ten times the speed), and cuDNN
        sums in a fixed order. Pixels, k-NN and probes are computed outside of it."""
        if self.torch.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        before, cudnn.deterministic = cudnn.deterministic, True
        try:
            with matrix_products("high"):
                yield
        finally:
            cudnn.deterministic = before

    def describe(self):
        """Name of the hardware, for config.json."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name(self.torch)
        threads = torch.get_num_threads()
        return f"{processor()}, {threads} thread{'s' * (threads != 1)}"

    def peak_memory_mb(self):
        """Largest memory so far in MB: allocated on the GPU; elsewhere of the process, None where unknown."""
        if self.torch.type == "cuda":
            return torch.cuda.max_memory_allocated(self.torch) / 2**20
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, kilobytes elsewhere


def _say_unused(gpu):
    """Raise InputError where torch cannot use the GPU that is there: on the CPU a run would take a hundred times as long. On
    Windows, where pip has no torch for a GPU and the kit's own environment none, it is a warning."""
    cuda, hip = torch.version.cuda, torch.version.hip
    built = f"built for CUDA {cuda}" if cuda else f"built for ROCm {hip}" if hip else "built for CPUs alone"
    way = "set PYTHON to a Python with pytorch.org's torch for " + (
        "ROCm" if "AMD" in gpu else "an older CUDA" if cuda else "CUDA"
    )
    way = f"Update the driver, or {way}" if cuda and "AMD" not in gpu else way[0].upper() + way[1:]
    text = f"there is {gpu}, but torch {torch.__version__}, {built}, cannot use it. {way} (docs/troubleshooting.md)."
    if sys.platform == "win32" and not cuda:
        distributed.say(f"warning: {text} This trains on the CPU.", file=sys.stderr)
        return
    raise InputError(f"--device auto: {text} --device cpu trains on the CPU all the same.")


def choose(name):
    """The torch.device that a name stands for, a GPU with its number. Raises InputError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cpu" and (gpu := gpu_here()):
            _say_unused(gpu)
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} sees no Metal device. Use --device auto or cpu.")
    if kind != "cuda":
        return torch.device(kind)
    if not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} sees no CUDA device. Use --device auto or cpu.")
    gpus, processes = torch.cuda.device_count(), distributed.local_size()
    if number and processes > 1:
        raise InputError(
            f"--device {name}: {processes} processes need a GPU each. Use --device cuda; "
            "CUDA_VISIBLE_DEVICES says which."
        )
    if processes > gpus:
        raise InputError(
            f"--device {name}: {processes} processes need a GPU each, there are {gpus}. Use fewer (--nproc), "
            "or --device cpu."
        )
    if number and int(number) >= gpus:
        there = f"there are {gpus} CUDA devices" if gpus > 1 else "there is 1 CUDA device"
        raise InputError(f"--device {name}: {there}, counted from 0. Use --device cuda:{gpus - 1}, or cuda.")
    return torch.device("cuda", int(number) if number else distributed.local_rank())
