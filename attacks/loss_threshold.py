"""One threshold on the loss for all samples (Yeom, Giacomelli, Fredrikson and Jha 2018, arXiv:1709.01604).

The loss is softplus(-phi), which falls as phi rises, so the attack is the ranking by phi itself:

    AUC = P(phi of a trained-on sample > phi of another) + P(tie) / 2

It knows nothing of how hard each sample is, and is the floor that a per-sample attack must beat.
Deviation: the threshold is not set to the mean training loss; the AUC covers all thresholds.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from attacks.metrics import auc

name = "loss_threshold"
label = "Loss threshold"
paper = "arXiv:1709.01604"
version = 1


def loss_threshold(positive_phi: ArrayLike, negative_phi: ArrayLike) -> float:
    """AUC (0-1) of ranking by phi: positive_phi (n1,) of samples trained on, negative_phi (n0,) of others.

    Raises ValueError for empty input or NaN.
    """
    return auc(positive_phi, negative_phi)
