"""Where a run computes and in which precision."""

import platform
import sys
from contextlib import nullcontext

import torch

from .errors import InputError


class Device:
    """A torch device with the run's precision: its autocast context, its GradScaler, its peak memory.

    name: auto (CUDA, then MPS, then CPU), cpu, mps, cuda, cuda:N. precision: auto is float32 on CPU and MPS, on CUDA
    bfloat16 where supported, else float16. Raises InputError when the device is not there.
    """

    def __init__(self, name, precision):
        self.torch = torch.device(_choose(name))
        kind = self.torch.type
        if kind == "cuda":
            torch.cuda.set_device(self.torch)
        if precision == "auto":
            precision = "float32" if kind != "cuda" else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self.precision = precision
        if kind == "cuda" and precision == "float32":
            torch.set_float32_matmul_precision("high")  # TF32: 10 bits of mantissa, ten times the speed
        self.sum_dtype = torch.float32 if kind == "mps" else torch.float64  # of sums over thousands of losses
        self.scaler = torch.amp.GradScaler(kind, enabled=precision == "float16")

    def autocast(self):
        """Context of forward passes."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch.type, dtype=getattr(torch, self.precision))

    def describe(self):
        """Name of the hardware, for config.json."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name(self.torch)
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"

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


def _choose(name):
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"--device {name}: torch {torch.__version__} sees no CUDA device. Use --device auto or cpu."
            )
        if number and int(number) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {name}: torch {torch.__version__} sees no Metal device. Use --device auto or cpu.")
    return name
