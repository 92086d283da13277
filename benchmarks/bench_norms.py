#!/usr/bin/env python3
"""Time of each norm, forward and backward, against F.layer_norm, its formula in eager torch, torch.compile and Liger-Kernel.

    python benchmarks/bench_norms.py                     # on a GPU if there is one
    python benchmarks/bench_norms.py --device cpu --threads 2 --widths 768

All variants of a width are timed in turn, on a GPU as CUDA graphs of several passes, so that its time counts and not
Python's. ms: median of a forward and a backward pass, parameters' gradients included. bandwidth: bytes that have to move (x
in, y out; x and the gradient in, the gradient out) over the time, as a share of what a copy reaches here. kept: tensors of
the input's size that autograd keeps.
"""

from functools import partial

from common import in_turn, parser, report, set_up

WIDTHS = (192, 384, 768, 1280)
PASSES = 20  # in a CUDA graph


def main():
    p = parser(__doc__)
    p.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    p.add_argument("--batch", type=int, help="images of 197 tokens; default: 256 on a GPU, 64 on a CPU")
    p.add_argument("--dtype", default=None, help="of the input; default: bfloat16 on a GPU, float32 on a CPU")
    p.add_argument("--seconds", type=float, default=0.5, help="for each variant and width")
    p.add_argument("--no_compile", action="store_true", help="leave torch.compile out, which takes a minute on a CPU")
    args = p.parse_args()
    import torch

    import norms
    from maekit.model import compiling

    device = set_up(args)
    on_gpu = device.type == "cuda"
    dtype = getattr(torch, args.dtype or ("bfloat16" if on_gpu else "float32"))
    batch = args.batch or (256 if on_gpu else 64)
    compiling.fuse_norms(norms, device)
    rows = []
    for width in args.widths:
        x = torch.randn(batch, 197, width, device=device, dtype=dtype)
        grad = torch.randn_like(x)
        variants = list(layers(width, device, dtype, norms, torch, compiled=not args.no_compile))
        steps = {name: step(layer, x, grad, torch) for name, layer in variants}
        into = torch.empty_like(x)
        steps["copy"] = lambda x=x, into=into: into.copy_(x)
        if on_gpu:
            steps = {name: graph_of(function, torch) for name, function in steps.items()}
        passes = PASSES if on_gpu else 1
        seconds = {name: taken / passes for name, taken in in_turn(steps, device, args.seconds).items()}
        copy_rate = 2 * x.nbytes / seconds.pop("copy")
        for name, layer in variants:
            share = 5 * x.nbytes / seconds[name] / copy_rate
            rows.append(
                {
                    "width": width,
                    "norm": name,
                    "ms": 1000 * seconds[name],
                    "of F.layer_norm": seconds[name] / seconds["F.layer_norm"],
                    "bandwidth": f"{share:.0%}",
                    "kept": kept(layer, x, torch),
                }
            )
    report("norms", rows, args, device, shape=f"({batch}, 197, width)", dtype=str(dtype).removeprefix("torch."))


def layers(width, device, dtype, norms, torch, compiled):
    """(name, layer) of everything that is compared."""

    def made(layer):
        return layer(width).to(device, dtype)

    yield "F.layer_norm", made(partial(torch.nn.LayerNorm, eps=1e-6))
    for name in norms.NORMS:
        if name not in ("LayerNorm", "NoNorm"):
            yield name, made(norms.NORMS[name])
    for name in ("DynamicTanh", "DynamicErf"):
        yield f"{name}, formula", Formula(made(norms.NORMS[name]), norms)
        if compiled:
            yield f"{name}, torch.compile", torch.compile(made(norms.NORMS[name]), dynamic=False)
    if device.type == "cuda":
        try:
            from liger_kernel.transformers import LigerDyT
        except ImportError:
            print("liger-kernel is not installed: left out")
        else:
            yield "LigerDyT", made(LigerDyT)


class Formula:
    """The plain formula of a layer, in eager torch."""

    def __init__(self, layer, norms):
        self.layer, self.norms = layer, norms

    def __call__(self, x):
        layer = self.layer
        return self.norms._formula(layer.function, x, layer.alpha, layer.shift, layer.weight, layer.bias)

    def parameters(self):
        return self.layer.parameters()


def step(layer, x, grad, torch):
    """A function that does one forward and one backward pass."""
    x = x.detach().requires_grad_()
    wanted = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), wanted, grad)


def graph_of(function, torch):
    """A function that replays PASSES calls of `function` as one CUDA graph."""
    aside = torch.cuda.Stream()  # what is compiled or tuned on first calls, on a stream of its own as captures want it
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PASSES):
            function()
    return graph.replay


def kept(layer, x, torch):
    """Number of tensors as large as x that autograd keeps for the backward pass."""
    pointers = set()

    def note(t):
        if t.numel() == x.numel():
            pointers.add(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x.detach().requires_grad_())
    return len(pointers)


if __name__ == "__main__":
    main()
