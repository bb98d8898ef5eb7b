"""Seconds that work takes, from runs that were timed, with a 95 % interval.

Work is what one kind and method does on one architecture and image shape, for one dataset and track. A run of
it over x images takes t = x · r · (1 + e) seconds: r is its pace, e a deviation of the run's own with mean 0
and variance s². The evaluation of a task is work of the kind `evaluate`, over the images that it passes.

Timed n times:     r = Σt / Σx, the ratio estimator
                   s² = n/(n − 1) · Σ(t − r·x)² / Σ(r·x)² with n − 1 degrees of freedom; of work timed once
                   the mean of all others', weighted by their degrees of freedom
                   var(log r) = s² · h with h = Σx² / (Σx)², which is 1/n for runs of one size

Never timed, it borrows its pace from the first of these that was:
  track    the same on the same dataset, on another track: the geometric mean of such paces
  dataset  the same on other datasets of this image shape: likewise
  ratio    that of bases on this architecture and shape, times the ratio of this method's to theirs elsewhere:
           the geometric mean over other architectures and shapes
  base     that of bases on this architecture and shape, if this is training or unlearning

What is planned, X images of each work, takes T = Σ X·r in the mean. All tasks that lean on a timed work err
together with it, timed works err apart, so with G = ∂T/∂(log r) of each timed work, N = Σ(x·r)² over the
planned runs that lean on it, and B the planned seconds that borrow from one mean of m paces or ratios,

    var(T) = Σ s² · (h·G² + N)  over timed works  +  Σ τ² · B² · (1 + 1/m)  over what is borrowed.

τ² is the variance of the logarithms of what was timed about such means: of paces between datasets and tracks,
and of ratios between architectures, over all methods; with `base` the mean square of the log ratios to bases
of all of its kind, and 1/m is 0. Where nothing tells τ² it is 0, and the estimate says so. What borrows from
one mean errs together, which is the wider of the two assumptions. The interval is T · exp(± q · √var(T) / T),
q being Student's quantile at the degrees of freedom of var(T) (Satterthwaite, Biometrics Bulletin 2, 1946).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

Shape = tuple[int, int] | str  # channels and pixels of a side; the dataset's name if it does not tell
Place = tuple[str, Shape]  # architecture and image shape
Part = tuple[float, float]  # a variance and its degrees of freedom
BASE, EVALUATE = ("base", ""), ("evaluate", "")
LEAST = 1e-9  # seconds: nothing takes no time, whatever a clock says


class Work(NamedTuple):
    """What is timed. method: an unlearn task's; of bases and retrains the training recipe, '' if plain."""

    kind: str
    method: str
    architecture: str
    shape: Shape
    dataset: str
    track: str

    @property
    def what(self) -> tuple[str, str]:
        return self.kind, self.method

    @property
    def place(self) -> Place:
        return self.architecture, self.shape

    @property
    def evaluation(self) -> Work:
        """The evaluation of a task."""
        return self._replace(kind=EVALUATE[0], method=EVALUATE[1])


@dataclass
class Load:
    """Runs of one work that are planned: how many, their images and the sum of the squares of these."""

    runs: float = 0.0
    units: float = 0.0
    squares: float = 0.0

    def add(self, units: float, times: float = 1.0) -> None:
        self.runs += times
        self.units += times * units
        self.squares += times * units**2

    def __iadd__(self, other: Load) -> Load:
        self.runs, self.units = self.runs + other.runs, self.units + other.units
        self.squares += other.squares
        return self


@dataclass(frozen=True)
class Timed:
    """A work that was timed: its pace, and s², h and degrees of freedom as above; s² None if timed once."""

    pace: float
    spread: float | None
    share: float
    freedom: int


@dataclass(frozen=True)
class Pace:
    """Seconds per image of a work. how: 'timed', or where it is borrowed from. leans: ∂(log pace)/∂(log r) of
    timed works. like: the timed works whose runs deviate like its own. means: how many paces or ratios it is
    a mean of.
    """

    seconds: float
    how: str
    leans: Mapping[Work, float]
    like: tuple[Work, ...]
    means: int


class Mean(NamedTuple):
    """A mean of paces or ratios that works borrow from; their deviations from it are one."""

    how: str
    what: tuple[str, str]
    place: Place | None
    dataset: str
    of: int


@dataclass(frozen=True)
class Borrowed:
    """A work whose pace is borrowed, the seconds it takes, the works that were timed, and √τ², which is None
    where nothing tells it.
    """

    work: Work
    how: str
    runs: float
    seconds: float
    timed: list[Work]
    spread: float | None


@dataclass(frozen=True)
class Estimate:
    """Seconds of what could be estimated, with their interval, None where nothing was timed twice.

    missing: works with nothing to borrow a pace from; their seconds are not in the sum.
    """

    seconds: float = 0.0
    low: float | None = 0.0
    high: float | None = 0.0
    borrowed: list[Borrowed] = field(default_factory=list)
    missing: list[Work] = field(default_factory=list)


class Paces:
    """Paces of timed runs (work, images, seconds), and what planned work takes at them."""

    def __init__(self, runs: Iterable[tuple[Work, float, float]]) -> None:
        known: dict[Work, list[tuple[float, float]]] = {}
        for work, units, seconds in runs:
            known.setdefault(work, []).append((units, max(seconds, LEAST)))
        self.timed = {work: _timed(of) for work, of in known.items()}
        self._groups: dict[tuple[tuple[str, str], Place], list[Work]] = {}
        for work in self.timed:
            self._groups.setdefault((work.what, work.place), []).append(work)

    def estimate(self, loads: Mapping[Work, Load]) -> Estimate:
        """What planned runs take, added up."""
        total, borrowed, missing = 0.0, [], []
        leans, noise = defaultdict[Work, float](float), defaultdict[Work, float](float)
        together = defaultdict[Mean, float](float)
        for work, load in loads.items():
            if (pace := self.of(work)) is None:
                missing.append(work)
                continue
            seconds = load.units * pace.seconds
            total += seconds
            for source, weight in pace.leans.items():
                leans[source] += weight * seconds
            for source in pace.like:
                noise[source] += load.squares * pace.seconds**2 / len(pace.like)
            if pace.how != "timed":
                together[_mean_of(work, pace)] += seconds
                spread = self._spread_of(pace.how, work.kind)
                root = None if spread is None else math.sqrt(spread[0])
                borrowed.append(Borrowed(work, pace.how, load.runs, seconds, [*pace.leans], root))
        own = self._variances(leans, noise)
        parts = None if own is None else own + self._widening(together)
        return Estimate(total, *_interval(total, parts), borrowed, missing)

    # ---- paces --------------------------------------------------------------------------------------------

    def of(self, work: Work) -> Pace | None:
        """The pace of a work, None if there is nothing to borrow it from."""
        if work in self.timed:
            return Pace(self.timed[work].pace, "timed", {work: 1.0}, (work,), 1)
        if group := self._groups.get((work.what, work.place)):
            own = [known for known in group if known.dataset == work.dataset]
            return self._mean(own or group, "track" if own else "dataset")
        bases = self._groups.get((BASE, work.place))
        return None if bases is None else self._from_bases(work, self._mean(bases, "base"))

    def _mean(self, works: list[Work], how: str) -> Pace:
        """The geometric mean of timed paces."""
        pace = math.exp(self._log(works))
        return Pace(pace, how, {work: 1 / len(works) for work in works}, tuple(works), len(works))

    def _log(self, works: list[Work]) -> float:
        return fmean(math.log(self.timed[work].pace) for work in works)

    def _from_bases(self, work: Work, base: Pace) -> Pace | None:
        """The pace of bases, times the ratio of a method's to theirs elsewhere, if it is known."""
        places = self._ratios.get(work.what, {})
        if not places:
            return None if work.what == EVALUATE else base
        leans = defaultdict(float, base.leans)
        like: list[Work] = []
        for place in places:
            of_method, of_bases = self._groups[work.what, place], self._groups[BASE, place]
            like += of_method
            for sign, works in ((1, of_method), (-1, of_bases)):
                for known in works:
                    leans[known] += sign / (len(works) * len(places))
        seconds = base.seconds * math.exp(fmean(places.values()))
        return Pace(seconds, "ratio", leans, tuple(like), len(places))

    @cached_property
    def _ratios(self) -> dict[tuple[str, str], dict[Place, float]]:
        """The logarithm of a method's pace to that of bases, wherever both were timed."""
        found: dict[tuple[str, str], dict[Place, float]] = {}
        for (what, place), works in self._groups.items():
            bases = self._groups.get((BASE, place))
            if what != BASE and bases is not None:
                found.setdefault(what, {})[place] = self._log(works) - self._log(bases)
        return found

    # ---- spreads ------------------------------------------------------------------------------------------

    def _spread_of(self, how: str, kind: str) -> Part | None:
        """τ² of what is borrowed in one way."""
        if how == "base":
            logs = [log for what, of in self._ratios.items() if what[0] == kind for log in of.values()]
            return (fmean(log**2 for log in logs), len(logs)) if logs else None
        return self._between_ratios if how == "ratio" else self._between_paces

    @cached_property
    def _between_ratios(self) -> Part | None:
        return _within([*of.values()] for of in self._ratios.values())

    @cached_property
    def _between_paces(self) -> Part | None:
        return _within([math.log(self.timed[w].pace) for w in works] for works in self._groups.values())

    def _widening(self, together: Mapping[Mean, float]) -> list[Part]:
        """Σ τ² · B² · (1 + 1/m), a part for each τ² that was estimated."""
        factors = defaultdict[Part, float](float)
        for mean, seconds in together.items():
            if (spread := self._spread_of(mean.how, mean.what[0])) is not None:
                factors[spread] += seconds**2 * (1 + (0 if mean.how == "base" else 1 / mean.of))
        return [(variance * factor, freedom) for (variance, freedom), factor in factors.items()]

    def _variances(self, leans: Mapping[Work, float], noise: Mapping[Work, float]) -> list[Part] | None:
        """Σ s² · (h·G² + N) as parts with their degrees of freedom; None where no s² is known."""
        several = [timed for timed in self.timed.values() if timed.spread is not None]
        freedom = sum(timed.freedom for timed in several)
        found, once = [], 0.0
        for work in {**leans, **noise}:
            timed = self.timed[work]
            factor = timed.share * leans.get(work, 0.0) ** 2 + noise.get(work, 0.0)
            if timed.spread is None:
                once += factor
            else:
                found.append((timed.spread * factor, float(timed.freedom)))
        if once and not several:
            return None
        if once:
            pooled = sum((timed.spread or 0.0) * timed.freedom for timed in several) / freedom
            found.append((pooled * once, float(freedom)))
        return found


def _mean_of(work: Work, pace: Pace) -> Mean:
    place = work.place if pace.how in ("track", "dataset") else None
    return Mean(pace.how, work.what, place, work.dataset if pace.how == "track" else "", pace.means)


def _timed(runs: list[tuple[float, float]]) -> Timed:
    """The pace of runs (images, seconds), and how they deviate from it."""
    count, units, squares = len(runs), sum(x for x, _ in runs), sum(x**2 for x, _ in runs)
    pace = sum(t for _, t in runs) / units
    share = squares / units**2
    if count == 1:
        return Timed(pace, None, share, 0)
    off = sum((t - pace * x) ** 2 for x, t in runs)
    return Timed(pace, count / (count - 1) * off / (pace**2 * squares), share, count - 1)


def _within(groups: Iterable[list[float]]) -> Part | None:
    """The variance of values about the means of their groups; None if no group has two."""
    squares, freedom = 0.0, 0
    for values in groups:
        mean = fmean(values)
        squares += sum((value - mean) ** 2 for value in values)
        freedom += len(values) - 1
    return (squares / freedom, float(freedom)) if freedom else None


def _interval(total: float, parts: list[Part] | None) -> tuple[float | None, float | None]:
    """The limits of a sum whose variance has these parts."""
    if parts is None:
        return None, None
    variance = sum(part for part, _ in parts)
    if not variance:
        return total, total
    from scipy.special import stdtrit

    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    factor = math.exp(float(stdtrit(freedom, 0.975)) * math.sqrt(variance) / total)
    return total / factor, total * factor
