"""What a row of the table of flags says. No torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Flag:
    """A flag of train.py.

    default: None where it is worked out, see resolution.resolve; demo: what --demo changes it to, None for the same; tasks,
    demo_tasks: likewise of some evaluations. legal: function of a value that says what is wrong with it, None if nothing is.
    decides: the tasks whose numbers it decides, so that another value is another run. shared: whether the comparison's
    drivers pass it on to the evaluations of its encoders.
    """

    name: str
    kind: type
    default: object
    help: str
    metavar: str = "X"
    demo: object = None
    tasks: dict = field(default_factory=dict)
    demo_tasks: dict = field(default_factory=dict)
    legal: object = None
    decides: tuple = ()
    shared: bool = False
