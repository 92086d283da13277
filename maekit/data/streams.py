"""Independent random streams, each decided by its name and a key, never by the global stream."""

import random
from contextlib import contextmanager

import numpy as np
import torch

# Independent random streams; the tag comes first, because numpy fills short keys up with zeros.
ORDER, CROP, VAL_MASK, REPLACEMENT, AUGMENTATION, MIXING, DROPPING = range(1, 8)


def generator(stream, *key):
    return np.random.default_rng((stream, *key))


def seed_of(stream, *key):
    """A 32-bit seed for what takes nothing else; `stream`: MIXING or DROPPING."""
    return int(np.random.SeedSequence((stream, *key)).generate_state(1)[0])


@contextmanager
def seeded(stream, *key):
    """Python's, numpy's and torch's global random streams (the CPU's) from a seed; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(stream, *key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
