"""Counts, means and spreads per sample, with one pair left out and never touched.

Subtracting a pair from running totals loses all digits when that pair holds an outlier (one diverging model);
merging the pairs before it with the pairs after it costs the same and is exact. Merge formula: Chan, Golub
and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Moments(NamedTuple):
    """Per sample, each (n,): how many values, their mean, and their sum of squared deviations from it."""

    number: Floats
    mean: Floats
    squares: Floats

    def variance(self) -> Floats:
        """Unbiased variance; meaningful where number >= 2."""
        return self.squares / np.maximum(self.number - 1, 1)

    def take(self, mask: Mask) -> Moments:
        """The samples in mask (n,)."""
        return Moments(self.number[mask], self.mean[mask], self.squares[mask])


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint groups; either may be empty."""
    count = a.number + b.number
    share = b.number / np.maximum(count, 1)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.number * share)


def total(values: Floats, present: Mask) -> Moments:
    """Moments of all rows of values (k, n) where present."""
    result = _empty(values.shape[1])
    for row, here in zip(values, present, strict=True):
        result = merge(result, _single(row, here))
    return result


def without_each(values: Floats, present: Mask) -> Iterator[Moments]:
    """For every row p of values (k, n): the moments of all the other rows. O(k n) memory."""
    pairs, samples = values.shape
    after = [_empty(samples)]
    for p in range(pairs - 1, 0, -1):
        after.append(merge(_single(values[p], present[p]), after[-1]))
    before = _empty(samples)
    for p in range(pairs):
        yield merge(before, after.pop())
        before = merge(before, _single(values[p], present[p]))


def _single(row: Floats, here: Mask) -> Moments:
    return Moments(here.astype(np.float64), np.where(here, row, 0.0), np.zeros(row.size))


def _empty(samples: int) -> Moments:
    return Moments(np.zeros(samples), np.zeros(samples), np.zeros(samples))
