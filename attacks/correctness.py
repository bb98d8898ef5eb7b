"""The gap attack: what is classified correctly was trained on (Yeom et al. 2018, arXiv:1709.01604).

    balanced accuracy = AUC = 1/2 + (accuracy on trained-on samples - accuracy on others) / 2

It costs nothing beyond two accuracies, and is the baseline that every other attack must beat.
Deviation: a tie of t largest logits counts 1 / t, so that a collapsed model gains nothing by its first class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from attacks.inputs import Floats, scores

name = "correctness"
label = "Gap"
paper = "arXiv:1709.01604"
version = 1


def correct_from_logits(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """1 where the label (n,) has the largest of the logits (n, C), 1 / t in a tie of t, else 0: (n,).

    phi > 0 is not the same: with three classes and more, 40 % can be the largest. Raises ValueError for a
    non-finite logit, a wrong shape, or a label outside 0..C-1.
    """
    z, y = scores(logits, "logits", (2,), missing=False), np.asarray(labels)
    if y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: {y.dtype} of shape {y.shape}; allowed are integers of shape {(len(z),)}.")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels: {y.min()}..{y.max()} leave the allowed range 0..{z.shape[1] - 1}.")
    largest = z == z.max(axis=1, keepdims=True)
    correct: Floats = largest[np.arange(len(z)), y] / largest.sum(axis=1)
    return correct


def correctness(positive_correct: ArrayLike, negative_correct: ArrayLike) -> float:
    """Balanced accuracy (0-1) of the gap attack, from correctness in 0-1 of samples trained on and of others.

    positive_correct (n1,), negative_correct (n0,). Below one half: forgotten below the level of unseen
    samples. Raises ValueError for empty input, NaN, or a value outside 0..1.
    """
    return 0.5 + 0.5 * (_accuracy(positive_correct, "positive") - _accuracy(negative_correct, "negative"))


def _accuracy(correct: ArrayLike, what: str) -> float:
    values = scores(correct, what, (1,), missing=False)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"{what}: {values.min()}..{values.max()} leaves the allowed range 0..1.")
    return float(values.mean())
