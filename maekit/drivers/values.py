"""Check and spell the values of a grid: what follows the flag, one a line, each once.

python -m maekit.drivers.values --alphas -0.5 0 5e-1     -> -0.5, 0.0, 0.5
python -m maekit.drivers.values --norms ln dyt           -> LayerNorm, DynamicTanh
python -m maekit.drivers.values --methods ln dyt-alpha2  -> LayerNorm, DynamicTanh-alpha2.0
python -m maekit.drivers.values --adyt_lambda 0 1 -- LayerNorm AdaptiveDynamicTanh
                                                         -> LayerNorm, AdaptiveDynamicTanh-lambda0.0, ...-lambda1.0
python -m maekit.drivers.values --eval linprobe knn      -> linprobe, knn
python -m maekit.drivers.values --demo lr                -> what --demo sets it to
python -m maekit.drivers.values --workers 16             -> 16, at most the cores there are
"""

import math
import sys

from maekit import errors
from maekit.errors import InputError
from maekit.machine import available_cores
from maekit.settings import methods, recipes
from maekit.settings.spelling import spell
from maekit.settings.tasks import EVALUATIONS


def main(argv):
    flag, *typed = argv
    if flag == "--demo":
        print(spelled(flag, str(recipes.DEMO[typed[0]])))
        return
    if flag == "--workers":
        print(min(int(typed[0]), available_cores()))
        return
    varied = typed[typed.index("--") + 1 :] if "--" in typed else None
    if varied is not None:
        typed = typed[: typed.index("--")]
    values = grid_values(flag, typed)
    print("\n".join(values if varied is None else methods.vary(varied, flag[2:], values)))


def grid_values(flag, typed):
    """The values of a list, checked and spelled, each once. Raises InputError."""
    values = []
    for text in typed:
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
    if flag == "--methods":
        return methods.spelled(text)
    if flag == "--norms":
        return methods.norm_name(text)
    if flag in ("--adyt_lambda", "--adyt_smooth", "--adyt_alpha_max"):
        return spell(methods.option_value(f"{flag} {text}", flag[2:], text))
    if flag == "--eval":
        if text not in EVALUATIONS:
            raise InputError(f"{flag} {text}: unknown. Choose from {', '.join(EVALUATIONS)}.")
        return text
    if flag == "--seeds":
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
