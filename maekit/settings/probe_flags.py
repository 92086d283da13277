"""The flags of train.py on the classifier beside the autoencoder and on probes. No torch."""

from . import legal
from .flag import Flag
from .label_map import HALF
from .probes import ALL, ATTENTIVE, CLS, MEAN, OF_TASKS, OUTPUT, PROBES, READOUTS
from .tasks import KNN, LINPROBE, PRETRAIN, TASKS

PROBE_FLAGS = (
    Flag(
        "alpha",
        float,
        0.0,
        "loss = reconstruction + alpha x classification; any sign",
        legal=legal.finite,
        decides=(PRETRAIN,),
    ),
    Flag(
        "probes",
        str,
        "none",
        f'accuracies to score: all, none, or some of "{" ".join(PROBES)}"',
        metavar="NAMES",
        decides=(PRETRAIN,),
    ),
    Flag(
        "readout",
        str,
        f"{CLS} {MEAN}",
        f'what the frozen probe and k-NN read of the encoder, some of "{" ".join(READOUTS)}": its CLS token, the mean of its '
        f"patch tokens; an evaluation reads one of them, and {LINPROBE} may have {ATTENTIVE}, one learned query",
        metavar="NAMES",
        tasks={task: readouts[0] for task, readouts in OF_TASKS.items()},
        decides=TASKS,
    ),
    Flag(
        "layers",
        str,
        OUTPUT,
        f"what --task knn reads: {OUTPUT}, the encoder's, or {ALL}, every block's as well",
        metavar="WHICH",
        legal=legal.one_of(OUTPUT, ALL),
        decides=(KNN,),
    ),
    Flag(
        "label_map",
        str,
        None,
        f"labels that training is given in place of the classes, which the other probes still score: a CSV file with class,label, "
        f"where classes without a label have none; or {HALF}, half of the classes",
        metavar="FILE",
        decides=(PRETRAIN,),
    ),
    Flag(
        "joint_readout",
        str,
        CLS,
        "what the joint classifier reads",
        metavar="NAME",
        legal=legal.one_of(*READOUTS),
        decides=(PRETRAIN,),
    ),
    Flag(
        "eval_every",
        int,
        5,
        "epochs between two scores of k-NN, of the representation and of flat activations; the last epoch always has one",
        metavar="N",
        legal=legal.positive,
        decides=(PRETRAIN,),
    ),
)
