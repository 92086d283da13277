"""The table of methods: norms, the options that a name can have, such as DynamicTanh-alpha2.0, and their look. No torch."""

import math
import re
from dataclasses import dataclass

from ..errors import InputError
from .spelling import spell

NONE = "none"


def number_or_none(text):
    """The value of an option that can be without one."""
    return NONE if text == NONE else float(text)


@dataclass(frozen=True)
class Option:
    """An option of a norm, which is a flag of train.py.

    name: in a method's name, before the value; argument: of norms.convert_norms. Legal values are finite, not below `least`,
    nor (where `positive`) 0, and below `below`; where `optional` also "none".
    """

    name: str
    flag: str
    argument: str
    default: float | str
    help: str
    least: float = 0.0
    below: float = math.inf
    positive: bool = False
    optional: bool = False

    @property
    def kind(self):
        """What makes a value of a text."""
        return number_or_none if self.optional else float

    def wrong(self, value):
        """What is wrong with a value, None if nothing is."""
        if value == NONE:
            return None
        if self.positive and not 0 < value < math.inf:
            return "must be positive."
        if self.below < math.inf and not self.least <= value < self.below:
            return f"must be in [{self.least:g}, {self.below:g}); {self.below:g} would never adapt."
        if not self.least <= value < math.inf or math.isinf(value):
            return "must be finite." if self.least < 0 else "must be finite and not negative."
        return None


@dataclass(frozen=True)
class Norm:
    """A norm of norms.py: its alias, and how figures show it, in a colour that colour-blind readers can tell from the others
    and in a line style, as matplotlib has them."""

    alias: str
    colour: str
    line: object
    options: tuple = ()


_ALPHA = Option("alpha", "dyt_alpha_init", "alpha_init", 0.5, "initial alpha of the point-wise norms", positive=True)
_ATTENTION = Option(
    "attn",
    "dyt_alpha_attn",
    "alpha_before_attention",
    NONE,
    "another one for their layers in front of attention, as language models with DynamicTanh have it; none: the same",
    positive=True,
    optional=True,
)


def _shift(default):
    of = (
        f"initial shift of the point-wise norms; {NONE}: no shift, which is DynamicTanh's default, that of the others 0"
    )
    return Option("shift", "dyt_shift_init", "shift_init", default, of, least=-math.inf, optional=True)


_POINT_WISE = (_ALPHA, _ATTENTION, _shift(0.0))  # options of f(alpha x + shift) * weight + bias
NORMS = {
    "LayerNorm": Norm("ln", "#000000", "-"),
    "RMSNorm": Norm("rms", "#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    "DynamicTanh": Norm("dyt", "#0072B2", (0, (5, 1.5)), (_ALPHA, _ATTENTION, _shift(NONE))),
    "AdaptiveDynamicTanh": Norm(
        "adyt",
        "#D55E00",
        (0, (5, 1, 1, 1)),
        (
            Option("lambda", "adyt_lambda", "lam", 0.1, "AdaptiveDynamicTanh: strength of the adaptation"),
            Option(
                "smooth",
                "adyt_smooth",
                "smooth",
                0.9,
                "AdaptiveDynamicTanh: smoothing factor of the gradient norm",
                below=1.0,
            ),
            Option("min", "adyt_alpha_min", "alpha_min", 0.1, "AdaptiveDynamicTanh: least alpha"),
            Option("max", "adyt_alpha_max", "alpha_max", 2.0, "AdaptiveDynamicTanh: largest alpha"),
        ),
    ),
    "DynamicErf": Norm("derf", "#009E73", (0, (1, 1)), _POINT_WISE),
    "Hardtanh": Norm("hardtanh", "#E69F00", (0, (3, 1, 1, 1)), _POINT_WISE),
    "Arctan": Norm("arctan", "#56B4E9", (0, (7, 1)), _POINT_WISE),
    "ISRU": Norm("isru", "#882255", (0, (2, 1)), _POINT_WISE),
    "Softsign": Norm("softsign", "#999933", (0, (7, 1, 1, 1)), _POINT_WISE),
    "Satursin": Norm("satursin", "#AA4499", (0, (4, 1, 2, 1)), _POINT_WISE),
    "Expsign": Norm("expsign", "#44AA99", (0, (3, 1, 1, 1, 1, 1)), _POINT_WISE),
    "Relsign": Norm("relsign", "#CC6677", (0, (1, 2)), _POINT_WISE),
    "Saturlog": Norm("saturlog", "#332288", (0, (7, 2, 2, 2)), _POINT_WISE),
    "BHyT": Norm("bhyt", "#661100", (0, (3, 2))),
    "NoNorm": Norm(NONE, "#999999", "-"),
}
OPTIONS = {option.flag: option for norm in NORMS.values() for option in norm.options}  # by the names of the flags
# Does the first adapt, or is it the second with a larger alpha? So the second starts where the first is bounded.
ADAPTIVE, CONTROL = "AdaptiveDynamicTanh", "DynamicTanh"
BOUND, START = "adyt_alpha_max", "dyt_alpha_init"


def options_of(norm):
    """The Options of a norm by name; none of a norm that is not ours."""
    return NORMS[norm].options if norm in NORMS else ()


def default_of(norm, flag):
    """What an option of a norm is if nobody says."""
    return next((option.default for option in options_of(norm) if option.flag == flag), OPTIONS[flag].default)


def common_default(flag):
    """What an option is if nobody says; None where that depends on the norm."""
    found = {default_of(name, flag) for name, norm in NORMS.items() if flag in {option.flag for option in norm.options}}
    return found.pop() if len(found) == 1 else None


def norm_name(name, flag="--norm"):
    """Registry name of a norm or alias. Raises InputError, which starts with the flag that it was typed for."""
    for full, norm in NORMS.items():
        if name in (full, norm.alias):
            return full
    aliases = ", ".join(norm.alias for norm in NORMS.values())
    raise InputError(f"{flag} {name}: unknown. Choose from {', '.join(NORMS)} (or {aliases}).")


def in_order(names):
    """Names of norms, or of methods, in the order of the table, unknown ones last."""
    known = list(NORMS)

    def place(name):
        norm = name.partition("-")[0]
        numbers = tuple(float(number) for number in re.findall(r"\d+\.?\d*", name))
        return (known.index(norm) if norm in known else len(known), numbers, name)

    return sorted(names, key=place)


def spelled(text, flag="--methods"):
    """The one spelling of a method: adyt-lambda1e-1 -> AdaptiveDynamicTanh-lambda0.1. Raises InputError."""
    norm, options = parsed(text, flag)
    return named(norm, options)


def parsed(text, flag="--methods"):
    """(norm, {flag of train.py: value}) of a method. Raises InputError, which starts with the flag that it was typed for."""
    first, dash, rest = text.partition("-")
    pieces = re.split(r"-(?=[^\d.]|$)", rest) if dash else []  # before a number it is a minus sign
    norm, options = norm_name(first, flag), {}
    for piece in pieces:
        known = options_of(norm)
        option = next((option for option in known if piece.startswith(option.name)), None)
        if option is None:
            way_out = f"{norm}-{known[0].name}<value>" if known else f"{norm} without options"
            raise InputError(f"{flag} {text}: {piece or 'its end'} is no option of {norm}. Use {way_out}.")
        options[option.flag] = option_value(f"{flag} {text}", option.flag, piece[len(option.name) :])
    return norm, options


def option_value(where, flag, text):
    """The number that the text of an option is. Raises InputError, which starts with `where`."""
    try:
        value = OPTIONS[flag].kind(text)
    except ValueError:
        raise InputError(f"{where}: {text or 'nothing'} is not a number.") from None
    if wrong := OPTIONS[flag].wrong(value):
        raise InputError(f"{where}: {wrong}")
    return value


def named(norm, options):
    """Name of a norm with options {flag: value}; flags that no name has are left out."""
    pieces = [f"-{o.name}{spell(options[o.flag])}" for o in options_of(norm) if o.flag in options]
    return norm + "".join(pieces)


def flags_of(method):
    """The words of train.py's command line that a method stands for: --norm DynamicTanh --dyt_alpha_init 2.0."""
    norm, options = parsed(method)
    return ["--norm", norm, *(word for flag, value in options.items() for word in (f"--{flag}", spell(value)))]


def vary(methods, flag, values):
    """The methods with every one whose norm has the option `flag`, and does not set it yet, once per value.

    Raises InputError if there is none.
    """
    made = []
    for method in methods:
        norm, options = parsed(method)
        free = flag in {option.flag for option in options_of(norm)} and flag not in options
        made += [named(norm, {**options, flag: OPTIONS[flag].kind(value)}) for value in values] if free else [method]
    if made == methods:
        of = next(name for name, norm in NORMS.items() if OPTIONS[flag] in norm.options)
        raise InputError(f"--{flag} {' '.join(values)}: no {of} to vary among the --methods. Add it.")
    return made


def controls(methods, bound=None):
    """The controls of the methods: DynamicTanh that starts at AdaptiveDynamicTanh's upper bound, one per distinct bound.

    bound: of methods whose name sets none; None for the default. Without an AdaptiveDynamicTanh there is one at `bound`.
    """
    bound = OPTIONS[BOUND].default if bound is None else bound
    adaptive = [options for norm, options in map(parsed, methods) if norm == ADAPTIVE]
    bounds = dict.fromkeys(options.get(BOUND, bound) for options in adaptive or [{}])
    return [name for value in bounds if (name := named(CONTROL, {START: value})) not in methods]


def name_runs(found):
    """Give every run of runs.reading.load_runs its "method".

    It is the name of the folder that holds the run's, as run_comparison.sh puts it, if that is true of the run; else,
    and where one name would stand for several options, the norm with the options that are not at their defaults.
    """
    for run in found:
        run["method"] = _folder_name(run) or _own_name(run)
    options = {}
    for run in found:
        options.setdefault(run["method"], set()).add(tuple(_options(run).items()))
    for run in found:
        if len(options[run["method"]]) > 1:
            run["method"] = _own_name(run)


def _folder_name(run):
    of_grid = re.compile(r"lr\d+\.?\d*|n(\d+|all)")  # of run_comparison.sh's grid, between a method and its seeds
    above = [folder.name for folder in run["path"].parents if not of_grid.fullmatch(folder.name)]
    for folder in above[:2]:  # of a pre-training, of an evaluation
        try:
            norm, options = parsed(folder)
        except InputError:
            continue
        if norm == run["config"]["identity"]["norm"] and options.items() <= _options(run).items():
            return named(norm, options)
    return None


def _own_name(run):
    norm = run["config"]["identity"]["norm"]
    return named(norm, {flag: v for flag, v in _options(run).items() if v != default_of(norm, flag)})


def _options(run):
    """{flag: value} of the options of a run's norm."""
    identity = run["config"]["identity"]
    return {o.flag: identity.get(o.flag, o.default) for o in options_of(identity["norm"])}
