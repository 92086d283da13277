"""The reconstruction gap of a sweep: its statistics, its table and its figures, from the trajectories of its runs."""

from pathlib import Path

from .. import files, stats, surroundings
from ..errors import InputError
from ..runs import measures
from ..runs.reading import load_runs
from ..runs.status import DIVERGED, FINISHED
from ..runs.trajectories import read_trajectories, tabulate_points
from ..settings import methods
from ..settings.probes import ACCURACIES, CLS
from ..settings.spelling import spell
from . import evaluations, labelled, matched, similarity

WIDE_SPREAD = 5  # percentage points: bins with more are counted
_NO_GAP = {"reconstruction_gap": None, "n_bins": 0, "bin_statistics": []}


def write(log_dir, output_dir, *, n_bins, binning, accuracy):
    """Analyse every trajectory below log_dir, write all into output_dir, and print the summary.

    accuracy: a key of measures.ACCURACIES, or "all" for those that were measured. Raises InputError if there is
    nothing to analyse, and, with everything else written, if the points have fewer than 2 distinct MSE values.
    """
    log_dir, output_dir = Path(log_dir), Path(output_dir)
    output_dir = (
        output_dir / binning if binning.startswith("original") else output_dir
    )  # beside ours, never in its place
    found, runs, problems = _read(log_dir)
    unread = [*problems["trajectories"], *problems["runs"]]

    from . import figures, gap_drawings, gap_figures, gap_report, report

    surroundings.let_tables_hold_any_name()
    points = evaluations.join(tabulate_points(found), runs)
    chosen = _chosen(points, accuracy, log_dir)
    _make(output_dir)
    table = tabulate(found, points)
    with files.atomic_write(output_dir / "gap_table.csv") as f:
        f.write(table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace"))

    notes = [*_unlike(found), *_unended(found)]
    described = {}
    for name in chosen:
        column, suffix = measures.ACCURACIES[name], suffix_of(name)
        these = points[points[column].notna()]
        statistics = describe(these, column, n_bins, binning)
        of_runs = {"diverged": _named(found, DIVERGED), "skipped": problems["trajectories"], "notes": notes}
        statistics |= {"probe": name, "labelled": labelled.describe(found, column), **of_runs}
        files.write_json(output_dir / f"gap_statistics{suffix}.json", statistics)
        print(render(statistics))
        described[column] = statistics
    alike = similarity.describe(found)
    if alike:
        files.write_json(output_dir / "similarity.json", alike)
    # without the joint classifier, which alpha 0 does not train
    of_encoders = [column for column, s in described.items() if ACCURACIES[s["probe"]].probe != "joint"]
    compared = matched.of_all(points, of_encoders)
    if compared:
        files.write_csv(output_dir / "matched_table.csv", matched.TABLE, matched.tabulate(compared))
    drawn = gap_drawings.drawings(points, found, described, compared, alike)
    figures.save_all({output_dir / f"{name}.png": draw for name, draw in drawn.items()}, len(points))
    for note in notes:
        print(f"note: {note}")
    axes = {column: gap_figures.LABELS[column] for column in described}
    plot = report.plot("tube", points if axes else (), axes)
    shown = {"drawn": drawn, "notes": [*notes, *unread], "plot": plot}
    page = gap_report.page(log_dir, output_dir, found, runs, table, described, **shown)
    report.write(output_dir / "report.html", page)
    left_out = f"{len(problems['trajectories'])} left out"
    print(f"{len(found)} trajectories with {len(points)} points analysed, {left_out}; written to {output_dir}.")
    _check_gap(described, log_dir, output_dir, found)


def _read(log_dir):
    """(trajectories, runs, {"trajectories", "runs": lines on what cannot be used}); prints them. Raises InputError."""
    if not log_dir.is_dir():
        raise InputError(f"--log_dir {log_dir}: no such folder. Run a sweep first, or name the folder of one.")
    found, problems = read_trajectories(log_dir)
    runs, damaged = load_runs(log_dir)
    for problem in (*problems, *damaged):
        print(f"note: {problem}")
    if not found:
        skipped = f" ({len(problems)} that cannot be used, see above)" if problems else ""
        raise InputError(f"--log_dir {log_dir}: no trajectory.json in it{skipped}. Run a sweep first.")
    return found, runs, {"trajectories": problems, "runs": damaged}


def _chosen(points, accuracy, log_dir):
    """Names of the probes to analyse. Raises InputError if the one that is asked for was not measured."""
    measured = [probe for probe, column in measures.ACCURACIES.items() if points[column].notna().any()]
    chosen = [probe for probe in measured if accuracy in (probe, "all")]
    if accuracy != "all" and not chosen and len(points):
        raise InputError(
            f"--accuracy {accuracy}: no trajectory in {log_dir} has it, they have {', '.join(measured) or 'none'}. "
            f"Train with {way_to(accuracy)}, or choose another."
        )
    return chosen


def way_to(accuracy):
    """Flags of train.py that measure it."""
    known = ACCURACIES[accuracy]
    readout = "" if known.readout == CLS else f" --{'joint_' * (known.probe == 'joint')}readout {known.readout}"
    return f"--probes {known.probe}{readout}"


def _check_gap(described, log_dir, output_dir, found):
    """Raise InputError if there is no gap, which is said once everything is written."""
    if not described:
        raise InputError(f"--log_dir {log_dir}: no trajectory has an accuracy, so there is no gap. {_cure(found)}")
    refused = [f"{s['probe']}: {s['note']}" for s in described.values() if s["reconstruction_gap"] is None]
    if refused:
        raise InputError(f"{'; '.join(refused)} Tables and figures are written to {output_dir}. {_cure(found)}")


def suffix_of(probe):
    """What the names of a probe's files end in: nothing for the joint one's, which are the original gap scripts'."""
    return "" if probe == "joint" else f"_{probe}"


def tabulate(found, points):
    """DataFrame with a row per norm, learning rate and alpha: the last epoch's MSE and accuracies over seeds.

    n_seeds counts finished runs; their mean and standard deviation (n - 1) are in <measure>_mean and _std, the latter
    empty for one seed. n_diverged and n_unended count the others.
    """
    import pandas as pd

    columns = ["mse", *measures.WATCHED, *(c for c in measures.EVALUATION_RESULTS if c in points)]
    groups = {}
    for run in found:
        groups.setdefault(tuple(run[k] for k in ("model", "decoder", "norm", "lr", "alpha")), []).append(run)
    last = points.sort_values("epoch", kind="stable").groupby("run").tail(1).set_index("run")
    rows = []
    for (model, decoder, norm, lr, alpha), members in groups.items():
        ended = [m["run"] for m in members if m["status"] == FINISHED]
        diverged = sum(m["status"] == DIVERGED for m in members)
        whole = last.loc[ended]
        row = {"norm": norm, "lr": lr, "alpha": alpha, "model": model, "decoder": decoder}
        row |= {"n_seeds": len(whole), "n_diverged": diverged, "n_unended": len(members) - len(ended) - diverged}
        row["epochs"] = whole["epoch"].max() + 1
        for name in columns:
            row |= {f"{name}_mean": whole[name].mean(), f"{name}_std": whole[name].std()}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["norm", "lr", "alpha"], kind="stable", ignore_index=True)
    return table.astype({"epochs": "Int64"}).dropna(axis=1, how="all")


def describe(points, column, n_bins=15, binning="equal"):
    """Everything that gap_statistics.json holds on one accuracy: the original's keys, and the kit's beside them.

    points: DataFrame of trajectories.tabulate_points, `column` not nan. Points of diverged runs do not count: one at a
    huge MSE would leave all others in a single bin. Bins are those of all points that count; each norm and each sign
    of alpha has its own Γ in the same bins. Without two distinct MSE reconstruction_gap is None and `note` says why.
    """
    untrained = _untrained(points, column)
    points = points[points["status"] != DIVERGED]
    if not len(points):
        return {
            **_NO_GAP,
            "note": "every run diverged.",
            "untrained": untrained,
            "matched": {},
            "matched_between_norms": {},
        }
    summary = {
        "n_experiments": int(points["alpha"].nunique()),
        "total_points": len(points),
        "mse_range": _range(points["mse"]),
        "acc_range": _range(points[column]),
        "n_runs": int(points["run"].nunique()),
    }
    correlations = {
        "alpha_correlations": {
            spell(alpha): stats.spearman(rows["mse"], rows[column]) for alpha, rows in points.groupby("alpha")
        },
        "overall_correlation": stats.spearman(points["mse"], points[column]),
    }
    known = {"binning": binning, "bins_asked": n_bins, **correlations, "summary": summary, "untrained": untrained}
    known["matched"] = matched.describe(points, column)
    known["matched_between_norms"] = matched.between(points, column)
    if points["mse"].nunique() < 2:
        note = f"1 distinct MSE value in {len(points)} points, the gap needs 2 or more."
        return {**_NO_GAP, "note": note, **known}
    edges = stats.bin_edges(points["mse"], n_bins, binning)
    configuration = list(
        points[["alpha", "lr", "norm", "model", "decoder"]].fillna("").itertuples(index=False, name=None)
    )
    every = (points["mse"].to_numpy(), points[column].to_numpy())
    return {
        **_gap(points, column, edges, binning),
        "note": None,
        "bin_edges": edges.tolist(),
        **known,
        "over_seeds": stats.gap_over_seeds(*every, points["seed"], edges, binning),
        "noise_floor": stats.noise_floor(*every, configuration, points["seed"], edges, binning),
        "per_norm": {
            norm: {
                **_gap(rows, column, edges, binning),
                "over_seeds": stats.gap_over_seeds(rows["mse"], rows[column], rows["seed"], edges, binning),
                "signs": _signs(rows, column, edges, binning),
            }
            for norm, rows in _by_norm(points)
        },
    }


def _by_norm(points):
    """(norm, its points), in the order of the registry."""
    return [(norm, points[points["norm"] == norm]) for norm in methods.in_order(points["norm"].unique())]


def _gap(points, column, edges, binning):
    gamma, bins = stats.gap(points["mse"], points[column], binning=binning, edges=edges)
    return {
        "reconstruction_gap": gamma,
        "reconstruction_gap_5_95": stats.gap_percentile(bins),
        "n_bins": len(bins),
        "bin_statistics": bins,
        "largest_bin_spread": max((b["acc_spread"] for b in bins), default=None),
        "bins_over_5_points": sum(b["acc_spread"] > WIDE_SPREAD for b in bins),
        "n_runs": int(points["run"].nunique()),
        "n_points": len(points),
    }


def _signs(points, column, edges, binning):
    """Γ of the negative and of the positive alphas, alpha 0 in neither, in the same bins."""
    sides = {"negative": points[points["alpha"] < 0], "positive": points[points["alpha"] > 0]}
    return {name: _gap(rows, column, edges, binning) for name, rows in sides.items() if len(rows)}


def _untrained(points, column):
    """The untrained encoder's accuracy at the end of the longest run of each norm and seed; None if not measured."""
    name = measures.UNTRAINED.get(column)
    if name is None:
        return None
    rows = points[points[name].notna()].sort_values("epoch", kind="stable")
    values = {norm: part.groupby("seed")[name].last() for norm, part in _by_norm(rows)}
    per_norm = {norm: float(v.mean()) for norm, v in values.items() if len(v)}
    if not per_norm:
        return None
    n = sum(len(v) for v in values.values())
    mean = sum(float(v.sum()) for v in values.values()) / n
    return {"accuracy": name, "mean": mean, "n": n, "per_norm": per_norm}


def render(statistics):
    """The summary of one accuracy as text."""
    s, name = statistics, measures.MEASURES[measures.ACCURACIES[statistics["probe"]]].label
    if s["reconstruction_gap"] is None:
        lines = [f"{name}: no gap, {s['note']}"]
    else:
        pooled, middle, largest = s["reconstruction_gap"], s["reconstruction_gap_5_95"], s["largest_bin_spread"] or 0
        lines = [
            f"{name}: gap Γ = {pooled:.1f} percentage points over {bins_used(s)}",
            f"  from {s['n_runs']} runs and {s['n_points']} points; Γ: range of accuracy in a bin, summed over bins",
            f"  5th to 95th percentile of each bin instead of its range: {middle:.1f}",
            f"  largest range of a bin: {largest:.1f}; bins with more than {WIDE_SPREAD}: {s['bins_over_5_points']}",
            f"  each seed's sweep alone: {per_seed(s['over_seeds'])}",
            f"  seed noise: {seed_noise(s['noise_floor'])}",
        ]
        if len(s["per_norm"]) > 1:
            lines += [
                f"  {norm}: Γ = {part['reconstruction_gap']:.1f}, {part['n_runs']} runs; each seed's sweep alone: "
                f"{per_seed(part['over_seeds'])}"
                for norm, part in s["per_norm"].items()
            ]
    lines += [f"  {text}" for text in sentences(s)]
    rho = s.get("overall_correlation", {})
    if rho.get("spearman_r") is not None:
        lines.append(
            f"  Spearman's ρ of MSE and accuracy: {rho['spearman_r']:+.2f} (p = {rho['p_value']:.2g} if a run's "
            "epochs were independent, which they are not)"
        )
    if s["untrained"]:
        each = ", ".join(f"{norm} {value:.1f} %" for norm, value in s["untrained"]["per_norm"].items())
        lines.append(f"  untrained encoder: {each}")
    return "\n".join(lines)


def sentences(s):
    """What is known of one accuracy at equal MSE, and by labels."""
    name = measures.MEASURES[measures.ACCURACIES[s["probe"]]].label
    found = [matched.sentence(*item) for item in s.get("matched", {}).items()]
    found += [matched.sentence_between(*item) for item in s.get("matched_between_norms", {}).items()]
    found += [labelled.sentence(*item) for item in s.get("labelled", {}).items()]
    return [f"{name}, {text}" for text in found]


def bins_used(s):
    """How many of the bins count: 12 of 15 MSE bins of equal width."""
    kind = {"equal": "equal width", "quantile": "equal counts"}[stats.BINNINGS[s["binning"]][0]]
    original = {"original-figure": ", the original's figure's", "original-json": ", the original's JSON's"}
    return f"{s['n_bins']} of {len(s['bin_edges']) - 1} MSE bins of {kind}{original.get(s['binning'], '')}"


def per_seed(over_seeds):
    """Γ of single seeds in words."""
    o = over_seeds
    if o["low"] is None:
        return f"Γ = {o['mean']:.1f}" + (f" ({o['note']})" if o["note"] else "")
    interval = f"Γ = {o['mean']:.1f}, 95 % interval {o['low']:.1f} to {o['high']:.1f} ({o['n']} seeds)"
    return interval + (f"; {o['note']}" if o["note"] else "")


def seed_noise(floor):
    """What Γ comes to where only the seed changes, in words."""
    if not floor["n"]:
        return floor["note"]
    which = f"{floor['n']} configuration{'s' * (floor['n'] != 1)}"
    return f"Γ = {floor['mean']:.1f} on average, {floor['largest']:.1f} at most, where only the seed changes ({which})"


def _range(values):
    return [float(values.min()), float(values.max())]


def _named(found, status):
    return [run["run"] for run in found if run["status"] == status]


def _unended(found):
    """Sentences on runs that diverged or have not ended."""
    for run in found:
        if run["status"] != FINISHED:
            what = "diverged" if run["status"] == DIVERGED else "not ended"
            n = len(run["trajectory"])
            yield f"{run['run']}: {what}, {n} finite epoch{'s' * (n != 1)}."


def _unlike(found):
    """Sentences on what makes the pooled runs unlike each other, beyond alpha, lr, norm and seed."""
    lengths = sorted({len(run["trajectory"]) for run in found if run["status"] == FINISHED})
    if len(lengths) > 1:
        yield f"runs of {', '.join(map(str, lengths))} epochs are pooled; --log_dir of one sweep keeps them apart."
    for name in ("model", "decoder"):
        values = sorted({str(run[name]) for run in found})
        if len(values) > 1:
            yield f"runs of different {name} are pooled ({', '.join(values)})."
    seen = {}
    for run in found:
        key = tuple(run[name] for name in ("model", "decoder", "norm", "lr", "alpha", "seed"))
        if seen.setdefault(key, run["run"]) != run["run"]:
            yield f"{run['run']} and {seen[key]} are the same run, counted twice."


def _cure(found):
    if all(run["status"] == DIVERGED for run in found):
        return "Every run diverged: lower the learning rate or alpha."
    return "Train longer, or with more alphas or probes."


def _make(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output_dir {folder}: cannot be written ({error.strerror}). Choose another --output_dir."
        ) from error
