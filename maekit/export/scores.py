"""What a run scores, and the runs beside it that differ in their seed alone: the numbers of a card."""

from typing import NamedTuple

from ..files import Damaged, read_json, sha256
from ..runs import measures
from ..runs.folder import RunFolder
from ..runs.reading import evaluation_column, evaluation_result, is_evaluation, load_runs
from ..runs.status import FINISHED
from ..settings import identities, start

OF_AVERAGE = "ema_val_mse"
QUALITY = ("psnr", "ssim")  # measured on some images


class Score(NamedTuple):
    """A number over so many validation images, None where it is not known over how many; identity: of the run that measured it."""

    value: float
    images: int | None
    identity: dict


def own(folder, averaged):
    """{column: Score} of the run in a folder and of the evaluations below it, of its weights or of their moving average."""
    found = {}
    for run in load_runs(folder)[0]:
        identity, images = run["config"]["identity"], (run["config"].get("data") or {}).get("val_images")
        if run["path"] == folder and run["summary"]:
            found |= _of_summary(run["summary"], identity, images, averaged)
        elif run["path"].parent == folder and is_evaluation(run) and not averaged:
            result = evaluation_result(run)
            if _is_number(result) and identity.get("init") == _named(folder):
                found[evaluation_column(run)] = Score(result, images, identity)
    order = list(measures.MEASURES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _of_summary(summary, identity, images, averaged):
    columns = [OF_AVERAGE] if averaged else [*measures.columns(measures.LAST), *QUALITY]
    found = {}
    for column in columns:
        if _is_number(summary.get(column)) and (averaged or column != OF_AVERAGE):
            counted = None if column == "accuracy" and identity.get("label_map") else images
            counted = summary.get("quality_images", images) if column in QUALITY else counted
            found[column] = Score(summary[column], counted, identity)
    return found


def _named(folder):
    """The checkpoint of a run's folder, as evaluations of it name it; None where it is not there."""
    try:
        places = start.checkpoints_of(folder, read_json(RunFolder(folder).config))
    except (OSError, Damaged):
        return None
    place = next((place for place in places if place.is_file()), None)
    return place and f"sha256:{sha256(place)[:16]}"


def of_siblings(folder, identity, averaged):
    """`own` of each finished run beside the one in a folder seed<k> that differs from its identity in the seed alone."""
    if not folder.name.startswith("seed"):
        return []
    found = []
    for run in load_runs(folder.parent)[0]:
        theirs, ended = run["config"]["identity"], run["summary"] and run["summary"].get("status", FINISHED) == FINISHED
        beside = run["path"].parent == folder.parent and run["path"] != folder
        if beside and ended and theirs.get("seed") != identity.get("seed") and alike(identity, theirs, ("seed",)):
            found.append(own(run["path"], averaged))
    return found


def pooled(score, column, siblings):
    """Values of a score and of those that the siblings have of the same kind; None unless all have one."""
    same = [theirs[column] for theirs in siblings if column in theirs]
    same = [s for s in same if s.images == score.images and alike(score.identity, s.identity, ("seed", "init"))]
    return [score.value, *(s.value for s in same)] if len(same) == len(siblings) else None


def alike(one, other, but):
    """Whether two runs' identities differ in nothing but the settings of these names."""
    one, other = ({name: value for name, value in identity.items() if name not in but} for identity in (one, other))
    return identities.difference(one, other) is None and identities.difference(other, one) is None


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
