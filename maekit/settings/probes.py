"""The tables of probes and of read-outs: what can watch a pre-training, what it reads, and the columns its accuracies are in.
No torch."""

from dataclasses import dataclass

from ..errors import InputError
from .tasks import FINETUNE, KNN, LINPROBE

CLS, MEAN, ATTENTIVE = "cls", "mean", "attentive"
READOUTS = {CLS: "CLS", MEAN: "mean of patches"}  # what is read of an encoder's tokens, and how figures say it
LABELS = {**READOUTS, ATTENTIVE: "attentive"}
OF_TASKS = {
    FINETUNE: (MEAN, CLS),
    LINPROBE: (CLS, MEAN, ATTENTIVE),
    KNN: (CLS, MEAN),
}  # of evaluations, upstream's first


@dataclass(frozen=True)
class Probe:
    """home: module and class, see maekit.probes.probe.open_probes. column: of its accuracy in percent by the CLS token, None if
    it says something else; untrained: of the accuracy of the encoder of the same seed before any training. label: on axes and in
    tables."""

    home: str
    column: str | None = None
    untrained: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """What a probe says by one read-out. name: frozen, frozen_mean, as analysis.py and the names of figures have it."""

    name: str
    probe: str
    readout: str
    column: str
    untrained: str
    label: str


PROBES = {
    "joint": Probe("maekit.probes.joint:JointProbe", "accuracy", "untrained_frozen_accuracy", "joint probe"),
    "frozen": Probe(
        "maekit.probes.frozen:FrozenProbes", "frozen_accuracy", "untrained_frozen_accuracy", "frozen probe"
    ),
    "knn": Probe("maekit.probes.knn:NearestNeighbours", "knn_accuracy", "untrained_knn_accuracy", "k-NN"),
    "representation": Probe("maekit.probes.representation:Representation"),
}


def _accuracy(name, readout):
    probe = PROBES[name]
    if readout == CLS:
        return Accuracy(name, name, readout, probe.column, probe.untrained, probe.label)
    untrained = probe.untrained.replace("_accuracy", f"_{readout}_accuracy")
    column = f"{name}_{readout}_accuracy"
    return Accuracy(f"{name}_{readout}", name, readout, column, untrained, f"{probe.label}, {READOUTS[readout]}")


OUTPUT, ALL = "output", "all"  # --layers: the encoder's output, and every block's as well


def evaluation_name(task, readout):
    """knn for k-NN by the read-out that is upstream's, knn_mean by another."""
    return task if readout == OF_TASKS[task][0] else f"{task}_{readout}"


# what run_comparison.sh --eval takes, (task, read-out): knn, knn_mean, linprobe_attentive ...
EVALUATIONS = {
    evaluation_name(task, readout): (task, readout) for task, readouts in OF_TASKS.items() for readout in readouts
}
ACCURACIES = {
    a.name: a for readout in READOUTS for name in PROBES if PROBES[name].column for a in [_accuracy(name, readout)]
}


def accuracy_of(probe, readout):
    """The Accuracy of a probe by a read-out."""
    return next(a for a in ACCURACIES.values() if (a.probe, a.readout) == (probe, readout))


def probe_names(text, alpha):
    """Those of PROBES that "all", "none" or a list name; joint is always one where alpha is not 0. Raises InputError."""
    typed = {"all": list(PROBES), "none": []}.get(text, text.replace(",", " ").split())
    for name in typed:
        if name not in PROBES:
            raise InputError(f"--probes {text}: {name} is unknown. Use all, none, or some of {', '.join(PROBES)}.")
    if not typed and text != "none":
        raise InputError(f"--probes: is empty. Use all, none, or some of {', '.join(PROBES)}.")
    return tuple(name for name in PROBES if name in typed or (name == "joint" and alpha))


def readout_names(text, task):
    """Those that a list names, in the order of the table; an evaluation has one. Raises InputError."""
    known, typed = OF_TASKS.get(task, tuple(READOUTS)), text.replace(",", " ").split()
    choice = f"--task {task} has one of {', '.join(known)}" if task in OF_TASKS else f"Choose from {', '.join(known)}"
    for name in typed:
        if name not in known:
            raise InputError(f"--readout {text}: {name} is unknown. {choice}.")
    if not typed:
        raise InputError(f"--readout: is empty. {choice}.")
    if task in OF_TASKS and len(set(typed)) > 1:
        raise InputError(f"--readout {text}: are several. {choice}.")
    return tuple(name for name in known if name in typed)
