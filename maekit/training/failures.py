"""What can go wrong around a training, told to its user: memory, worker processes, data that is gone."""

import re

from .. import distributed, files
from ..data.workers import MORE_SHARED, SHARED, tell_of_no_dead_worker
from ..errors import Busy, InputError, NothingToDo, Stopped
from ..runs.status import FAILED, read_status


def note(folder, error):
    """Leave in the run folder's status.json that the run failed, and of what."""
    tell_of_no_dead_worker()  # one that dies now is part of the same story
    if isinstance(error, (Stopped, Busy, NothingToDo)) or not distributed.is_main():
        return
    try:
        files.write_json(
            folder.status, {**read_status(folder), "status": FAILED, "error": f"{type(error).__name__}: {error}"[:500]}
        )
    except OSError:
        pass  # the disk, perhaps, is what went wrong


def explained(error, run):
    """The error, or in its place an InputError that says what to do. run: Settings."""
    text = str(error)
    if is_out_of_memory(error):
        return InputError(_out_of_memory(run, text))
    if _DEAD_WORKER.search(text):
        if re.search("shared memory|shm", text):
            return InputError(
                f"--num_workers: {SHARED}, through which worker processes hand their batches on, is full; {MORE_SHARED}. Or "
                "--num_workers 0. The same command goes on from the last checkpoint."
            )
        typed = f" {run.data.num_workers}" if run.data.num_workers else ""
        return InputError(
            f"--num_workers{typed}: a worker process that decodes images has died ({_first_line(text)}). The system kills "
            "processes when memory runs out: lower --num_workers. The same command goes on from the last checkpoint."
        )
    return error


def is_out_of_memory(error):
    """Whether an error says that there is not enough memory."""
    is_its_class = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return is_its_class or bool(_NO_MEMORY.search(str(error)))


# as torch, the system, CUDA and its libraries say it: in a RuntimeError, or in what torch calls an AcceleratorError
_NO_MEMORY = re.compile(
    r"(out of|not enough|allocate) memory|bad_alloc|(CUBLAS|CUDNN|CUSOLVER|CUFFT|NCCL)_\w*ALLOC\w*_FAILED",
    re.IGNORECASE,
)
_DEAD_WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)", re.DOTALL)


def _out_of_memory(run, text):
    batch, accum = run.optim.batch_size, run.optim.accum_iter
    way = (
        f"--batch_size {batch // 2} --accum_iter {accum * 2}, which are the same steps"
        if batch > 1
        else "a smaller --model"
    )
    wanted = re.search(r"Tried to allocate ([\d.]+ \w+)|allocate (\d+) bytes", text)
    size = wanted.group(1) or f"{int(wanted.group(2)) / 2**20:.0f} MiB" if wanted else "some memory"
    return f"--batch_size {batch}: out of memory, {size} more were needed. Try {way}; what was saved before is kept."


def _first_line(text):
    return text.strip().splitlines()[0].rstrip(".")
