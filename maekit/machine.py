"""The cores, the GPUs and the memory of this machine, work dealt to forked processes, how exactly products are made. Needs no
torch."""

import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

# How long OpenMP's threads spin before they sleep. Waking takes longer than many an operation of a small model, so with 1,000
# its epochs take a sixth longer; but threads that spin on a CPU with other work to do stand in its way: two runs of as many
# threads as cores side by side are 1.5 times as slow as with 1,000, and 2.6 times with 30,000. libgomp's own is 300,000.
SPIN_COUNT = "10000"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt, whose largest values are the two below
_KEPT, _FROM_HEAP = 2**31 - 1, 2**25
_work = None  # in a forked process: (function, items)


def each(function, items):
    """[function(item), ...] on as many processes as there are cores; in this one where forking is not safe (all but Linux).

    Raises what the first of the calls raises.
    """
    items = list(items)
    workers = min(available_cores(), len(items))
    if workers < 2 or sys.platform != "linux":
        return [function(item) for item in items]
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, initializer=_remember, initargs=(function, items)) as pool:
        return list(pool.map(_call, range(len(items))))


def _remember(*work):
    global _work
    _work = work


def _call(number):
    function, items = _work
    return function(items[number])


def available_cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor():
    """Name of this machine's processor, of its kind alone where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def visible_gpus():
    """Names of the NVIDIA GPUs that runs may use, as CUDA_VISIBLE_DEVICES has them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), None)]  # CUDA, too, stops there
    return _nvidia_smi("--query-gpu=index", "--format=csv,noheader").split()


def may_have_gpu():
    """Whether anything here speaks of a GPU, at no cost."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/kfd"))) or shutil.which("nvidia-smi") is not None


def nvidia_driver():
    """Version of the NVIDIA driver, such as "550.54.15"; "" where nvidia-smi finds none."""
    version = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0].strip()
    return version if re.match(r"\d+\.", version) else ""


def compute_capabilities():
    """Of each NVIDIA GPU, as (7, 5); empty where nvidia-smi does not know them: drivers below 510."""
    found = _nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader").split()
    return [tuple(map(int, one.split("."))) for one in found if re.fullmatch(r"\d+\.\d+", one)]


def gpu_here():
    """What GPU this machine has, by its driver, whether torch can use it or not; None if there is none, or it is hidden."""
    names = _nvidia_smi("--query-gpu=index,uuid", "--format=csv,noheader").replace(",", " ").split()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = chosen is not None and chosen.split(",")[0].strip() not in (names or ["0"])
    if (names or _opens("/dev/nvidia0")) and not hidden:
        driver = nvidia_driver()
        newest = re.search(r"CUDA Version: *([\d.]+)", _nvidia_smi())
        versions = [f"driver {driver}"] if driver else []
        versions += [f"for CUDA up to {newest[1]}"] if newest else []
        return "an NVIDIA GPU" + (f" ({', '.join(versions)})" if versions else "")
    hidden = any(os.environ.get(f"{name}_VISIBLE_DEVICES") in ("", "-1") for name in ("HIP", "ROCR"))
    own_memory = [int(file.read_text()) for file in Path("/sys/class/drm").glob("card*/device/mem_info_vram_total")]
    large = max(own_memory, default=0) >= 6 * 2**30  # that of graphics within a processor is less
    return "an AMD GPU" if large and _opens("/dev/kfd") and not hidden else None


def _opens(device):
    """Whether this process may use a device file: in a container, or a job without a GPU, it may not."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def _nvidia_smi(*words):
    """What nvidia-smi prints; "" where there is none, or it fails."""
    try:
        shown = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.stdout if shown.returncode == 0 else ""


def let_threads_sleep():
    """Have OpenMP's threads spin for SPIN_COUNT, unless the user says otherwise; before torch is imported, which reads it."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_freed_memory():
    """Have glibc keep freed memory for the next step of training, unless the user says otherwise (MALLOC_...).

    It would give much of it back each time, and the system has to clear every page that it hands out again: 5 to 10 % of a
    training step on a CPU. Other C libraries stay as they are.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _FROM_HEAP)


@contextmanager
def matrix_products(precision):
    """In this context torch multiplies matrices of float32 with a precision: "highest" is float32's own, "high" on CUDA
    TF32's; afterwards with the one before."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
