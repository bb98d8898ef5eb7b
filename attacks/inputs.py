"""Checks of what the attacks are given: phi, membership, pairs. Bad input is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def scores(values: ArrayLike, what: str, dimensions: tuple[int, ...], missing: bool = True) -> Floats:
    """float64 copy of scores with an allowed number of dimensions; NaN only if it may mean "missing".

    Raises ValueError for another number of dimensions, an empty array, or an infinite or forbidden NaN score.
    """
    array = np.array(values, dtype=np.float64)
    if array.ndim not in dimensions or array.size == 0:
        allowed = " or ".join(map(str, dimensions))
        raise ValueError(f"{what}: shape {array.shape} is not a non-empty array of {allowed} dimensions.")
    bad = int(np.count_nonzero(np.isinf(array) if missing else ~np.isfinite(array)))
    if bad:
        use = "use NaN for missing" if missing else "none is allowed"
        raise ValueError(f"{what}: {bad} of {array.size} scores are not finite; {use}.")
    return array


def membership(values: ArrayLike, shape: tuple[int, ...]) -> Mask:
    """Boolean copy of a mask of this shape, True = trained on. ValueError for another shape or value."""
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"member: shape {array.shape} does not match phi; allowed is {shape}.")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError("member: values other than 0 and 1; allowed are booleans, True = trained on.")
    return array.astype(np.bool_)


def pair_rows(pair: ArrayLike, models: int) -> NDArray[np.intp]:
    """Rows (pairs, 2) of the two models of each pair, from pair ids (models,), in the order of the ids.

    Raises ValueError unless every id is there exactly twice: runs of one base are not independent, so more
    of them would be counted as evidence that they are not.
    """
    ids = np.asarray(pair)
    if ids.shape != (models,):
        raise ValueError(f"pair: shape {ids.shape} does not match {models} models.")
    distinct, counts = np.unique(ids, return_counts=True)
    if (counts != 2).any():
        worst = distinct[counts != 2][0]
        raise ValueError(f"pair: id {worst} has {counts[counts != 2][0]} models; every pair has exactly 2.")
    rows: NDArray[np.intp] = np.argsort(ids, kind="stable").reshape(-1, 2)
    return rows


def relative_step(*arrays: ArrayLike) -> float:
    """Rounding step of stored scores relative to their size; float32 at best, whatever the type."""
    types: list[np.dtype[Any]] = [np.asarray(array).dtype for array in arrays]
    return max(float(np.finfo(t if t == np.float16 else np.dtype(np.float32)).eps) for t in types)
