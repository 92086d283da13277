"""What values of flags are legal: functions of a value that say what is wrong with it, None if nothing is. No torch."""

import math
import re
from pathlib import Path

from .architectures import MODELS, architecture


def one_of(*values):
    """Legal are these values alone."""
    return lambda value: None if value in values else f"unknown. Choose from {', '.join(values)}."


def positive(value):
    return None if 0 < value < math.inf else "must be positive."


def positive_or_all(value):
    return None if value == "all" else positive(value)


def not_negative(value):
    return None if 0 <= value < math.inf else "must not be negative."


def share(value):
    return None if 0 <= value < 1 else "must be in [0, 1)."


def inside(value):
    return None if 0 < value < 1 else "must be between 0 and 1, both excluded."


def finite(value):
    return None if math.isfinite(value) else "must be finite."


def seed(value):
    return not_negative(value) or (None if value < 2**63 else "must be below 2**63.")


def device(value):
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)
    return None if known else "unknown. Choose from auto, cpu, cuda, cuda:N, mps."


def cache(value):
    return "is a file. Use auto, off, or a folder." if Path(value).is_file() else None


def model(value):
    return _wrong(value, None)


def decoder(value):
    return _wrong(next(iter(MODELS)), value)


def _wrong(*names):
    try:
        architecture(*names)
    except ValueError as error:
        return str(error)
