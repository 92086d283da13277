"""What evaluations of a sweep's encoders say: accuracies, and the MSE of a new decoder on each frozen encoder."""

from ..runs import measures
from ..runs.reading import evaluation_column, evaluation_result, is_evaluation

UNTRAINED = "untrained"  # the folder of the evaluations of encoders with random weights, one a norm and seed


def join(points, runs):
    """Points with the results of evaluations as columns, of measures.EVALUATION_RESULTS those that there are.

    points: DataFrame of trajectories.tabulate_points; runs: of reading.load_runs, an evaluation below the folder of the run
    whose encoder it is of, or, of an untrained encoder, anywhere: it belongs to all runs of its norm and seed, a decoder to
    those of its learning rate alone.
    """
    of_run, of_seed = {}, {}
    for run in runs:
        result = evaluation_result(run) if is_evaluation(run) else None
        if result is None:
            continue
        identity, column = run["config"]["identity"], evaluation_column(run)
        if identity["init"]:
            of_run.setdefault(column, {})[str(run["path"].parent)] = result
        else:
            of_seed.setdefault(column, {})[_key(column, identity)] = result
    points = points.copy()
    last = points["epoch"] == points.groupby("run")["epoch"].transform("max")
    for column in measures.EVALUATION_RESULTS:
        if column in of_run:
            found = points["run"].map(of_run[column]).where(last)  # of the encoder as it was in the end
        elif column in of_seed:
            rows = points[["norm", "seed", "lr"]].to_dict("records")
            found = points["run"].map(
                dict(zip(points["run"], (of_seed[column].get(_key(column, row)) for row in rows)))
            )
        else:
            continue
        points[column] = points[column].fillna(found) if column in points else found  # k-NN is a probe, too
    return points


def _key(column, of):
    return of["norm"], of["seed"], float(of["lr"]) if column == "untrained_decoder_mse" else None
