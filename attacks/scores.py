"""The score phi: the log-odds of the true class, from which loss and confidence follow.

    phi = log p_y - log(1 - p_y) = z_y - logsumexp_{c != y} z_c

Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", arXiv:2112.03570. Only the
right-hand form is computed: 1 - p_y rounds to zero at phi = 16.6 in float32 and 7.62 in float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

FloatArray = NDArray[np.floating[Any]]


def phi_from_logits(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """phi of every sample: logits (n, C), integer labels (n,) -> (n,), float32 (float64 for float64 logits).

    Sums are taken in float64. Non-finite logits give a non-finite phi, which the attacks refuse or treat as
    missing. Raises ValueError for a wrong shape, fewer than two classes, or a label outside 0..C-1.
    """
    z, y = np.asarray(logits), np.asarray(labels)
    _check_logits(z, y)
    output = np.float64 if z.dtype.itemsize >= 8 else np.float32
    rows = np.arange(len(y))
    rest = z.astype(np.float64)
    true_class = rest[rows, y].copy()
    rest[rows, y] = -np.inf
    largest = rest.max(axis=1)
    with np.errstate(invalid="ignore"):
        others = largest + np.log(np.exp(rest - largest[:, None]).sum(axis=1))
        phi: FloatArray = (true_class - others).astype(output)
    return phi


def loss_from_phi(phi: ArrayLike) -> FloatArray:
    """Cross-entropy in nats, softplus(-phi), any shape; finite for every finite phi."""
    loss: FloatArray = np.logaddexp(0.0, -_floating(phi))
    return loss


def confidence_from_phi(phi: ArrayLike) -> FloatArray:
    """Probability of the true class, 1 / (1 + exp(-phi)), any shape."""
    confidence: FloatArray = expit(_floating(phi))
    return confidence


def _floating(phi: ArrayLike) -> FloatArray:
    values = np.asarray(phi)
    return values.astype(np.result_type(values.dtype, np.float32), copy=False)


def _check_logits(z: NDArray[Any], y: NDArray[Any]) -> None:
    if z.ndim != 2 or z.shape[1] < 2:
        raise ValueError(f"logits: shape {z.shape} is not (samples, classes) with at least 2 classes.")
    if y.shape != z.shape[:1]:
        raise ValueError(f"labels: shape {y.shape} does not match logits {z.shape}; allowed is ({len(z)},).")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: dtype {y.dtype} is not an integer type.")
    if y.size and (y.min() < 0 or y.max() >= z.shape[1]):
        raise ValueError(f"labels: {y.min()}..{y.max()} leave the allowed range 0..{z.shape[1] - 1}.")
