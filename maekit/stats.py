"""Statistics as functions of arrays: intervals and paired differences over seeds, how fast a loss falls, and a sweep's
gap Γ with its interval, noise floor and rank correlations.

A point is one epoch of one run: its validation MSE and its accuracy in percent. All that is returned is plain Python,
ready for JSON.
"""

import math

import numpy as np

# how bins are cut, the fewest points that count, and whether the largest MSE does; the original gap scripts had two rules
BINNINGS = {
    "equal": ("equal", 2, True),
    "quantile": ("quantile", 2, True),
    "original-figure": ("equal", 4, False),
    "original-json": ("quantile", 2, False),
}
MIN_SEEDS = 3  # Student's t over fewer values says next to nothing: at two, its factor is 12.7


def bin_edges(mse, n_bins=15, binning="equal"):
    """Strictly increasing edges of MSE bins: of equal width over [min, max], or quantiles with as many points each.

    mse: (N,). Returns (n_bins + 1,) float64, the smallest and the largest MSE at its ends. Edges that coincide are
    merged, as quantiles of repeated values do, so there may be fewer. Raises ValueError if n_bins is below 1, binning
    is none of BINNINGS, mse is empty or not finite, or holds fewer than two distinct values.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins {n_bins}: needs 1 or more.")
    if binning not in BINNINGS:
        raise ValueError(f"binning {binning!r}: needs one of {', '.join(BINNINGS)}.")
    mse = _points("mse", mse)
    low, high = mse.min(), mse.max()
    if low == high:
        raise ValueError(f"mse: {mse.size} points with 1 distinct value, {low:g}; bins need two.")
    if BINNINGS[binning][0] == "equal":
        return np.unique(np.linspace(low, high, n_bins + 1))
    return np.unique(np.quantile(mse, np.linspace(0, 1, n_bins + 1)))


def gap(mse, accuracy, n_bins=15, binning="equal", edges=None):
    """The gap Γ: max - min of the accuracy at equal MSE, summed over the MSE bins that hold at least 2 points.

    mse: (N,); accuracy: (N,), percent. Bins are half-open, [edge, next edge), and the last one is closed, so that the
    largest MSE counts; see BINNINGS for the original scripts' rules. edges: (B + 1,) strictly increasing, in place of those
    of `bin_edges`.

    Returns (gamma, bins): gamma in percentage points, 0.0 if no bin holds 2 points, and a dict for each bin that does:
    bin_index from 0, mse_min and mse_max (the bin's edges), n_points, acc_min, acc_max, acc_spread (max - min),
    acc_mean, acc_std (of the population, ddof 0) and acc_spread_5_95 (95th - 5th percentile, linear interpolation).
    Γ grows with the number of points: two are comparable only at equal numbers of runs.

    Raises ValueError for arrays that are empty, not finite or of unequal length, for a point outside given edges, and
    for what `bin_edges` refuses.
    """
    mse, accuracy = _pairs(mse, accuracy)
    edges = bin_edges(mse, n_bins, binning) if edges is None else _edges(edges, mse)
    _, least, closed = BINNINGS[binning]
    if not closed:
        mse, accuracy = mse[mse < edges[-1]], accuracy[mse < edges[-1]]
        if not mse.size:
            return 0.0, []

    last = edges.size - 2
    index = np.minimum(np.searchsorted(edges, mse, side="right") - 1, last)  # the last edge belongs to the last bin
    order = np.argsort(index, kind="stable")
    occupied, starts = np.unique(index[order], return_index=True)
    bins = []
    for i, inside in zip(occupied.tolist(), np.split(accuracy[order], starts[1:]), strict=True):
        if inside.size < least:
            continue
        low, high = inside.min(), inside.max()
        p5, p95 = np.percentile(inside, (5, 95))
        bins.append(
            {
                "bin_index": i,
                "mse_min": float(edges[i]),
                "mse_max": float(edges[i + 1]),
                "n_points": inside.size,
                "acc_min": float(low),
                "acc_max": float(high),
                "acc_spread": float(high - low),
                "acc_mean": float(inside.mean()),
                "acc_std": float(inside.std()),
                "acc_spread_5_95": float(p95 - p5),
            }
        )
    return math.fsum(b["acc_spread"] for b in bins), bins


def gap_percentile(bins):
    """Γ with 5th and 95th percentile in place of min and max: percentage points, from the bins that `gap` returns."""
    return math.fsum(b["acc_spread_5_95"] for b in bins)


def spearman(x, y):
    """Spearman's rank correlation as {"spearman_r", "p_value"}; both None below 3 points or if an array is constant.

    x, y: (N,). The two-sided p-value is scipy's, from Student's t: it takes points for independent, which the epochs of
    a run are not, and is rough below some 10 points (3 in perfect order give 0). Raises ValueError for arrays that are
    not finite or of unequal length.
    """
    x, y = _points("x", x, least=0), _points("y", y, least=0)
    if x.size != y.size:
        raise ValueError(f"y: {y.size} values for {x.size} of x.")
    if x.size < 3 or x.min() == x.max() or y.min() == y.max():
        return {"spearman_r": None, "p_value": None}
    from scipy.stats import spearmanr

    r, p = spearmanr(x, y)
    return {"spearman_r": float(r), "p_value": float(p)}


def t_interval(values, level=0.95):
    """Mean of one value per seed and Student's t interval for its expectation: {"mean", "low", "high", "n", "note"}.

    values: (n,). Below 3 values low and high are None, and note says so in words; else note is None. Raises ValueError
    for values that are empty or not finite and for a level outside (0, 1).
    """
    values = _points("values", values)
    if not 0 < level < 1:
        raise ValueError(f"level {level}: needs to lie between 0 and 1, 0.95 say.")
    mean, n = float(values.mean()), values.size
    if n < MIN_SEEDS:
        note = f"{n} seed{'s' * (n != 1)}, so no interval; it takes {MIN_SEEDS}"
        return {"mean": mean, "low": None, "high": None, "n": n, "note": note}
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "note": None}


def paired(values, reference):
    """Differences to a reference with the same seed: {"differences", "mean", "low", "high", "n", "note"}.

    values, reference: {seed: number}. Seeds that only one of them has do not count. differences is {seed: value -
    reference}, the rest that of `t_interval` for them; without a seed in common mean is None, too. Raises ValueError
    for numbers that are not finite.
    """
    differences = {seed: float(values[seed] - reference[seed]) for seed in sorted(values) if seed in reference}
    if not differences:
        nothing = {"mean": None, "low": None, "high": None, "n": 0, "note": "no difference: no seed in common"}
        return {"differences": {}, **nothing}
    return {"differences": differences, **t_interval(list(differences.values()))}


def reached(losses, seconds, target):
    """When a loss first was no higher than a target: (epochs, seconds) since the start, None if it never was.

    losses: (E,), after each epoch; seconds: (E,), what each took. Raises ValueError if their lengths differ or a value
    is not finite.
    """
    losses, seconds = _points("losses", losses), _points("seconds", seconds)
    if losses.size != seconds.size:
        raise ValueError(f"seconds: {seconds.size} values for {losses.size} of losses.")
    below = np.flatnonzero(losses <= target)
    return (int(below[0]) + 1, float(seconds[: below[0] + 1].sum())) if below.size else None


def gap_over_seeds(mse, accuracy, seed, edges, binning="equal"):
    """Γ of each seed's own sweep in the same bins, and the 95 % interval of their mean.

    mse, accuracy (percent), seed: (N,); edges: (B + 1,), those of all points. Returns the dict of `t_interval` with
    "values" before it, {seed: Γ in percentage points} in the seeds' order. The mean is that of Γ at the size of one
    seed's sweep, so it is below the Γ of all points pooled. note says why there is no interval (bootstrapping runs is
    no way out: a resample never reaches beyond the range it came from), and where the seeds differ in their number of
    points, which leaves their Γ hard to compare. Raises ValueError as `gap`, and for a seed that is nan.
    """
    mse, accuracy = _pairs(mse, accuracy)
    sweeps = dict(sorted(_rows(_labels("seed", seed, mse.size)).items()))
    values = {s: gap(mse[rows], accuracy[rows], binning=binning, edges=edges)[0] for s, rows in sweeps.items()}
    result = {"values": values, **t_interval(list(values.values()))}
    notes = [result["note"]] if result["note"] else []
    sizes = [len(rows) for rows in sweeps.values()]
    if min(sizes) < max(sizes):
        notes.append(f"seeds hold {min(sizes)} to {max(sizes)} points, and Γ grows with their number")
    return {**result, "note": "; ".join(notes) or None}


def noise_floor(mse, accuracy, configuration, seed, edges, binning="equal"):
    """What Γ comes to where only the seed changes: Γ of one configuration's runs, pooled over its seeds, same bins.

    mse, accuracy (percent), seed: (N,); configuration: (N,) ids or tuples, or (N, K), everything but the seed that
    sets a run apart, (alpha, lr, norm, model) say; edges: (B + 1,), those of the sweep that the floor is held against.

    Returns, over the n configurations with at least 2 seeds, {"mean", "largest", "one_run", "n", "note"}: mean and
    largest Γ of a configuration, and one_run, the mean Γ of each of their runs alone; percentage points. With no such
    configuration the three are None, n is 0 and note says why; else note is None.

    Limits. A run's own movement over epochs inside a bin counts, as it does in the sweep's Γ; one_run says how
    much that is by itself, and what mean has beyond it came with further seeds. A configuration has fewer runs than
    the sweep and visits fewer bins, so the floor is biased low: a Γ that stays below it shows no effect of alpha, but
    one above it may be noise all the same. Raises ValueError as `gap`, and for a seed or configuration that is nan.
    """
    mse, accuracy = _pairs(mse, accuracy)
    seeds, configurations = _labels("seed", seed, mse.size), _labels("configuration", configuration, mse.size)
    pooled, alone = [], []
    for rows in _rows(configurations).values():
        runs = [rows[run] for run in _rows([seeds[row] for row in rows]).values()]
        if len(runs) >= 2:
            pooled.append(gap(mse[rows], accuracy[rows], binning=binning, edges=edges)[0])
            alone += [gap(mse[run], accuracy[run], binning=binning, edges=edges)[0] for run in runs]
    if not pooled:
        note = "no configuration has 2 seeds, so no noise floor"
        return {"mean": None, "largest": None, "one_run": None, "n": 0, "note": note}
    mean, one_run = math.fsum(pooled) / len(pooled), math.fsum(alone) / len(alone)
    return {"mean": mean, "largest": max(pooled), "one_run": one_run, "n": len(pooled), "note": None}


def _points(name, values, least=1):
    """Values as a 1-D float64 array, all finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < least:
        raise ValueError(f"{name}: needs a row of {least} values or more, got shape {values.shape}.")
    if not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}: value {i} of {values.size} is {values[i]}; leave such points out.")
    return values


def _pairs(mse, accuracy):
    mse, accuracy = _points("mse", mse), _points("accuracy", accuracy)
    if mse.size != accuracy.size:
        raise ValueError(f"accuracy: {accuracy.size} values for {mse.size} of mse.")
    return mse, accuracy


def _edges(edges, mse):
    """Given edges as an array, strictly increasing and with every point inside."""
    edges = _points("edges", edges, least=2)
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"edges: need to increase strictly, got {edges.tolist()}.")
    outside = mse[(mse < edges[0]) | (mse > edges[-1])]
    if outside.size:
        raise ValueError(f"edges: {edges[0]:g} to {edges[-1]:g} leave out {outside.size} points, mse {outside[0]:g}.")
    return edges


def _labels(name, labels, size):
    """Labels as a list of hashable values; the rows of a 2-D array become tuples."""
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    labels = [tuple(label) if isinstance(label, list) else label for label in labels]
    if len(labels) != size:
        raise ValueError(f"{name}: {len(labels)} values for {size} of mse.")
    for i, label in enumerate(labels):
        parts = label if isinstance(label, tuple) else (label,)
        if any(isinstance(part, float) and math.isnan(part) for part in parts):
            raise ValueError(f"{name}: value {i} of {size} is {label}; every point needs one.")
    return labels


def _rows(labels):
    """{label: array of its rows}, in the order of their first rows."""
    rows = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    return {label: np.array(those) for label, those in rows.items()}


def accuracy_at(mse, accuracy, target):
    """A run's accuracy when its MSE first fell to a target, linear between its epochs; None if it never did or began below.

    mse, accuracy: (E,), after each epoch.
    """
    mse, accuracy = _pairs(mse, accuracy)
    below = np.flatnonzero(mse <= target)
    if not below.size or (below[0] == 0 and mse[0] < target):
        return None
    i = int(below[0])
    if i == 0:
        return float(accuracy[0])
    share = (mse[i - 1] - target) / (mse[i - 1] - mse[i])
    return float(accuracy[i - 1] + share * (accuracy[i] - accuracy[i - 1]))


def common_range(losses):
    """(low, high) of the MSE that all runs pass on their way down, None if there is none. losses: arrays (E,), one a run."""
    low, high = max(float(np.min(mse)) for mse in losses), min(float(mse[0]) for mse in losses)
    return (low, high) if low < high else None


def matched(runs, reference, within=None, n_targets=21):
    """Accuracy at equal MSE, less that of a reference, paired by seed: {"mse_range", **paired}.

    runs, reference: {seed: (mse, accuracy)}, arrays (E,) after each epoch. Of each seed in both the difference is the mean
    over targets evenly spread over the range of MSE that all these runs pass on their way down, or over `within`, a part of
    it; see `accuracy_at`. Without a seed in common, or such a range, mean is None and note says why.
    """
    seeds = sorted(runs.keys() & reference.keys())
    reach = within or (common_range([part[seed][0] for seed in seeds for part in (runs, reference)]) if seeds else None)
    if reach is None or not seeds:
        note = "no range of MSE that all these runs pass" if seeds else "no seed in common"
        nothing = {"mean": None, "low": None, "high": None, "n": 0, "note": f"no difference: {note}"}
        return {"mse_range": None, "differences": {}, **nothing}
    targets = np.linspace(*reach, n_targets)
    means = [
        {seed: float(np.mean([accuracy_at(*part[seed], target) for target in targets])) for seed in seeds}
        for part in (runs, reference)
    ]
    return {"mse_range": list(reach), **paired(*means)}


def at_once(values, level=0.95):
    """Student's t intervals that all hold together in `level` of all experiments: {name: t_interval}.

    values: {name: one number per seed}. By Bonferroni's correction, so that neither equal variances nor independence is
    assumed. A name of fewer than 3 seeds has no interval and does not count.
    """
    several = sum(len(of) >= MIN_SEEDS for of in values.values())
    return {name: t_interval(of, 1 - (1 - level) / max(1, several)) for name, of in values.items()}


def cka(x, y):
    """Linear CKA (arXiv 1905.00414) of two encoders' features of the same images, (N, D) and (N, E): 0 to 1.

    1 where one is the other turned, mirrored and scaled. Raises ValueError for unequal numbers of images.
    """
    x, y = aligned(x), aligned(y)
    if len(x) != len(y):
        raise ValueError(f"y: features of {len(y)} images for {len(x)} of x.")
    return float(np.linalg.norm(x.T @ y) ** 2)


def aligned(x):
    """Features (N, D), centred and scaled so that the CKA of two such is the squared norm of their product x.T @ y."""
    x = np.asarray(x, dtype=float)
    x = x - x.mean(axis=0)
    scale = np.linalg.norm(x.T @ x)
    return x / np.sqrt(scale) if scale else x
