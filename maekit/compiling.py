"""torch.compile for the training steps of a run, and activation checkpointing: less time, less memory, the same model."""

import shutil
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from .errors import InputError

WORTH_STEPS = 2000  # a run of fewer is over before compiling it, a minute or less, has paid
LAUNCH_BOUND = 128  # images: up to here a GPU waits for its kernels' launches, which CUDA graphs bundle


def compile_for(model, run, device, steps):
    """Compile a model in place as --compile asks; `steps` is how many optimizer steps the run has.

    Parameters and their names stay. What is compiled lies in torch's own cache, which the runs of a sweep share.
    Returns whether it is compiled. Raises InputError if "on" cannot be.
    """
    if run.compile == "off" or (run.compile == "auto" and (device.torch.type != "cuda" or steps < WORTH_STEPS)):
        return False
    if run.compile == "on" and device.torch.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise InputError("--compile on: there is no C++ compiler here, which torch.compile needs on a CPU. Use off.")
    # auto goes on without what cannot be compiled here, where Triton or a C compiler is missing
    torch._dynamo.config.suppress_errors = run.compile == "auto"
    optim = run.optim
    graphs = device.torch.type == "cuda" and optim.batch_size <= LAUNCH_BOUND
    graphs = graphs and optim.accum_iter == optim.processes == 1  # gradients that add up would lie in a graph's memory
    model.compile(dynamic=False, mode="reduce-overhead" if graphs else None)
    return True


def mark_step():
    """Tell torch.compile's CUDA graphs that what the last step made may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()


def recompute_activations(model):
    """Let each transformer block keep its input alone and compute its activations again in the backward pass."""
    for name in ("blocks", "decoder_blocks"):
        for block in getattr(model, name, ()):
            block.forward = partial(_recomputed, block.forward)


def _recomputed(forward, x):
    return checkpoint(forward, x, use_reentrant=False) if torch.is_grad_enabled() else forward(x)
