"""What an optimizer goes on with, from a checkpoint: torch takes it as it is, and stumbles over it in the first step."""

import math
import warnings

import torch

_OF_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_SWITCHES = (
    "amsgrad",
    "maximize",
    "capturable",
    "differentiable",
    "decoupled_weight_decay",
)  # which decide the arithmetic


def load(optimizer, state):
    """optimizer.load_state_dict. Raises what that raises, and ValueError for options or moments that are not of its kind."""
    own = [dict(group) for group in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in it
        optimizer.load_state_dict(state)
    for ours, theirs in zip(own, optimizer.param_groups):
        for name in ours.keys() - {"params"}:
            if name not in theirs or not _alike(name, ours[name], theirs[name]):
                raise ValueError(f"{name} is {theirs.get(name, 'not there')!r:.40}, here {ours[name]!r:.40}")
    for parameter, kept in optimizer.state.items():
        if isinstance(optimizer, torch.optim.AdamW) and kept and kept.keys() != _OF_ADAMW:
            raise ValueError(f"has {', '.join(map(str, kept)):.60} of a parameter, here {', '.join(sorted(_OF_ADAMW))}")
        for name, value in kept.items():
            fits = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if name == "step":
                fits = isinstance(value, torch.Tensor) and value.numel() == 1 and value.item() >= 0
            if not fits:
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) and value.dim() else f"{value!r:.40}"
                raise ValueError(f"{name} is {shape} of a parameter that is {tuple(parameter.shape)}")


def _alike(name, ours, theirs):
    """Whether an option can take the place of ours: equal if it decides the arithmetic, else numbers for numbers."""
    if name in _SWITCHES:
        return ours == theirs
    if isinstance(ours, (tuple, list)):
        return (
            isinstance(theirs, (tuple, list))
            and len(ours) == len(theirs)
            and all(_is_number(value) and value < 1 for value in theirs)
        )
    return _is_number(theirs) if _is_number(ours) else theirs is None or isinstance(theirs, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
