"""Less time, or less memory, for the same steps: torch.compile, CUDA graphs, activation checkpointing."""

import shutil
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from .. import distributed
from ..errors import InputError
from . import one_pass

WORTH_FLOPS = 3e15  # a run of less is over before compiling has paid: some seconds, of which it saves a quarter
WORTH_CAPTURE = 50  # steps: of a shorter run a CUDA graph saves less than it takes to make
_GRAPHS = (
    256  # versions of a block: of training and validation, encoder and decoder, of all norms that a process trains
)


def compile_for(network, run, device, steps):
    """Compile the transformer blocks of a network in place as --compile asks; `steps`: optimizer steps of the run.

    Block by block, because all blocks of a kind are one piece of compiled code, which takes seconds where the whole model
    takes a minute. Parameters and their names stay. What is compiled lies in torch's own cache, which the runs of a
    sweep share. Returns whether it is compiled. Raises InputError if "on" cannot be.
    """
    if run.compile == "off" or (run.compile == "auto" and not _pays(network, run, device, steps)):
        return False
    if run.compile == "on" and device.torch.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise InputError("--compile on: there is no C++ compiler here, which torch.compile needs on a CPU. Use off.")
    try:
        try_out(device.torch)
    except Exception as error:  # no Triton, no headers, a GPU that it does not know: its errors have no class
        problem = f"--compile {run.compile}: torch.compile does not work here ({first_line(error)})"
        if run.compile == "on":
            raise InputError(f"{problem}. Use auto or off.") from error
        distributed.say(f"{problem}; goes on without.")
        return False
    compile_blocks(network, suppress_errors=run.compile == "auto")
    return True


def try_out(device):
    """Compile next to nothing and run it. Raises what torch.compile raises where it does not work."""
    torch._dynamo.config.suppress_errors = False
    torch.compile(torch.nn.functional.gelu, dynamic=False)(torch.ones(8, device=device))


def first_line(error):
    """What an error says first, without its class if it says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def compile_blocks(network, suppress_errors=False):
    """Compile each block of a network; suppress_errors: go on without where Triton or a C compiler is missing."""
    config = torch._dynamo.config
    config.suppress_errors = suppress_errors
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    setattr(config, name, max(_GRAPHS, getattr(config, name)))
    for block in blocks_of(network):
        block.compile(dynamic=False)
    if hasattr(network, "forward_loss"):  # many small operations on whole images
        network.forward_loss = torch.compile(network.forward_loss, dynamic=False)


def blocks_of(network):
    """The transformer blocks of a masked autoencoder or a classifier, encoder first."""
    return [block for name in ("blocks", "decoder_blocks") for block in getattr(network, name, ())]


def _pays(network, run, device, steps):
    if device.torch.type != "cuda":
        return False
    images = steps * run.optim.batch_size * run.optim.accum_iter
    return images * flops_per_image(network, run.model.patches) >= WORTH_FLOPS


def flops_per_image(network, patches):
    """Of a forward and a backward pass over all patches, attention left out: six a parameter and token."""
    return 6 * patches * sum(p.numel() for block in blocks_of(network) for p in block.parameters())


@contextmanager
def eagerly(compiled):
    """In this context compiled blocks run as they are written: for batches of sizes that come once, not worth compiling."""
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def captures(run, device, steps):
    """Whether the steps of a run are worth a CUDA graph, and can be one."""
    optim = run.optim
    return (
        device.torch.type == "cuda"
        and run.compile != "off"
        and steps >= WORTH_CAPTURE
        and optim.accum_iter == optim.processes == 1  # gradients that add up would lie in the graph's memory
        and not run.grad_checkpointing  # which looks at the state of random numbers
    )


class Captured:
    """A function of tensors whose kernels are launched at once, as one CUDA graph.

    function: of `inputs`, with results in tensors of its own making, into which each call puts new values. parameters: whose
    gradients it makes, where they have none before; a call gives them theirs, new ones in the same memory.
    """

    def __init__(self, function, inputs, parameters=()):
        parameters = list(parameters)
        self.inputs = [tensor.clone() for tensor in inputs]
        aside = (
            torch.cuda.Stream()
        )  # what is compiled, tuned or made on first calls, on a stream of its own as captures want it
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                function(*self.inputs)
                for parameter in parameters:
                    parameter.grad = None
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # of this thread alone: another one copies batches meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.results = function(*self.inputs)
        self.gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]

    def __call__(self, *inputs):
        for own, new in zip(self.inputs, inputs):
            own.copy_(new, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.results


def recompute_activations(model):
    """Let each transformer block keep its input alone and compute its activations again in the backward pass."""
    for block in blocks_of(model):
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward, x):
    return checkpoint(forward, x, use_reentrant=False) if torch.is_grad_enabled() else forward(x)


def fuse_norms(norms, device):
    """Norm layers of the module norms in one pass each way, on a CPU and on CUDA; there with torch's own kernels where Triton
    does not work, which is said."""
    norms.FUSED["cpu"] = one_pass.CPU
    if device.type != "cuda":
        return
    try:
        from . import kernels

        kernels.try_out(device)
    except Exception as error:  # noqa: BLE001 - no Triton, no C compiler for it, a GPU that it does not know: its errors have no class
        distributed.say(f"norm layers: torch's own kernels, as Triton does not work here ({first_line(error)}).")
    else:
        norms.FUSED["cuda"] = kernels.CUDA
