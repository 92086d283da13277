"""Several processes that train one model together, as torchrun starts them; where it did not, one process.

A collective (add, gather, agree, on_main) has to be called by all processes, or by none.
"""

import os

from .errors import Busy, InputError


def size():
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank():
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank():
    """Number of this process on its node, from 0: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main():
    """Whether this is the one process that writes and prints."""
    return rank() == 0


def start():
    """Meet the other processes: gloo for tensors on the CPU, NCCL for CUDA. Nothing to do for one process."""
    if size() == 1:
        return
    import torch

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)


def stop():
    """Part from the other processes."""
    if size() > 1:
        import torch

        torch.distributed.destroy_process_group()


def say(text):
    """Print, in the main process."""
    if is_main():
        print(text, flush=True)


def on_main(function):
    """What a function without arguments returns in the main process, in all of them; so for what it raises of errors."""
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
