"""The cores of this machine, work dealt to processes forked from this one, how exactly products are made. Needs no torch."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

# How long OpenMP's threads spin before they sleep. Waking takes longer than many an operation of a small model, so with 1,000
# its epochs take a sixth longer; but threads that spin on a CPU with other work to do stand in its way: two runs of as many
# threads as cores side by side are 1.5 times as slow as with 1,000, and 2.6 times with 30,000. libgomp's own is 300,000.
SPIN_COUNT = "10000"
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
