"""Several processes that train one model together, as torchrun starts them; where it did not, one process.

A collective (add, gather, agree, on_main) has to be called by all processes, or by none.
"""

import os
import time
import uuid

from .errors import Busy, InputError

# what torchrun tells its processes
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def size():
    """Number of processes."""
    return _number("WORLD_SIZE", "1")


def rank():
    """Number of this process, from 0."""
    return _number("RANK", "0") if size() > 1 else 0


def local_rank():
    """Number of this process on its node, from 0: its GPU."""
    return _number("LOCAL_RANK", "0") if size() > 1 else 0


def local_size():
    """Number of processes on this node."""
    return _number("LOCAL_WORLD_SIZE", "1") if size() > 1 else 1


def _number(name, otherwise):
    text = os.environ.get(name) or otherwise
    if not text.isdecimal():
        raise InputError(
            f"{name}={text}: is no number of a process, as torchrun sets it. unset {name} for one process."
        )
    return int(text)


def is_main():
    """Whether this is the one process that writes and prints."""
    return rank() == 0


def start():
    """Meet the other processes: gloo for tensors on the CPU, NCCL for CUDA. Nothing to do for one process."""
    if size() == 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE={size()} is set, but not {' or '.join(missing)}: another program's, perhaps. unset WORLD_SIZE for one "
            "process; torchrun sets them all for several."
        )
    rank(), local_rank(), local_size()  # are numbers
    import torch

    store, own_rank, processes = next(torch.distributed.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, store=_unused_part(store, own_rank, processes), rank=own_rank, world_size=processes
    )


def _unused_part(store, own_rank, processes):
    """The part of a store that this start of the processes has to itself, the same in all of them.

    torchrun --max-restarts gives the processes that it starts again the store of those before them, where the addresses of
    the dead still stand; its count of restarts differs between nodes. So process 0 makes a name up and tells it to each
    other process, which asks with a name of its own: an answer to an earlier one is never read.
    """
    import torch

    name = uuid.uuid4().hex
    if own_rank:
        store.set(f"asking/{own_rank}", name)
        name = store.get(f"answer/{name}").decode()  # waits for it
        store.set(f"heard/{name}/{own_rank}", "yes")
        return torch.distributed.PrefixStore(name, store)
    missing, deadline = set(range(1, processes)), time.monotonic() + store.timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"asking/{other}"]):
                store.set(f"answer/{store.get(f'asking/{other}').decode()}", name)
            if store.check([f"heard/{name}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} of {processes} did not come within {store.timeout}")
        time.sleep(0.01)
    return torch.distributed.PrefixStore(name, store)


def stop():
    """Part from the other processes."""
    if size() > 1:
        import torch

        torch.distributed.destroy_process_group()


def say(text, file=None):
    """Print, in the main process."""
    if is_main():
        print(text, file=file, flush=True)


def on_main(function):
    """What a function without arguments returns in the main process, in all of them; so for what it raises of errors.

    They part before they raise: a process that ends with gloo's threads still running is at times aborted.
    """
    if size() == 1:
        return function()
    import torch

    box = [None, None]
    if is_main():
        try:
            box[0] = function()
        except (InputError, Busy) as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box)
    if box[1] is not None:
        stop()
        raise box[1]
    return box[0]


def add(tensor):
    """The sum of a tensor over the processes, in place."""
    if size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def agree(number):
    """The largest of the processes' whole numbers; on the CPU, so that no GPU is waited for."""
    if size() == 1:
        return number
    import torch

    box = torch.tensor(number)
    torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
    return int(box)


def gather(tensor):
    """The processes' tensors (n, ...), n equal in all, after each other in the order of ranks: (n x processes, ...)."""
    if size() == 1:
        return tensor
    import torch

    parts = [torch.empty_like(tensor) for _ in range(size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_interleaved(tensor, total):
    """The processes' tensors (n, ...) of items rank, rank + processes, ... of `total` items, as (total, ...) in order."""
    if size() == 1:
        return tensor
    import torch

    longest = -(-total // size())
    padded = torch.zeros(longest, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    padded[: len(tensor)] = tensor
    together = gather(padded).view(size(), longest, *tensor.shape[1:])
    return together.transpose(0, 1).reshape(size() * longest, *tensor.shape[1:])[:total]


def restarted():
    """Whether a cluster or torchrun has started this run again by itself."""
    return any(int(os.environ.get(name, "0")) for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
