"""What the shell drivers ask of the tables of flags and methods, and the values of their lists, checked and spelled.

python -P -m maekit.drivers.values --alphas "-0.5 0 5e-1" --seeds "0 1"    -> -0.5 0.0 0.5, and 0 1: a list a line
python -P -m maekit.drivers.values --methods "ln adyt" --control yes --adyt_lambda "0 1"
                                                    -> LayerNorm
                                                       AdaptiveDynamicTanh-lambda0.0 --adyt_lambda 0.0
                                                       ...: a method a line, and the flags that its options are
python -P -m maekit.drivers.values --train_flags    -> --task=value --demo=shared_switch ..., see kind_of
python -P -m maekit.drivers.values --demo lr        -> what --demo sets it to
python -P -m maekit.drivers.values --workers 16     -> 16, at most the cores there are
"""

import math
import sys

from maekit import errors
from maekit.errors import InputError
from maekit.machine import available_cores
from maekit.settings import methods, recipes
from maekit.settings.flags import FLAGS
from maekit.settings.probes import EVALUATIONS
from maekit.settings.spelling import spell
from maekit.settings.tasks import DECODER


def main(argv):
    typed = dict(zip(argv[::2], argv[1::2]))
    if argv == ["--train_flags"]:
        print(*(f"--{name}={kind_of(name)}" for name in FLAGS))
    elif "--demo" in typed:
        print(spelled("--demo", str(recipes.DEMO[typed["--demo"]])))
    elif "--workers" in typed:
        print(min(int(typed["--workers"]), available_cores()))
    elif "--methods" in typed:
        control, reference = typed.pop("--control", ""), typed.pop("--reference", "")
        for method in compared(typed.pop("--methods"), typed, control=control != "", reference=reference):
            print(method, *methods.flags_of(method)[2:])
    elif "--select_seeds" in typed:
        print(*choosing(typed["--select_seeds"], typed["--seeds"].split()))
    else:
        for flag, text in typed.items():
            print(*grid_values(flag, text))


def kind_of(name):
    """What a flag of train.py is to a driver: "switch", which has no value, "value", or "option", a norm's value.

    With shared_ before it if evaluations of a comparison's encoders get it, too.
    """
    kind = "switch" if FLAGS[name].kind is bool else "option" if name in methods.OPTIONS else "value"
    return f"shared_{kind}" if FLAGS[name].shared else kind


def compared(names, options, *, control=False, reference=""):
    """The methods of a comparison. Raises InputError.

    names: as typed. options: {"--flag": text} of options of norms: with several values, every method whose norm has it is
    there once per value. control: also those that methods.controls names. reference: the one that the others are held
    against, which must be among them; empty for the analysis's choice.
    """
    made, bound = grid_values("--methods", names), None
    for flag in methods.OPTIONS:
        if f"--{flag}" not in options:
            continue
        text = options[f"--{flag}"]
        values = grid_values(f"--{flag}", text)
        if len(text.split()) > 1:
            made = methods.vary(made, flag, values)
        elif flag == methods.BOUND:
            bound = float(values[0])
    made += methods.controls(made, bound) if control else []
    if reference and spelled("--reference", reference) not in made:
        raise InputError(
            f"--reference {reference}: is not among the methods, which are {', '.join(made)}. Add it there."
        )
    return made


def choosing(typed, seeds):
    """The seeds that choose rates, as typed; none is among the others. Raises InputError."""
    chosen = grid_values("--select_seeds", typed)
    for seed in chosen:
        if seed in seeds:
            raise InputError(
                f"--select_seeds {seed}: is among --seeds, which are to show how good a rate is that others chose. Leave it "
                "out there, or here for all seeds to choose."
            )
    return chosen


def grid_values(flag, typed):
    """The values of a list as typed, checked and spelled, each once. Raises InputError."""
    values = []
    for text in typed.split():
        value = spelled(flag, text)
        if value in values:
            print(f"{flag}: {text} is there twice, run once.", file=sys.stderr)
        else:
            values.append(value)
    if not values:
        raise InputError(f"{flag}: is empty. Leave it out for the default, or see --help.")
    return values


def spelled(flag, text):
    """A value of a flag as folders and commands have it. Raises InputError."""
    if flag in ("--methods", "--reference"):
        return methods.spelled(text, flag)
    if flag == "--norms":
        return methods.norm_name(text, flag)
    if flag[2:] in methods.OPTIONS:
        return spell(methods.option_value(f"{flag} {text}", flag[2:], text))
    if flag in ("--eval", "--sweep_eval"):
        known = EVALUATIONS if flag == "--eval" else (DECODER, *EVALUATIONS)
        if text not in known:
            raise InputError(f"--eval {text}: unknown. Choose from {', '.join(known)}.")
        return text
    if flag == "--max_images":
        if text != "all" and not (text.isdecimal() and int(text)):
            raise InputError(f"{flag} {text}: must be a whole number, 1 or more, or all.")
        return text if text == "all" else str(int(text))
    if flag in ("--seeds", "--select_seeds"):
        if not text.isdecimal():
            raise InputError(f"{flag} {text}: must be whole numbers, 0 or more.")
        return str(int(text))
    try:
        number = float(text)
    except ValueError:
        raise InputError(f"{flag} {text}: is not a number.") from None
    if not math.isfinite(number):
        raise InputError(f"{flag} {text}: must be finite.")
    if flag == "--lrs" and number <= 0:
        raise InputError(f"{flag} {text}: must be positive.")
    return spell(number)


if __name__ == "__main__":
    sys.exit(errors.exit_code(lambda: main(sys.argv[1:])))
