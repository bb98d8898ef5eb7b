"""MIA efficacy: a support vector machine on retain and test samples, applied to the forget set.

Source: Song and Mittal 2021, arXiv:2003.10595, as used by Jia et al. 2023, arXiv:2304.04934, and by SalUn,
arXiv:2310.12508. An RBF-SVM (C = 3, gamma = 1 / features) learns retained = member, test = non-member from
the outputs of one model, and is applied to its forget set. The value is the share of forgotten samples that
it calls non-member. Higher is not better: a perfect method has the value of retraining, near the true
negative rate of the attack on the test set; the two are printed side by side.

Feature: the confidence sigmoid(phi), as in their tables, or any other of `features`. Modified entropy is

    M = -(1 - p_y) log p_y - sum over j != y of p_j log(1 - p_j)

of each sample's own label; known ports take log p_j, and whole columns, which is another quantity.

Deviation: retain and test are cut to one size, at most 2,000, drawn by seed. Uncut, retained samples
outnumber test samples so much that "member" for everything is a good rule, and the time grows as the square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.svm import SVC

from attacks.entropy import entropy, modified_entropy
from attacks.scores import confidence_from_phi, phi_from_logits

Floats = NDArray[np.float64]

name = "population_svm"
label = "MIA efficacy (SVM)"
paper = "arXiv:2304.04934"
version = 1

C = 3.0
MIN_SAMPLES, MAX_SAMPLES = 10, 2000  # per side, to train on


def population_svm(retain: ArrayLike, test: ArrayLike, forget: ArrayLike, seed: int = 123) -> float:
    """Share (0-1) of forgotten samples called non-member; features (n,) or (n, d) of one model on three sets.

    Raises ValueError for a feature that is not finite, fewer than 10 retain or test samples, no forget
    sample, or numbers of features that differ.
    """
    member, nonmember = _features(retain, "retain", MIN_SAMPLES), _features(test, "test", MIN_SAMPLES)
    target = _features(forget, "forget", 1)
    widths = {side.shape[1] for side in (member, nonmember, target)}
    if len(widths) > 1:
        raise ValueError(f"features: {sorted(widths)} per sample; retain, test and forget need the same.")
    rng = np.random.default_rng(seed)
    m = min(len(member), len(nonmember), MAX_SAMPLES)
    sides = [side[rng.permutation(len(side))[:m]] for side in (member, nonmember)]
    attack = SVC(C=C, kernel="rbf", gamma="auto").fit(np.concatenate(sides), np.repeat([1, 0], m))
    return float(np.mean(attack.predict(target) == 0))


def features(logits: ArrayLike, labels: ArrayLike) -> dict[str, Floats]:
    """All features of n samples: logits (n, C), integer labels (n,) -> arrays (n,), probabilities (n, C).

    Keys: correctness, confidence, entropy, modified_entropy, probabilities; entropies in nats. Logarithms
    of positive probabilities are logits, too. Raises ValueError for a wrong shape or label.
    """
    z = np.asarray(logits, dtype=np.float64)
    phi = phi_from_logits(z, labels)  # checks both
    return {
        "correctness": (z.argmax(axis=1) == np.asarray(labels)).astype(np.float64),
        "confidence": confidence_from_phi(phi),
        "entropy": entropy(z),
        "modified_entropy": modified_entropy(z, labels),
        "probabilities": softmax(z, axis=1),
    }


def _features(values: ArrayLike, what: str, least: int) -> NDArray[Any]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) < least or array.size == 0:
        raise ValueError(
            f"{what}: shape {array.shape} is not (samples,) or (samples, features), at least {least}."
        )
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{what}: {bad} of {array.size} features are not finite; none is allowed.")
    return array.reshape(len(array), -1)
