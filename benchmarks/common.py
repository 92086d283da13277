"""What the benchmarks share: the machine's name, timing of several things in turn, tables and JSON files."""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
_ENVIRONMENT = dict(os.environ)


def parser(description):
    """Flags that every benchmark has."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", metavar="FILE", help="write the table there, with the machine's name")
    p.add_argument("--device", default="auto", help="auto (CUDA, else CPU), cuda, cpu")
    p.add_argument("--threads", type=int, help="CPU threads; default: as torch has them")
    return p


def set_up(args, as_train=False):
    """The torch device of the flags. as_train: with this process's threads and memory as train.py has them."""
    if as_train:
        from maekit import machine

        machine.let_threads_sleep()
        machine.keep_freed_memory()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"error: --device {name}: torch {torch.__version__} sees no CUDA device. Use --device cpu.")
    return torch.device(name)


class Apart:
    """The function of no arguments that make(*args) returns, called in a process of its own, as the system starts one."""

    def __init__(self, make, *args):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, _ENVIRONMENT, make, args), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self):
        self.pipe.send(None)
        self.pipe.recv()


def _serve(pipe, environment, make, args):
    os.environ.clear()
    os.environ.update(environment)
    function = make(*args)
    try:
        while True:
            pipe.recv()
            function()
            pipe.send(None)
    except EOFError:  # nobody will call any more
        pass


def machine_of(device):
    """Hardware and versions that a number belongs to."""
    import torch

    from maekit import machine

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "machine": gpu or f"{machine.processor()}, {torch.get_num_threads()} threads",
        "processor": machine.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def in_turn(functions, device, seconds=2.0, least=5):
    """Seconds a call of each of {name: function}, called in turn so that a machine's moods meet all of them alike.

    Returns {name: median over the rounds}; at least `least` rounds after one that does not count, and about `seconds`
    for each function.
    """
    for function in functions.values():
        function()
    _wait(device)
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name, function in functions.items():
            _wait(device)
            started = time.perf_counter()
            function()
            _wait(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _wait(device):
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def report(name, rows, args, device, **more):
    """Print rows, dicts of equal keys, as a table; write {benchmark, machine..., rows, ...} where --json says."""
    found = {"benchmark": name, **machine_of(device), **more}
    print(f"{name}: {found['machine']}, torch {found['torch']}" + "".join(f", {k} {v}" for k, v in more.items()))
    print(table(rows))
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n")


def table(rows):
    """Rows as Markdown."""
    names = list(rows[0])
    cells = [names, *([_spell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _spell(value):
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
