"""What the templates of records ask for: means over seeds and paired differences of committed runs, as text.

In a template `runs(method="DynamicTanh", lr=0.016)` are runs of runs.csv, `epochs(...)` rows of epochs.csv, `file(NAME)` a file
of the analysis. A sentence that leans on an interval says so by `given`, which fails where the interval does not bear it.
"""

import statistics
from dataclasses import dataclass

from maekit import stats
from maekit.errors import InputError


class NotBorneOut(InputError):
    """A sentence is stronger than the numbers below it."""


def given(held):
    """Nothing to print, where it holds. Raises NotBorneOut where it does not: the numbers have changed and the sentence has not."""
    if not held:
        raise NotBorneOut("the committed numbers do not bear this sentence. Write what they do.")
    return ""


class Rows:
    """Some rows of a table: calling it with columns and values keeps those that have them."""

    def __init__(self, rows, where=None):
        self.rows, self.where = rows, where or {}

    def __call__(self, **where):
        """The rows with these values. Raises KeyError if there is none: a template asks for what was not run."""
        kept = self.having(**where)
        if not len(kept):
            raise KeyError(f"no row with {kept.where}")
        return kept

    def having(self, **where):
        """The rows with these values, none perhaps."""
        kept = [row for row in self.rows if all(row.get(column) == value for column, value in where.items())]
        return Rows(kept, self.where | where)

    def without(self, **where):
        """The rows that do not have these values."""
        return Rows([row for row in self.rows if any(row.get(c) != v for c, v in where.items())], self.where)

    def __len__(self):
        return len(self.rows)

    def values(self, measure):
        """[value] of the rows that have one."""
        return [row[measure] for row in self.rows if row.get(measure) is not None]

    def distinct(self, column):
        """Values of a column, each once, in order of the table."""
        return list(dict.fromkeys(row[column] for row in self.rows))

    def mean(self, measure):
        """Mean over the rows."""
        return statistics.mean(self.values(measure))

    def std(self, measure):
        """Standard deviation over the rows, n - 1."""
        return statistics.stdev(self.values(measure))

    def least(self, measure):
        """The least of the rows."""
        return min(self.values(measure))

    def most(self, measure):
        """The largest of the rows."""
        return max(self.values(measure))

    def by_seed(self, measure):
        """{seed: value}. Raises ValueError if a seed is there twice: the rows are of more than one setting."""
        found = {row["seed"]: row[measure] for row in self.rows if row.get(measure) is not None}
        if len(found) != len(self.values(measure)):
            raise ValueError(f"rows with {self.where} are of several settings")
        return found

    def minus(self, other, measure, than=None, scale=1.0):
        """Difference of `measure` to other rows, or of their `than` if that is another measure; paired by seed."""
        mine, theirs = self.by_seed(measure), other.by_seed(than or measure)
        return Difference.of({s: v * scale for s, v in mine.items()}, {s: v * scale for s, v in theirs.items()})


@dataclass(frozen=True)
class Difference:
    """A paired difference with its 95 % interval, low and high None with fewer than three pairs."""

    mean: float
    low: float | None
    high: float | None
    n: int
    pairs: tuple = ()

    @classmethod
    def of(cls, values, reference):
        """Of two {seed: value}."""
        return cls.known(stats.paired(values, reference))

    @classmethod
    def known(cls, found):
        """Of a dict with mean, low, high, n, as the analysis writes it."""
        pairs = tuple(found.get("differences", {}).values())
        return cls(found["mean"], found["low"], found["high"], found["n"], pairs)

    @property
    def established(self):
        """Whether the interval excludes 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)

    @property
    def size(self):
        """The same with its sign turned round if it is below 0: by how much, where the sentence says in which direction."""
        if self.mean >= 0:
            return self
        turned = tuple(-pair for pair in self.pairs)
        return Difference(-self.mean, -self.high, -self.low, self.n, turned)

    def text(self, decimals=3):
        """0.043 (0.018 to 0.068); with signs where the interval has both or is below 0."""
        return "{} ({} to {})".format(*self._spelled(decimals))

    def inside(self, decimals=3):
        """0.043, 0.018 to 0.068: the same within parentheses."""
        return "{}, {} to {}".format(*self._spelled(decimals))

    def claim(self, decimals=3, unit=""):
        """0.043 (95 % interval 0.018 to 0.068, n = 3). unit: behind the mean, such as " points"."""
        mean, low, high = self._spelled(decimals)
        return f"{mean}{unit} (95 % interval {low} to {high}, n = {self.n})"

    def _spelled(self, decimals):
        return tuple(fixed(value, decimals, sign=self.low < 0) for value in (self.mean, self.low, self.high))


def minus(one, other):
    """The difference of two Differences, paired in the order of their pairs; of equal seeds."""
    if len(one.pairs) != len(other.pairs):
        raise ValueError("differences of unlike seeds")
    return Difference.of(dict(enumerate(one.pairs)), dict(enumerate(other.pairs)))


def share(k, n):
    """2 of 12 (95 % interval 2 to 48 %, n = 12): a share with its exact interval (Clopper and Pearson)."""
    from scipy import stats as scipy_stats

    ends = scipy_stats.binomtest(k, n).proportion_ci(method="exact")
    return f"{k} of {n} (95 % interval {100 * ends.low:.0f} to {100 * ends.high:.0f} %, n = {n})"


def fixed(value, decimals=3, sign=False):
    """A number with so many decimals, and none that is 0 with a minus."""
    return f"{value:{'+' if sign else ''}z.{decimals}f}"


def thousands(number):
    """9,469"""
    return f"{number:,}"


def span(seconds):
    """A time in words: 2 h 20 min; 14 min; 50 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def listed(words, last="and"):
    """a, b and c."""
    words = [str(word) for word in words]
    return " ".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} {last} {words[-1]}"
