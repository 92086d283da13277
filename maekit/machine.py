"""The cores of this machine, and work dealt to processes forked from this one. No torch."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

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
