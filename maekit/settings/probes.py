"""The table of probes: what can watch a pre-training, and the column that its accuracy is in. No torch."""

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Probe:
    """home: module and class, see maekit.probes.probe.open_probes. column: of its accuracy in percent; baseline: of the accuracy of
    the encoder of the same seed before any training. label: on axes and in tables."""

    home: str
    column: str
    baseline: str
    label: str


PROBES = {
    "joint": Probe("maekit.probes.joint:JointProbe", "accuracy", "untrained_frozen_accuracy", "joint probe"),
    "frozen": Probe(
        "maekit.probes.frozen:FrozenProbes", "frozen_accuracy", "untrained_frozen_accuracy", "frozen probe"
    ),
    "knn": Probe("maekit.probes.knn:NearestNeighbours", "knn_accuracy", "untrained_knn_accuracy", "k-NN"),
}


def probe_names(text, alpha):
    """Those of PROBES that "all", "none" or a list name; joint is always one where alpha is not 0. Raises InputError."""
    typed = {"all": list(PROBES), "none": []}.get(text, text.replace(",", " ").split())
    for name in typed:
        if name not in PROBES:
            raise InputError(f"--probes {text}: {name} is unknown. Use all, none, or some of {', '.join(PROBES)}.")
    if not typed and text != "none":
        raise InputError(f"--probes: is empty. Use all, none, or some of {', '.join(PROBES)}.")
    return tuple(name for name in PROBES if name in typed or (name == "joint" and alpha))
