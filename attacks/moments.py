"""Counts, means and spreads per sample, with one pair left out and never touched.

Subtracting a pair from running totals loses all digits when that pair holds an outlier (one diverging model);
merging the pairs before it with the pairs after it costs the same and is exact. Merge formula: Chan, Golub
and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from attacks.arrays import Floats, Mask, floats, namespace


class Moments(NamedTuple):
    """Per sample, each (n,): how many values, their mean, and their sum of squared deviations from it."""

    number: Floats
    mean: Floats
    squares: Floats

    def variance(self) -> Floats:
        """Unbiased variance; meaningful where number >= 2."""
        return self.squares / (self.number - 1).clip(min=1)

    def take(self, mask: Mask) -> Moments:
        """The samples in mask (n,)."""
        return Moments(self.number[mask], self.mean[mask], self.squares[mask])


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint groups; either may be empty."""
    count = a.number + b.number
    share = b.number / count.clip(min=1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.number * share)


def total(values: Floats, present: Mask) -> Moments:
    """Moments of all rows of values (k, n) where present."""
    result = _empty(values)
    for row, here in zip(values, present, strict=True):
        result = merge(result, _single(row, here))
    return result


def without_each(values: Floats, present: Mask) -> Iterator[Moments]:
    """For every row p of values (k, n): the moments of all the other rows. O(k n) memory."""
    pairs = len(values)
    after = [_empty(values)]
    for p in range(pairs - 1, 0, -1):
        after.append(merge(_single(values[p], present[p]), after[-1]))
    before = _empty(values)
    for p in range(pairs):
        yield merge(before, after.pop())
        before = merge(before, _single(values[p], present[p]))


def _single(row: Floats, here: Mask) -> Moments:
    xp = namespace(row, here)
    return Moments(floats(here), xp.where(here, row, 0.0), _zeros(row))


def _empty(values: Floats) -> Moments:
    zeros = _zeros(values)
    return Moments(zeros, zeros, zeros)


def _zeros(values: Floats) -> Floats:
    """(n,) for values (..., n)."""
    xp = namespace(values)
    return xp.zeros(values.shape[-1], dtype=xp.float64, device=values.device)
