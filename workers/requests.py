"""Requests: a forget set that is deleted in several requests, one after the other.

Each sample of the forget set belongs to one request. Random samples are dealt out stratified by class; where
whole classes go, each request takes some of the classes, in the order of their numbers. A sample has the same
request in every seed, and on the audit track in every base that was trained on it, so that after a request
the same samples are gone everywhere. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workers.designs import FORGET, RETAIN, folds, forgettable, rng


def groups(classes: Sequence[int], count: int) -> list[list[int]]:
    """Classes in `count` consecutive groups, the larger ones first; their sizes differ by one at most."""
    return [part.tolist() for part in np.array_split(np.sort(np.asarray(classes, dtype=int)), count)]


def fold(
    count: int,
    dataset: str,
    labels: np.ndarray,
    recipe: dict[str, Any],
    forget: Any,
    key: str,
    draw: dict[str, int] | None,
) -> np.ndarray:
    """Which of `count` requests each pool sample belongs to: (n,), -1 for samples that are never forgotten.

    The arguments but the first are those of `designs.build`.
    """
    gone = forgettable(dataset, labels, recipe, forget, key, draw)
    if forget.scope != "class":
        return folds(labels, gone, count, rng("requests", dataset, recipe["val_fraction"], key, count))
    found = np.full(len(labels), -1)
    for number, group in enumerate(groups(forget.classes, count)):
        found[gone & np.isin(labels, group)] = number
    return found


def after(states: np.ndarray, of: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """After request `index` (from 0): the states (n,) uint8, FORGET where a sample is gone by then, and the
    samples (bool, n) that went last.

    states: those of the whole forget set. of: what `fold` returns.
    """
    gone = states == FORGET
    return np.where(gone & (of > index), RETAIN, states).astype(np.uint8), gone & (of == index)


def is_last(request: dict[str, int]) -> bool:
    """Whether nothing is asked after a request {"index", "of"}: the whole forget set is gone."""
    return request["index"] == request["of"] - 1
