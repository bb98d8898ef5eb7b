"""KLoM, the KL divergence of margins of unlearned from retrained models (Georgiev et al. 2024).

Paper: arXiv:2410.23232. One retain and one forget set, N unlearned and N retrained models; the margin is phi.
For each sample, 20 equal bins over the joint range (margins clipped to +-100), the shares a and b of the two
sets of models in each bin, and

    KL(a || b) = sum over bins with a > 0 of a log(a / max(b, 1e-5))

then the mean and the 95th percentile over samples. Neither is 0 for a perfect method: with N = 100 they are
.35 and .65. So the same numbers for two disjoint halves of the retrained models come along (`null`), and the
comparison at that number of models (`halved`); only these two may be set side by side.

KL is not symmetric and published numbers use either direction, so both are computed: `forward` is
KL(unlearned || retrained), `backward` is KL(retrained || unlearned). The Gaussian plug-in, from means and
variances alone, has a twentieth of the bias:

    KL(N0 || N1) = (log(v1 / v0) + (v0 + (m0 - m1)^2) / v1 - 1) / 2
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.moderation import variance_floor

Floats = NDArray[np.float64]

name = "klom"
label = "KLoM"
paper = "arXiv:2410.23232"
version = 1

BINS, CLIP, FLOOR = 20, 100.0, 1e-5
MIN_MODELS = 4  # halves of two, the fewest with a variance


@dataclass(frozen=True)
class Divergence:
    """Mean and 95th percentile over samples, in nats."""

    mean: float
    percentile_95: float


@dataclass(frozen=True)
class Divergences:
    """Both directions of both estimates; forward is KL(unlearned || retrained)."""

    models: int  # the smaller of the two numbers of models
    forward: Divergence
    backward: Divergence
    gaussian_forward: Divergence
    gaussian_backward: Divergence


@dataclass(frozen=True)
class Klom:
    """`full`: all models. `halved`: unlearned against halves of the retrained; `null`: half against half."""

    full: Divergences
    halved: Divergences
    null: Divergences


def klom(unlearned: ArrayLike, retrained: ArrayLike, seed: int = 0) -> Klom:
    """KLoM of one set of samples: phi (N models, n samples) of unlearned and (M, n) of retrained models.

    `halved` and `null` have equal numbers of models, min(N, M // 2), drawn by seed. Call it for forget,
    retain and validation samples each. Raises ValueError for a wrong shape, fewer than 4 models of a kind, or
    a phi that is not finite.
    """
    first, second = margins(unlearned, "unlearned"), margins(retrained, "retrained")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"phi: {first.shape[1]} and {second.shape[1]} samples; both need the same ones.")
    few, half, other = halves(first, second, seed)
    return Klom(divergences(first, second), divergences(few, half), divergences(half, other))


def divergences(unlearned: Floats, retrained: Floats) -> Divergences:
    """All four divergences of phi (N, n) from phi (M, n), over samples."""
    return Divergences(
        models=min(len(unlearned), len(retrained)),
        forward=_over_samples(binned_kl(unlearned, retrained)),
        backward=_over_samples(binned_kl(retrained, unlearned)),
        gaussian_forward=_over_samples(gaussian_kl(unlearned, retrained)),
        gaussian_backward=_over_samples(gaussian_kl(retrained, unlearned)),
    )


def binned_kl(first: Floats, second: Floats, bins: int = BINS) -> Floats:
    """KL(first || second) per sample (n,), in nats, of phi (N, n) and (M, n). Equal sets give 0."""
    a, b = (np.clip(side, -CLIP, CLIP) for side in (first, second))
    low, high = np.minimum(a.min(axis=0), b.min(axis=0)), np.maximum(a.max(axis=0), b.max(axis=0))
    p, q = (_shares(side, low, high, bins) for side in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / np.maximum(q, FLOOR)), 0.0)
    # The floor makes q sum to a little more than 1; what that takes below 0 is not a divergence.
    divergence: Floats = np.maximum(terms.sum(axis=0), 0.0)
    return divergence


def gaussian_kl(first: Floats, second: Floats) -> Floats:
    """KL(first || second) per sample (n,), in nats, of Gaussians fitted to phi (N, n) and (M, n).

    Variances are floored at a millionth of their median, so that constant margins give a finite number.
    """
    v0, v1 = first.var(axis=0, ddof=1), second.var(axis=0, ddof=1)
    floor = variance_floor(np.concatenate([v0, v1]))
    v0, v1 = np.maximum(v0, floor), np.maximum(v1, floor)
    shift = first.mean(axis=0) - second.mean(axis=0)
    divergence: Floats = np.maximum(0.5 * (np.log(v1 / v0) + (v0 + shift**2) / v1 - 1), 0.0)
    return divergence


def halves(unlearned: Floats, retrained: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """Equally many rows, drawn by seed: of the unlearned, and of each of two disjoint halves of retrained."""
    rng = np.random.default_rng(seed)
    some, all_ = rng.permutation(len(unlearned)), rng.permutation(len(retrained))
    h = min(len(unlearned), len(retrained) // 2)
    return unlearned[some[:h]], retrained[all_[:h]], retrained[all_[h : 2 * h]]


def margins(phi: ArrayLike, what: str, least: int = MIN_MODELS) -> Floats:
    """Checked float64 copy of phi (models, samples), with at least so many models."""
    array = np.asarray(phi, dtype=np.float64)
    if array.ndim != 2 or len(array) < least or array.shape[1] == 0:
        raise ValueError(f"{what}: shape {array.shape} is not (models, samples), at least {least} models.")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{what}: {bad} of {array.size} phi are not finite; leave diverged models out, aloud."
        )
    return array


def _shares(values: Floats, low: Floats, high: Floats, bins: int) -> Floats:
    """Share of models in each bin, (bins, n): each column sums to 1."""
    models, samples = values.shape
    width = np.where(high > low, high - low, 1.0)
    # The largest value of all is at the right edge: it belongs to the last bin.
    bin_ = np.minimum(((values - low) / width * bins).astype(np.intp), bins - 1)
    flat = np.bincount((bin_ * samples + np.arange(samples)).ravel(), minlength=bins * samples)
    shares: Floats = flat.reshape(bins, samples) / models
    return shares


def _over_samples(values: Floats) -> Divergence:
    return Divergence(float(values.mean()), float(np.quantile(values, 0.95)))
