"""U-LiRA: per-sample likelihood-ratio audit of unlearning (Hayes et al. 2024, arXiv:2403.01218).

For each sample, two worlds: scores phi from models that forgot it, and from a reference that never saw it.
The audit is the log ratio of their predictive densities at a score from a model that neither was fitted on:

    LLR = log t_{nu0+d}(x; mean_F, shrunk_F^2 (1 + 1/k)) - log t_{nu0+d}(x; mean_R, shrunk_R^2 (1 + 1/k))

Three comparisons, because one is not enough. Forgotten vs retrained is the definition of unlearning.
Forgotten vs never-in (same unlearned models) is the game against a deployed model. Never-in vs retrained, the
fingerprint, holds nothing about the sample but says what the method does to every model: it fools the first
and is invisible to the second.

Scores may be numpy arrays, or torch tensors on one device, where everything per sample is then computed by
the same expressions. The two agree to rounding. Where phi takes few values, evidence that is equal on paper
may be a tie in one and not in the other, as it may after a change in the order of the pairs.

Limits: audit many samples. A score of pair p and one of pair q of the same sample stand in each other's fit,
which pushes their comparison below 1/2; across samples it is 1/2 by symmetry. Where nothing leaks, the AUC is
about .43 with one sample, .48 with 5, .496 with 20 (k = 8 to 32), and 1/2 from 100 on.

Deviation: moderated Student-t (see moderation.py) instead of two Gaussians; every model is scored by the
other pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from attacks.arrays import Array, Floats, Given, Mask, NumpyFloats, array, floats, host, median, namespace
from attacks.bootstrap import (
    Replicates,
    centred,
    centred_interval,
    centred_intervals,
    cluster_bootstrap,
    pair_weights,
)
from attacks.metrics import MIN_FALSE_POSITIVES, auc, balanced_accuracy, best_counts, mean_interval
from attacks.moderation import VariancePrior, log_predictive, variance_floor, variance_prior
from attacks.moments import Moments, total, without_each

name = "ulira"
label = "U-LiRA"
paper = "arXiv:2403.01218"
version = 1

MIN_PAIRS = 3  # one is scored, and a variance needs two others
ALPHAS = (0.01, 0.001)
# Where nothing leaks, the evidence is a sum over pairs p != q of products of their differences: every product
# enters twice, as "p scored by q" and as "q scored by p". A bootstrap takes the scores of p and q for
# independent and finds half of the variance (simulated: 95 % intervals of a null world cover 82 to 88 %). The
# more leaks, the less the fits matter, and the more cautious this factor is.
SHARED_FITS = math.sqrt(2)
# Dense at both ends: log-spaced towards 0, and towards 1 from 0.9 on, for axes on which both ends count.
ROC_GRID: NumpyFloats = np.union1d(np.logspace(-5, 0, 121), 1 - np.logspace(-3, -1, 31))


@dataclass(frozen=True)
class TprEstimate:
    """TPR at FPR <= alpha with its interval; `fpr` is the realised one. Not `supported`: print "n/a"."""

    alpha: float
    tpr: float
    low: float
    high: float
    fpr: float
    false_positives: int
    supported: bool


@dataclass(frozen=True, eq=False)
class Comparison:
    """One comparison of two worlds. Rates in 0-1; `_low` and `_high` are limits of a bootstrap over pairs.

    Numbers and numpy arrays, also where the scores were tensors.
    """

    pairs: int  # pairs with at least one score
    samples: int  # samples with at least one score
    n_positive: int
    n_negative: int
    auc: float
    auc_low: float
    auc_high: float
    auc_by_pair: float  # mean over pairs of the AUC within each, with Student-t limits over pairs
    auc_by_pair_low: float
    auc_by_pair_high: float
    tpr: dict[float, TprEstimate]  # keyed by alpha: 0.01 and 0.001
    balanced_accuracy: float  # at LLR = 0
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    nu0_positive: float  # prior degrees of freedom, all pairs; may be inf
    nu0_negative: float
    loss_auc: float  # one threshold on phi for all samples, on the same entries
    loss_auc_low: float
    loss_auc_high: float
    collapsed: int  # samples whose variance is below the floor in either world
    roc_fpr: NumpyFloats = field(repr=False)  # (152,), 1e-5..1, dense at both ends
    roc_tpr: NumpyFloats = field(repr=False)  # (152,), largest TPR with FPR <= roc_fpr
    roc_low: NumpyFloats = field(repr=False)
    roc_high: NumpyFloats = field(repr=False)
    auc_replicates: NumpyFloats = field(repr=False)  # (replicates,); same seed and pairs: paired
    llr_positive: NumpyFloats = field(repr=False)  # (k, n): the evidence behind it all, NaN = not scored
    llr_negative: NumpyFloats = field(repr=False)


class _Shrinkage(NamedTuple):
    """What all samples of one world say about a variance."""

    floor: float
    prior: VariancePrior


def ulira(
    forgotten: Given,
    never: Given | None = None,
    retrained: Given | None = None,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The comparisons that the given worlds allow; each world is phi (k pairs, n samples), NaN = missing, or
    phi (views, k, n) of the same fixed views of each sample, whose LLRs are averaged.

    forgotten: samples in the forget set of an unlearned model; never: samples that an unlearned model was
    never given; retrained: samples that a retrained model was never given. Keys: `forgotten_vs_retrained`,
    `forgotten_vs_never`, `fingerprint` (never vs retrained). Raises ValueError for a wrong shape, an infinite
    score, fewer than three pairs, worlds on several devices, or no sample with both worlds in three pairs.
    """
    worlds = {
        "forgotten_vs_retrained": (forgotten, retrained),
        "forgotten_vs_never": (forgotten, never),
        "fingerprint": (never, retrained),
    }
    return {
        key: compare(first, second, level=level, replicates=replicates, seed=seed)
        for key, (first, second) in worlds.items()
        if first is not None and second is not None
    }


def compare(
    positive: Given,
    negative: Given,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Comparison:
    """One comparison: phi (k, n) or (views, k, n) in the positive world against the reference world."""
    llr_high, llr_low = _mean_over_views(positive, negative)
    first = [world[0] if world.ndim == 3 else world for world in map(array, (positive, negative))]
    high, low, present, step = _worlds(*first)
    xp = namespace(high)
    scored = ~xp.isnan(llr_high)
    if not scored.any():
        raise ValueError(f"ulira: no sample has both worlds in at least {MIN_PAIRS} of {len(high)} pairs.")
    weights = pair_weights(len(high), replicates, seed)
    moments = [total(world, present) for world in (high, low)]
    shrinkages = [_shrinkage(m, step) for m in moments]
    phi = xp.where(scored, high, xp.nan), xp.where(scored, low, xp.nan)
    return Comparison(
        pairs=int(scored.any(axis=1).sum()),
        samples=int(scored.any(axis=0).sum()),
        n_positive=int(scored.sum()),
        n_negative=int(scored.sum()),
        nu0_positive=shrinkages[0].prior.nu0,
        nu0_negative=shrinkages[1].prior.nu0,
        collapsed=_collapsed(moments, shrinkages),
        llr_positive=host(llr_high),
        llr_negative=host(llr_low),
        **_loss_estimates(*phi, weights, level),
        **_estimates(llr_high, llr_low, weights, level),
    )


def judged(
    positive: Given, negative: Given, *, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """How well any attack's scores (k pairs, n) tell the two worlds apart, NaN = not scored: AUC and TPR with
    a bootstrap over pairs, as fields of `Comparison`; balanced accuracy, which is at 0, and ROC are left out.
    """
    high, low = floats(array(positive)), floats(array(negative))
    found = _estimates(high, low, pair_weights(len(high), replicates, seed), level, np.empty(0))
    return {name: value for name, value in found.items() if name.startswith(("auc", "tpr"))}


def _mean_over_views(positive: Given, negative: Given) -> tuple[Floats, Floats]:
    """`leave_pair_out` of (k, n), or its mean over the views of (views, k, n) (spec: LiRA's queries)."""
    high, low = array(positive), array(negative)
    if high.ndim != 3 or low.ndim != 3:
        return leave_pair_out(high, low)
    if high.shape != low.shape or not len(high):
        shapes = f"{tuple(high.shape)} and {tuple(low.shape)}"
        raise ValueError(f"phi: shapes {shapes} are not one (views, pairs, samples) shape.")
    xp = namespace(high, low)
    views = [leave_pair_out(h, w) for h, w in zip(high, low, strict=True)]
    first, second = (xp.mean(xp.stack(world), axis=0) for world in zip(*views, strict=True))
    return first, second


def leave_pair_out(positive: Given, negative: Given, strict: bool = True) -> tuple[Floats, Floats]:
    """LLR of every score from the other pairs only: phi (k, n) of two worlds in, their LLR (k, n) out.

    Entry [p, i] is phi of sample i in pair p. A complementary pair gives each sample exactly one score of
    each world, so leaving out the pair, and not only the model, keeps both counts equal. strict: the variance
    prior also comes from the other pairs only; otherwise from all pairs, once. NaN out: missing, or fewer
    than two other pairs. Tensors in, tensors out. Raises ValueError for a wrong shape, fewer than three
    pairs, an infinite score, or worlds that are not on one device.
    """
    high, low, present, step = _worlds(positive, negative)
    xp = namespace(high)
    llr = xp.full_like(high, xp.nan), xp.full_like(low, xp.nan)
    common = None if strict else [_shrinkage(total(world, present), step) for world in (high, low)]
    others = zip(without_each(high, present), without_each(low, present), strict=True)
    for p, moments in enumerate(others):
        scored = present[p] & (moments[0].number >= MIN_PAIRS - 1)
        if not scored.any():
            continue
        first, second = common or [_shrinkage(m, step) for m in moments]
        fit_high, fit_low = (m.take(scored) for m in moments)
        for world, out in zip((high, low), llr, strict=True):
            x = world[p, scored]
            out[p, scored] = _log_density(x, fit_high, first) - _log_density(x, fit_low, second)
    return llr


def _shrinkage(moments: Moments, step: float) -> _Shrinkage:
    usable = moments.take(moments.number >= MIN_PAIRS - 1)
    variance = usable.variance()
    size = abs(usable.mean)
    # The median: one score of 1e8 must not raise every floor. The maximum: most means may be zero.
    floor = variance_floor(variance, step * (median(size) or float(size.max())))
    return _Shrinkage(floor, variance_prior(variance.clip(min=floor), usable.number - 1))


def _log_density(x: Floats, moments: Moments, shrinkage: _Shrinkage) -> Floats:
    variance = moments.variance().clip(min=shrinkage.floor)
    return log_predictive(x, moments.mean, variance, moments.number, shrinkage.prior)


def _collapsed(moments: list[Moments], shrinkages: list[_Shrinkage]) -> int:
    below = [
        (m.number >= MIN_PAIRS) & (m.variance() < s.floor) for m, s in zip(moments, shrinkages, strict=True)
    ]
    return int((below[0] | below[1]).sum())


def _estimates(
    positive: Floats, negative: Floats, weights: NumpyFloats, level: float, grid: NumpyFloats = ROC_GRID
) -> dict[str, Any]:
    """The fields of `Comparison` that come from the LLR (k, n) of both worlds; the ROC at these FPR."""
    alphas = np.concatenate([ALPHAS, grid])
    high, low = _present(positive), _present(negative)
    true, false = best_counts(high, low, alphas)
    tpr, area, accuracy = true / len(high), auc(high, low), balanced_accuracy(high, low)
    binned, resampled = _resample(positive, negative, weights, alphas)
    clusters = _clusters(positive)

    def limits(replicates: NumpyFloats, once: NumpyFloats, exact: float) -> tuple[float, float]:
        return centred_interval(replicates, once[0], exact, clusters, level, SHARED_FITS)

    area_limits = limits(resampled.auc, binned.auc, area)
    accuracy_limits = limits(resampled.balanced_accuracy, binned.balanced_accuracy, accuracy)
    tpr_limits = centred_intervals(resampled.tpr, binned.tpr[0], tpr, clusters, level, SHARED_FITS)
    head = len(ALPHAS)
    return {
        "auc": area,
        "auc_low": area_limits[0],
        "auc_high": area_limits[1],
        "auc_replicates": centred(resampled.auc, binned.auc[0], area, SHARED_FITS),
        **_by_pair(positive, negative, level),
        "balanced_accuracy": accuracy,
        "balanced_accuracy_low": accuracy_limits[0],
        "balanced_accuracy_high": accuracy_limits[1],
        "tpr": {
            alpha: TprEstimate(
                alpha,
                float(tpr[j]),
                float(tpr_limits[j, 0]),
                float(tpr_limits[j, 1]),
                int(false[j]) / len(low),
                int(false[j]),
                alpha * len(low) >= MIN_FALSE_POSITIVES,
            )
            for j, alpha in enumerate(ALPHAS)
        },
        "roc_fpr": grid.copy(),
        "roc_tpr": tpr[head:],
        "roc_low": tpr_limits[head:, 0],
        "roc_high": tpr_limits[head:, 1],
    }


def _by_pair(positive: Floats, negative: Floats, level: float) -> dict[str, float]:
    """One AUC per pair that has scores, then their mean: no threshold is shared between models."""
    pairs = zip(positive, negative, strict=True)
    areas = [auc(_present(high), _present(low)) for high, low in pairs if len(_present(high))]
    mean, low, high = mean_interval(areas, level)
    return {"auc_by_pair": mean, "auc_by_pair_low": max(0.0, low), "auc_by_pair_high": min(1.0, high)}


def _loss_estimates(positive: Floats, negative: Floats, weights: NumpyFloats, level: float) -> dict[str, Any]:
    """The fields of `Comparison` that come from phi (k, n) itself."""
    area = auc(_present(positive), _present(negative))
    binned, resampled = _resample(positive, negative, weights, np.empty(0))
    low, high = centred_interval(resampled.auc, binned.auc[0], area, _clusters(positive), level)
    return {"loss_auc": area, "loss_auc_low": low, "loss_auc_high": high}


def _resample(
    positive: Floats, negative: Floats, weights: NumpyFloats, alphas: NumpyFloats
) -> tuple[Replicates, Replicates]:
    """(metrics under weights of one, metrics under `weights`), binned alike."""
    once = np.ones((1, weights.shape[1]))
    both = cluster_bootstrap(positive, negative, np.concatenate([once, weights]), alphas)
    return both.take(slice(0, 1)), both.take(slice(1, None))


def _present(scores: Floats) -> Floats:
    return scores[~namespace(scores).isnan(scores)]


def _clusters(scores: Floats) -> int:
    return int((~namespace(scores).isnan(scores)).any(axis=1).sum())


def _worlds(positive: Given, negative: Given) -> tuple[Floats, Floats, Mask, float]:
    """Both worlds checked and as float64, where both are present, and the relative rounding step."""
    given = array(positive), array(negative)
    xp = namespace(*given)
    high, low = map(floats, given)
    shape = tuple(high.shape)
    if high.ndim != 2 or high.shape != low.shape or shape[1] == 0:
        raise ValueError(f"phi: shapes {shape} and {tuple(low.shape)} are not one (pairs, samples) shape.")
    if len(high) < MIN_PAIRS:
        raise ValueError(f"pairs: {len(high)} is too few, at least {MIN_PAIRS}.")
    infinite = int(xp.isinf(high).sum() + xp.isinf(low).sum())
    if infinite:
        raise ValueError(
            f"phi: {infinite} of {2 * math.prod(shape)} scores are infinite; use NaN for missing."
        )
    # An entry counts only if both worlds are there: else leaving out the pair would lower the two counts of
    # the sample unequally, and the counts, which enter the density, would tell which world is being scored.
    present = ~(xp.isnan(high) | xp.isnan(low))
    return high, low, present, max(_relative_step(world) for world in given)


def _relative_step(world: Array) -> float:
    # phi is stored as float32 at best, whatever the type it arrives in.
    xp = namespace(world)
    half = (xp.float16, getattr(xp, "bfloat16", xp.float16))
    return float(xp.finfo(world.dtype if world.dtype in half else xp.float32).eps)
