"""The cores and the memory of this machine, work dealt to forked processes, how exactly products are made. Needs no torch."""

import ctypes
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

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
