"""LiRA, the per-sample likelihood-ratio attack (Carlini et al. 2022, arXiv:2112.03570).

Models that trained on a sample (IN) and models that did not (OUT) give two laws of its score phi; the attack
on a further model is the log ratio of their densities at its score:

    online      LLR = log f(x; mean_IN, s_IN^2) - log f(x; mean_OUT, s_OUT^2)
    offline_1s  -log P(X >= x | OUT)       trained on = higher than models without the sample
    offline_2s  -log f(x | OUT)            unusual to either side, which also finds over-forgetting

`variance` is `moderated` (f = Student-t prediction, see moderation.py), `per_sample` (f = Gaussian) or
`global` (f = Gaussian, one variance per world, each sample centred on its own mean first). Views of a sample
are combined by the `mean` of their LLRs, or by a `joint` Gaussian: covariance D_i R D_i with D_i the
per-sample deviations by `variance`, and R the correlation of the centred residuals of all samples, shrunk
towards the identity (Ledoit and Wolf 2004; Schafer and Strimmer 2005, doi:10.2202/1544-6115.1175).

Deviation: moderated Student-t by default; unbiased variances; floors instead of 1e-30; offline scores are
t-tails on a log scale, which do not saturate; the plain `global` variance of public code is not centred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.special import log_ndtr, stdtr

from attacks.inputs import membership, pair_rows, relative_step, scores
from attacks.moderation import (
    VariancePrior,
    log_predictive,
    moderated_variance,
    variance_floor,
    variance_prior,
)
from attacks.moments import Floats, Mask, Moments, total, without_each

name = "lira"
label = "LiRA"
paper = "arXiv:2112.03570"
version = 1

Rows = NDArray[np.intp]

VARIANCES = ("moderated", "per_sample", "global")
COMBINATIONS = ("mean", "joint")
MIN_MODELS = 2  # per world, for a variance
MIN_PAIRS = 3  # one is scored, and a variance needs two others
MIN_SHRINKAGE = 1e-6  # two equal views still have a covariance with an inverse
FAR_TAIL = 1e-290  # below, a t-tail is not representable and its asymptote is used


class _View(NamedTuple):
    """One world in one view: what each sample says, and what all samples say about a variance."""

    moments: Moments
    floor: float
    prior: VariancePrior
    predictive: bool  # Student-t prediction; else a Gaussian with the estimates put in

    def variance(self) -> Floats:
        """Shrunk variance (n,)."""
        m = self.moments
        return moderated_variance(np.maximum(m.variance(), self.floor), m.number - 1, self.prior)

    def scale2(self) -> Floats:
        """Squared scale of the density of a new score, (n,)."""
        return self.variance() * (1 + 1 / self.moments.number if self.predictive else 1.0)

    def log_density(self, x: Floats) -> Floats:
        """Log density of x (..., n)."""
        m = self.moments
        if self.predictive:
            return log_predictive(x, m.mean, np.maximum(m.variance(), self.floor), m.number, self.prior)
        s2 = self.scale2()
        density: Floats = -0.5 * (np.log(2 * math.pi * s2) + np.square(x - m.mean) / s2)
        return density

    def surprise(self, x: Floats) -> Floats:
        """-log P(X >= x) of x (..., n) by the t prediction."""
        m = self.moments
        z = (x - m.mean) / np.sqrt(self.scale2())
        return -_log_upper_tail(z, self.prior.nu0 + m.number - 1)


class _Fit(NamedTuple):
    """One world: its views, and for a joint density the Cholesky factor (Q, Q) of their correlation."""

    views: list[_View]
    root: Floats | None

    def usable(self) -> Mask:
        return self.views[0].moments.number >= MIN_MODELS

    def take(self, mask: Mask) -> _Fit:
        return _Fit([v._replace(moments=v.moments.take(mask)) for v in self.views], self.root)

    def log_density(self, x: Floats) -> Floats:
        """Log density of x (..., Q, n): the mean over views, or the joint one -> (..., n)."""
        if self.root is None:
            each = [view.log_density(x[..., q, :]) for q, view in enumerate(self.views)]
            return np.asarray(np.mean(each, axis=0))
        scale = np.sqrt([view.scale2() for view in self.views])
        z = (x - np.array([view.moments.mean for view in self.views])) / scale
        flat = np.moveaxis(z, -2, 0)
        white = solve_triangular(self.root, flat.reshape(len(flat), -1), lower=True).reshape(flat.shape)
        constant = np.log(scale).sum(axis=0) + np.log(np.diag(self.root)).sum()
        constant += 0.5 * len(flat) * math.log(2 * math.pi)
        joint: Floats = -0.5 * np.square(white).sum(axis=0) - constant
        return joint

    def surprise(self, x: Floats, sides: int) -> Floats:
        """Offline score of x (..., Q, n), averaged over views -> (..., n)."""
        columns = [x[..., q, :] for q in range(len(self.views))]
        if sides == 1:
            each = [view.surprise(column) for view, column in zip(self.views, columns, strict=True)]
        else:
            each = [-view.log_density(column) for view, column in zip(self.views, columns, strict=True)]
        return np.asarray(np.mean(each, axis=0))


def online(
    target: ArrayLike,
    shadow: ArrayLike,
    member: ArrayLike,
    *,
    variance: str = "moderated",
    combine: str = "mean",
) -> Floats:
    """LLR (n,) or (targets, n) of target phi; shadow phi (models, n) or (models, Q, n), member (models, n).

    target has the shape of shadow, or of one of its models. NaN = missing: a score with a missing view does
    not count, and the LLR of a sample with fewer than two IN or two OUT models is NaN. The target must not be
    one of the shadows. Raises ValueError for a wrong shape, an infinite score or an unknown option.
    """
    _check_options(variance, combine)
    x, refs, inside, step = _plain(target, shadow, member)
    here = ~np.isnan(refs).any(axis=1)
    fits = [_fit(refs, here & world, variance, combine, step) for world in (inside, ~inside)]
    out = np.full((len(x), x.shape[2]), np.nan)
    usable = fits[0].usable() & fits[1].usable()
    first, second = (fit.take(usable) for fit in fits)
    out[:, usable] = first.log_density(x[:, :, usable]) - second.log_density(x[:, :, usable])
    return out[0] if np.ndim(target) < np.ndim(shadow) else out


def offline_1s(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> Floats:
    """-log P(X >= target | OUT), from OUT models only; shapes and errors as `online`. Rises in x."""
    return _offline(target, shadow, member, 1)


def offline_2s(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> Floats:
    """-log density of the target under OUT models; shapes and errors as `online`. Low scores count too."""
    return _offline(target, shadow, member, 2)


def leave_pair_out(
    phi: ArrayLike,
    member: ArrayLike,
    pair: ArrayLike,
    *,
    variance: str = "moderated",
    combine: str = "mean",
) -> Floats:
    """LLR (models, n) of every model from the other pairs; phi (models, n) or (models, Q, n), pair (models,).

    member (models, n). A pair counts for the samples that exactly one of its models trained on; elsewhere,
    and where a view is missing, the LLR is NaN. Everything fitted comes from the other pairs. ValueError for
    a wrong shape, under three pairs, one of other than two models, an infinite score, an unknown option.
    """
    worlds, rows, inside = _pair_worlds(phi, member, pair)
    high, low = worlds_leave_pair_out(*worlds, variance=variance, combine=combine)
    return _to_models(high, low, rows, inside)


def offline_leave_pair_out(phi: ArrayLike, member: ArrayLike, pair: ArrayLike, sides: int = 1) -> Floats:
    """Offline score (models, n) of every model from the other pairs' OUT models; as `leave_pair_out`."""
    worlds, rows, inside = _pair_worlds(phi, member, pair)
    return _to_models(*offline_worlds_leave_pair_out(*worlds, sides=sides), rows, inside)


def worlds_leave_pair_out(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    fitted: tuple[ArrayLike, ArrayLike] | None = None,
    variance: str = "moderated",
    combine: str = "mean",
) -> tuple[Floats, Floats]:
    """LLR (k, n) of both worlds, each pair scored by the others; phi (k pairs, n) or (k, Q views, n).

    fitted: the IN and OUT worlds the densities come from, where they are not the two that are scored, as for
    an attacker who knows models before unlearning only. One view, no option: `ulira.leave_pair_out`.
    """
    _check_options(variance, combine)
    high, low, present, step, own = _scored_and_fitted(positive, negative, fitted)
    out = np.full((2, *present.shape), np.nan)
    fits = (_each_fit(world, own[2], variance, combine, step) for world in own[:2])
    for p, (first, second) in enumerate(zip(*fits, strict=True)):
        scored = present[p] & first.usable()
        if not scored.any():
            continue
        first, second = first.take(scored), second.take(scored)
        for world, llr in zip((high, low), out, strict=True):
            x = world[p][:, scored]
            llr[p, scored] = first.log_density(x) - second.log_density(x)
    return out[0], out[1]


def offline_worlds_leave_pair_out(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    fitted: tuple[ArrayLike, ArrayLike] | None = None,
    sides: int = 1,
) -> tuple[Floats, Floats]:
    """`offline_1s` or `offline_2s` (k, n), as sides is 1 or 2, of both worlds from the other pairs' negative
    world; else as `worlds_leave_pair_out`.
    """
    if sides not in (1, 2):
        raise ValueError(f"sides: {sides} is not allowed; 1 or 2.")
    high, low, present, step, own = _scored_and_fitted(positive, negative, fitted)
    out = np.full((2, *present.shape), np.nan)
    for p, fit in enumerate(_each_fit(own[1], own[2], "moderated", "mean", step)):
        scored = present[p] & fit.usable()
        if scored.any():
            for world, target in zip((high, low), out, strict=True):
                target[p, scored] = fit.take(scored).surprise(world[p][:, scored], sides)
    return out[0], out[1]


def shrunk_correlation(products: Floats, squared: Floats, number: int) -> Floats:
    """Correlation (Q, Q) shrunk towards the identity, from sums over `number` centred rows z.

    products = sum of z z', squared = sum of (z z')^2 elementwise. The weight of the identity is
    sum Var(r_ab) / sum r_ab^2 over a != b, within 1e-6..1 (Schafer and Strimmer 2005).
    """
    variance = np.diag(products) / number
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))  # a constant view is correlated with none
    both = np.outer(deviation, deviation)
    r = products / number / both
    noise = (squared / number / both**2 - r**2) / number
    apart = ~np.eye(len(r), dtype=bool)
    signal = float(np.square(r[apart]).sum())
    weight = min(1.0, max(MIN_SHRINKAGE, float(noise[apart].sum()) / signal if signal > 0 else 1.0))
    return np.where(apart, (1 - weight) * r, 1.0)


def _offline(target: ArrayLike, shadow: ArrayLike, member: ArrayLike, sides: int) -> Floats:
    x, refs, inside, step = _plain(target, shadow, member)
    fit = _fit(refs, ~inside & ~np.isnan(refs).any(axis=1), "moderated", "mean", step)
    usable = fit.usable()
    out = np.full((len(x), x.shape[2]), np.nan)
    out[:, usable] = fit.take(usable).surprise(x[:, :, usable], sides)
    return out[0] if np.ndim(target) < np.ndim(shadow) else out


def _fit(refs: Floats, here: Mask, variance: str, combine: str, step: float) -> _Fit:
    """The world of phi (models, Q, n) where here (models, n)."""
    moments = [total(refs[:, q], here) for q in range(refs.shape[1])]
    if not (moments[0].number >= MIN_MODELS).any():
        raise ValueError(f"member: no sample has {MIN_MODELS} models of each world that is needed.")
    return _with_root([_view(m, variance, step) for m in moments], refs, here, combine)


def _each_fit(world: Floats, present: Mask, variance: str, combine: str, step: float) -> Iterator[_Fit]:
    """For every pair of phi (k, Q, n): the world of all the other pairs."""
    per_view = zip(*(without_each(world[:, q], present) for q in range(world.shape[1])), strict=True)
    for p, moments in enumerate(per_view):
        others = present.copy()
        others[p] = False
        views = [_view(m, variance, step) for m in moments]
        yield _with_root(views, world, others, combine)


def _view(moments: Moments, variance: str, step: float) -> _View:
    usable = moments.take(moments.number >= MIN_MODELS)
    if not usable.number.size:
        return _View(moments, 1.0, VariancePrior(0.0, 1.0), variance == "moderated")
    own, size = usable.variance(), np.abs(usable.mean)
    # The median: one score of 1e8 must not raise every floor. The maximum: most means may be zero.
    floor = variance_floor(own, step * float(np.median(size) or size.max()))
    if variance == "moderated":
        return _View(moments, floor, variance_prior(np.maximum(own, floor), usable.number - 1), True)
    # Squares are around the mean of each sample, never around the mean of all.
    pooled = max(floor, float(usable.squares.sum() / (usable.number - 1).sum()))
    return _View(moments, floor, VariancePrior(math.inf if variance == "global" else 0.0, pooled), False)


def _with_root(views: list[_View], values: Floats, here: Mask, combine: str) -> _Fit:
    fit = _Fit(views, None)
    usable = fit.usable()
    if combine == "mean" or not usable.any():
        return fit
    mean = np.array([v.moments.mean for v in views])[:, usable]
    spread = np.sqrt([v.variance() for v in fit.take(usable).views])
    columns = slice(None) if usable.all() else np.flatnonzero(usable)
    q, number = len(views), 0
    products, squared = np.zeros((q, q)), np.zeros((q, q))
    for row, mask in zip(values, here, strict=True):
        used = mask & usable
        if not used.any():
            continue
        z = np.where(used[usable], (row[:, columns] - mean) / spread, 0.0)
        products += z @ z.T
        squared += (z * z) @ (z * z).T
        number += int(used.sum())
    return _Fit(views, np.linalg.cholesky(shrunk_correlation(products, squared, number)))


def _log_upper_tail(z: Floats, nu: Floats) -> Floats:
    """log P(T_nu > z) for nu (n,), inf = normal; finite for finite z; error < 1 / z^2 for z > 37."""
    nu = np.broadcast_to(nu, z.shape)
    if np.isinf(nu).all():
        return np.asarray(log_ndtr(-z))
    tail = stdtr(nu, -z)
    far = tail < FAR_TAIL
    # Below zero, log P is the small number -P(T <= z); 1 - P would lose it.
    found = np.where(z < 0, np.log1p(-np.minimum(stdtr(nu, z), 0.5)), np.log(np.where(far, 1.0, tail)))
    if far.any():
        x, v = z[far], nu[far]
        one = VariancePrior(0.0, 1.0)
        # Unit scale: a variance that the prediction of v + 1 scores widens to one.
        density = log_predictive(x, np.zeros(x.size), 1 / (1 + 1 / (v + 1)), v + 1, one)
        found[far] = density + np.log((v + x * x) / (v * x))
    return found


def _plain(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> tuple[Floats, Floats, Mask, float]:
    """target (targets, Q, n), shadow (models, Q, n), member (models, n), relative step."""
    refs = scores(shadow, "shadow", (2, 3))
    x = scores(target, "target", (refs.ndim - 1, refs.ndim))
    x = x if x.ndim == refs.ndim else x[None]
    if x.shape[1:] != refs.shape[1:]:
        raise ValueError(f"target: shape {x.shape[1:]} of a model does not match shadow {refs.shape[1:]}.")
    inside = membership(member, (refs.shape[0], refs.shape[-1]))
    if refs.ndim == 2:
        x, refs = x[:, None], refs[:, None]
    return x, refs, inside, relative_step(shadow)


def _worlds(positive: ArrayLike, negative: ArrayLike) -> tuple[Floats, Floats, Mask, float]:
    """Both worlds as (k, Q, n), where both are present in all views (k, n), and the relative step."""
    high, low = scores(positive, "phi", (2, 3)), scores(negative, "phi", (2, 3))
    if high.shape != low.shape:
        raise ValueError(f"phi: shapes {high.shape} and {low.shape} are not one shape.")
    if len(high) < MIN_PAIRS:
        raise ValueError(f"pairs: {len(high)} is too few, at least {MIN_PAIRS}.")
    if high.ndim == 2:
        high, low = high[:, None], low[:, None]
    # Both or none: else leaving out the pair changes the two counts unequally, which tells the world.
    present = ~(np.isnan(high) | np.isnan(low)).any(axis=1)
    return high, low, present, relative_step(positive, negative)


def _scored_and_fitted(
    positive: ArrayLike, negative: ArrayLike, fitted: tuple[ArrayLike, ArrayLike] | None
) -> tuple[Floats, Floats, Mask, float, tuple[Floats, Floats, Mask]]:
    """`_worlds` of the scores, and (IN, OUT, present) of those that are fitted, here the same by default."""
    high, low, present, step = _worlds(positive, negative)
    if fitted is None:
        return high, low, present, step, (high, low, present)
    inside, outside, known, fine = _worlds(*fitted)
    if inside.shape != high.shape:
        raise ValueError(f"fitted: shape {inside.shape} does not match phi {high.shape}.")
    return high, low, present, max(step, fine), (inside, outside, known)


def _pair_worlds(
    phi: ArrayLike, member: ArrayLike, pair: ArrayLike
) -> tuple[tuple[Floats, Floats], Rows, Mask]:
    """((IN, OUT) as (pairs, [Q,] n), rows (pairs, 2), member); NaN where a pair is not complementary."""
    scores(given := np.asarray(phi), "phi", (2, 3))
    inside = membership(member, (given.shape[0], given.shape[-1]))
    rows = pair_rows(pair, len(given))
    a, b = rows.T
    first, apart = inside[a], inside[a] != inside[b]
    if given.ndim == 3:
        first, apart = first[:, None], apart[:, None]
    missing = np.array(np.nan, dtype=given.dtype)
    high, low = (np.where(apart, np.where(first == w, given[a], given[b]), missing) for w in (True, False))
    return (high, low), rows, inside


def _to_models(high: Floats, low: Floats, rows: Rows, inside: Mask) -> Floats:
    """Scores (pairs, n) of the IN and of the OUT world back to the models, (models, n)."""
    out = np.empty(inside.shape)
    for column in rows.T:
        out[column] = np.where(inside[column], high, low)
    return out


def _check_options(variance: str, combine: str) -> None:
    if variance not in VARIANCES:
        raise ValueError(f"variance: {variance!r} is unknown; allowed: {', '.join(VARIANCES)}.")
    if combine not in COMBINATIONS:
        raise ValueError(f"combine: {combine!r} is unknown; allowed: {', '.join(COMBINATIONS)}.")
