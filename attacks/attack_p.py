"""Attack-P: each model is calibrated on samples it never saw (Ye et al. 2022, arXiv:2111.09679).

    score(x) = share of population samples z with loss(z) >= loss(x)

One minus the score is a p-value: under "x was not trained on" it is uniform, if x and z have one law. The ROC
of one model is that of the loss threshold; pooled over models it differs, as each has its own null.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from attacks.inputs import Floats, scores

name = "attack_p"
label = "Attack-P"
paper = "arXiv:2111.09679"
version = 1


def attack_p(phi: ArrayLike, population: ArrayLike) -> Floats:
    """Scores in 0-1 of phi (n,) or (models, n) against population phi (z,) or (models, z) of the same models.

    phi stands for the loss, which falls as phi rises. NaN = missing in phi. Raises ValueError for a wrong
    shape, an infinite score, or NaN in the population.
    """
    x, z = scores(phi, "phi", (1, 2)), scores(population, "population", (1, 2), missing=False)
    if x.ndim != z.ndim or x.shape[:-1] != z.shape[:-1]:
        raise ValueError(f"population: shape {z.shape} does not have the models of phi {x.shape}.")
    if x.ndim == 1:
        return _share(x, z)
    return np.array([_share(row, nobody) for row, nobody in zip(x, z, strict=True)])


def _share(x: Floats, z: Floats) -> Floats:
    rank = np.searchsorted(np.sort(z), x, side="right")
    return np.where(np.isnan(x), np.nan, rank / z.size)
