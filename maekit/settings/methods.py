"""Norms and the methods of a comparison: a norm, or one with options in its name, such as DynamicTanh-alpha2.0. No torch."""

import math
import re

from ..errors import InputError
from .recipes import DEFAULTS
from .spelling import spell

# Plain lists, so that flags are checked before torch is imported; the tests hold them equal to the registries.
NORMS = {  # name: alias
    "LayerNorm": "ln",
    "RMSNorm": "rms",
    "DynamicTanh": "dyt",
    "AdaptiveDynamicTanh": "adyt",
    "DynamicErf": "derf",
}


# norm: {constructor option of norms.py: flag}; a flag that is not here for a norm is nothing to it
OPTION_FLAGS = {
    "DynamicTanh": {"alpha_init": "dyt_alpha_init"},
    "AdaptiveDynamicTanh": {
        "lam": "adyt_lambda",
        "smooth": "adyt_smooth",
        "alpha_min": "adyt_alpha_min",
        "alpha_max": "adyt_alpha_max",
    },
}
OPTIONS = {  # norm: {how an option is called in a method's name: flag of train.py}
    "DynamicTanh": {"alpha": "dyt_alpha_init"},
    "AdaptiveDynamicTanh": {
        "lambda": "adyt_lambda",
        "smooth": "adyt_smooth",
        "min": "adyt_alpha_min",
        "max": "adyt_alpha_max",
    },
}


def norm_name(name):
    """Registry name of a norm or alias. Raises InputError."""
    for full, alias in NORMS.items():
        if name in (full, alias):
            return full
    raise InputError(f"--norm {name}: unknown. Choose from {', '.join(NORMS)} (or {', '.join(NORMS.values())}).")


def in_order(names):
    """Names of norms, or of methods (methods.py), in the order of the registry, unknown ones last."""
    known = list(NORMS)

    def place(name):
        norm = name.partition("-")[0]
        numbers = tuple(float(number) for number in re.findall(r"\d+\.?\d*", name))
        return (known.index(norm) if norm in known else len(known), numbers, name)

    return sorted(names, key=place)


def spelled(text):
    """The one spelling of a method: adyt-lambda1e-1 -> AdaptiveDynamicTanh-lambda0.1. Raises InputError."""
    norm, options = parsed(text)
    return named(norm, options)


def parsed(text):
    """(norm, {flag of train.py: value}) of a method. Raises InputError."""
    first, *pieces = text.replace("e-", "e~").split("-")  # a minus sign in an exponent is none between pieces
    norm, options = norm_name(first), {}
    for piece in pieces:
        known = OPTIONS.get(norm, {})
        option = next((o for o in known if piece.startswith(o)), None)
        if option is None:
            way_out = f"{norm}-{next(iter(known))}<value>" if known else f"{norm} without options"
            raise InputError(f"--methods {text}: {piece or 'its end'} is no option of {norm}. Use {way_out}.")
        options[known[option]] = option_value(f"--methods {text}", known[option], piece[len(option) :])
    return norm, options


def option_value(where, flag, text):
    """The number that the text of an option is. Raises InputError, which starts with `where`."""
    try:
        value = float(text.replace("e~", "e-"))
    except ValueError:
        raise InputError(f"{where}: {text or 'nothing'} is not a number.") from None
    if not 0 <= value < math.inf:
        raise InputError(f"{where}: must be finite and not negative.")
    if flag == "adyt_smooth" and value >= 1:
        raise InputError(f"{where}: must be in [0, 1); 1 would never adapt.")
    return value


def named(norm, options):
    """Name of a norm with options {flag: value}; flags that no name has are left out."""
    pieces = [f"-{o}{spell(options[flag])}" for o, flag in OPTIONS.get(norm, {}).items() if flag in options]
    return norm + "".join(pieces)


def vary(methods, flag, values):
    """The methods with every AdaptiveDynamicTanh that has no such option yet once per value. Raises InputError."""
    made = []
    for method in methods:
        norm, options = parsed(method)
        free = flag in OPTIONS.get(norm, {}).values() and flag not in options
        made += [named(norm, {**options, flag: float(value)}) for value in values] if free else [method]
    if made == methods:
        raise InputError(f"--{flag} {' '.join(values)}: no AdaptiveDynamicTanh to vary among the --methods. Add it.")
    return made


def name_runs(found):
    """Give every run of runs.reading.load_runs its "method".

    It is the name of the folder that holds the run's, as run_comparison.sh puts it, if that is true of the run; else,
    and where one name would stand for several options, the norm with the options that are not at their defaults.
    """
    for run in found:
        run["method"] = _folder_name(run) or _own_name(run)
    options = {}
    for run in found:
        options.setdefault(run["method"], set()).add(tuple(_options(run).items()))
    for run in found:
        if len(options[run["method"]]) > 1:
            run["method"] = _own_name(run)


def _folder_name(run):
    for folder in (run["path"].parent.name, run["path"].parent.parent.name):  # of a pre-training, of an evaluation
        try:
            norm, options = parsed(folder)
        except InputError:
            continue
        if norm == run["config"]["identity"]["norm"] and options.items() <= _options(run).items():
            return named(norm, options)
    return None


def _own_name(run):
    return named(run["config"]["identity"]["norm"], {f: v for f, v in _options(run).items() if v != DEFAULTS[f]})


def _options(run):
    """{flag: value} of the options of a run's norm that a name can have."""
    identity = run["config"]["identity"]
    flags = OPTIONS.get(identity["norm"], {}).values()
    return {flag: identity.get(flag, DEFAULTS[flag]) for flag in flags}
