"""From a matrix of scores and masks to the worlds that the attacks on pairs compare.

Who has phi of many models (models x samples) and knows for each whether it was trained on a sample, forgot it
or never saw it, gets the worlds of `attacks.ulira` like this:

    forgotten = world(phi, state == FORGET, pair)
    never     = world(phi, state == OUT, pair)
    retrained = world(phi_retrained, state_retrained == OUT, pair_retrained, ids=numpy.unique(pair))

A pair is two independent bases and every model made of them. Best are complementary halves, where a sample is
a member of one and unknown to the other; with other halves a pair counts for the samples of which this holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.inputs import Floats, membership, scores

OUT, RETAIN, FORGET = 0, 1, 2


def world(
    phi: ArrayLike, here: ArrayLike, pair: ArrayLike, *, ids: ArrayLike | None = None, seed: int = 0
) -> Floats:
    """phi (k pairs, n) of one world: phi (models, n), NaN = missing, where here (models, n); NaN elsewhere.

    pair (models,) are ids; row j belongs to ids[j], by default the distinct ids, rising. Of several models of
    a pair one is drawn by seed: runs of one base are not independent, and more of them are no more evidence.
    Raises ValueError for a wrong shape, an infinite score, or an id that is not among `ids`.
    """
    values = scores(phi, "phi", (2,))
    mask = membership(here, values.shape) & ~np.isnan(values)
    of: NDArray[np.generic] = np.asarray(pair)
    if of.shape != values.shape[:1]:
        raise ValueError(f"pair: shape {of.shape} does not match {len(values)} models.")
    rows = np.unique(of if ids is None else np.asarray(ids))
    unknown = np.setdiff1d(of, rows)
    if unknown.size:
        raise ValueError(f"pair: id {unknown[0]} is not among the {rows.size} pairs of the other world.")
    rng = np.random.default_rng(seed)
    found = np.full((rows.size, values.shape[1]), np.nan)
    for j, name in enumerate(rows):
        models = rng.permutation(np.flatnonzero(of == name))
        if models.size:
            first = models[mask[models].argmax(axis=0)]
            columns = np.arange(values.shape[1])
            found[j] = np.where(mask[first, columns], values[first, columns], np.nan)
    return found
