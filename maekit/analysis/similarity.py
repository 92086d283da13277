"""How alike the encoders of a sweep are: linear CKA between the features that its runs left."""

import itertools

import numpy as np

from .. import stats
from ..runs import contents
from ..runs.folder import RunFolder
from ..runs.status import FINISHED
from ..settings import methods
from ..settings.probes import READOUTS
from ..settings.spelling import spell

N_IMAGES = 5000  # validation images that CKA is over, an even choice


def describe(found):
    """Linear CKA between runs of every norm, {norm: {read-out: {"alphas", "cka", "pairs", "same_seed"}}}.

    found: trajectories of trajectories.read_trajectories. cka: (A, A) nested lists, an entry for two alphas: the mean over
    all pairs of runs of different seeds, so that the diagonal, two seeds of one alpha, is the floor: as alike as training
    the same twice makes them. Where there is one seed, pairs are of that one (same_seed) and the diagonal is None. pairs:
    (A, A), how many. Runs of other validation images than the first, or another learning rate or model, are left out.
    """
    described = {}
    for norm in methods.in_order({run["norm"] for run in found}):
        runs = _read([run for run in found if run["norm"] == norm and run["status"] == FINISHED])
        if len({alpha for alpha, _ in runs}) > 1:
            described[norm] = {readout: _matrix(runs, readout) for readout in READOUTS}
    return described


def _read(runs):
    """{(alpha, seed): {read-out: stats.aligned features}} of runs that left some, of the same images."""
    found, first = {}, None
    for run in runs:
        file = RunFolder(run["run"]).features
        if not file.exists():
            continue
        kept = contents.usable(contents.read_features, file)
        if kept is None:
            continue
        first = first or (run, kept["labels"])
        alike = all(run[name] == first[0][name] for name in ("lr", "model", "decoder"))
        if not alike or not np.array_equal(kept["labels"], first[1]):
            continue
        chosen = np.unique(np.linspace(0, len(first[1]) - 1, N_IMAGES).round().astype(int))
        found[run["alpha"], run["seed"]] = {readout: stats.aligned(kept[readout][chosen]) for readout in READOUTS}
    return found


def _matrix(runs, readout):
    alphas = sorted({alpha for alpha, _ in runs})
    same_seed = len({seed for _, seed in runs}) == 1
    found = {}
    for (a, of_a), (b, of_b) in itertools.combinations(sorted(runs.items()), 2):
        if same_seed or a[1] != b[1]:
            pair = tuple(sorted((alphas.index(a[0]), alphas.index(b[0]))))
            found.setdefault(pair, []).append(float(np.linalg.norm(of_a[readout].T @ of_b[readout]) ** 2))
    each = [[found.get(tuple(sorted((i, j))), []) for j in range(len(alphas))] for i in range(len(alphas))]
    return {
        "alphas": [spell(alpha) for alpha in alphas],
        "cka": [[float(np.mean(values)) if values else None for values in row] for row in each],
        "pairs": [[len(values) for values in row] for row in each],
        "same_seed": same_seed,
    }
