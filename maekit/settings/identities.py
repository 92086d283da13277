"""What decides the numbers of a run, flat and by the names of the flags: whether two runs are the same one. No torch."""

from dataclasses import replace

from ..errors import InputError
from ..files import is_text
from .flags import DEFAULTS, FLAGS
from .methods import NONE, OPTIONS, default_of
from .probes import CLS
from .tasks import PRETRAIN, TASKS

MOST, MOST_WHOLE = 1e300, 2**63  # no setting is larger
ALWAYS = ("task", "norm", "model", "input_size", "seed")  # what every run has a value of
# what settings were before there was a flag for them
SINCE = {"crop": "resized", "pos_embed": "sincos"}  # of those that an evaluation takes over from the run it evaluates
EARLIER_ALL = ("joint frozen knn",)  # what --probes all was
BEFORE = {**DEFAULTS, "processes": 1, "pixels": "whole", **SINCE}


def before(name, identity, unknown=None):
    """What a setting was in a run of this identity, which does not have it; `unknown` if nobody can say."""
    if name == "readout":
        return FLAGS[name].tasks.get(identity.get("task", PRETRAIN), CLS)
    if name in OPTIONS and "norm" in identity:
        return default_of(identity["norm"], name)
    return BEFORE.get(name, unknown)


def as_begun(run, stored):
    """Settings with what was left to the kit as it was when the run of identity `stored`, which is to go on, began."""
    data, probes = run.data, run.probes
    if "crop" in run.left and "crop" not in stored:
        data = replace(data, crop=SINCE["crop"])
    if "max_val_images" in run.left and "max_val_images" not in stored:
        data = replace(data, max_val_images=None)
    if "readout" in run.left and "readout" not in stored:
        probes = replace(probes, readouts=tuple(before("readout", stored).split()))
    if "probes" in run.left and stored.get("probes") in EARLIER_ALL:
        probes = replace(probes, names=tuple(stored["probes"].split()))
    return replace(run, data=data, probes=probes)


def difference(stored, identity):
    """The first setting that two runs do not share, with both values: (name, stored, own); None if they are the same run.

    A setting that the stored run did not know yet had its default then.
    """
    for name, value in identity.items():
        theirs = stored[name] if name in stored else before(name, stored, value)
        if theirs != value:
            return name, theirs, value
    return None


def check(stored, identity, where):
    """Raise InputError, which starts with `where`, naming the first setting that two runs do not share."""
    if found := difference(stored, identity):
        name, theirs, value = found
        way = "Choose"
        if name == "resume" and theirs:
            way = f"To go on with it, type --resume {theirs}, there or not; or choose"
        elif (
            name not in stored or name == "max_val_images"
        ):  # begun before there was a choice, which is made otherwise now
            way = f"To go on with it, add {spell(name, theirs)}; or choose"
        raise InputError(
            f"{where} a run with {spell(name, theirs)}, this one has {spell(name, value)}. {way} another --output_dir "
            "(or --checkpoint_dir), or --overwrite to delete that run."
        )


def wrong(name, value):
    """What is wrong with the value of a setting that a run has stored, None if nothing is: its type, not what it says."""
    kind = (
        int
        if name == "processes"
        else OPTIONS[name].kind
        if name in OPTIONS
        else getattr(FLAGS.get(name), "kind", None)
    )
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST
    whole = number and isinstance(value, int) and abs(value) < MOST_WHOLE
    text, flag = is_text(value) if name in ALWAYS else isinstance(value, str), isinstance(value, bool)
    fits = {int: whole, float: number, bool: flag, str: text}
    fitting = fits.get(kind, number or text or flag) or (value is None and name not in (*ALWAYS, *OPTIONS))
    if name in OPTIONS and not number:
        fitting = value == NONE and OPTIONS[name].optional
    if name == "task":
        fitting = value in TASKS
    return None if fitting else f"holds {value!r:.40} for {name}"


def unsettled(stored, found):
    """What of `found`, which the machine decides, was otherwise so far in the run of identity `stored`, and the way out.

    found: pixels, as cache.pixels has them, and precision. None if all agrees, or if there is no run yet.
    """
    for name, value in found.items() if stored else ():
        before = stored.get(name, BEFORE[name] if name == "pixels" else value)
        if before != value:
            how = {"pixels": "from images", "precision": "in"}[name]
            way = {
                "pixels": "Add --cache off"
                if before == "whole"
                else "Let it have its cache again (--cache auto, or DIR)",
                "precision": f"Add --precision {before}",
            }[name]
            return (
                f"was computed {how} {before} so far, this would go on {how} {value}. {way} to go on, or choose another "
                "--output_dir, or start anew: --resume never --overwrite."
            )
    return None


def spell(name, value):
    """A setting as it is typed, or said not to be."""
    if name == "data":
        return f"data {value}"
    if name == "max_val_images" and value is None:
        return f"--{name} all"
    if name == "mae_dir" and value is None:
        return "--mae_dir builtin"
    return f"no --{name}" if value is None or value is False else f"--{name}" if value is True else f"--{name} {value}"
