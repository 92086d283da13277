"""The probes that can watch a pre-training, by name. No torch."""

from ..errors import InputError

PROBES = ("joint", "frozen", "knn")


def probe_names(text, alpha):
    """Those of PROBES that "all", "none" or a list name; joint is always one where alpha is not 0. Raises InputError."""
    typed = {"all": list(PROBES), "none": []}.get(text, text.replace(",", " ").split())
    for name in typed:
        if name not in PROBES:
            raise InputError(f"--probes {text}: {name} is unknown. Use all, none, or some of {', '.join(PROBES)}.")
    if not typed and text != "none":
        raise InputError(f"--probes: is empty. Use all, none, or some of {', '.join(PROBES)}.")
    return tuple(name for name in PROBES if name in typed or (name == "joint" and alpha))
