"""Attack-R and reference calibration: how does the target compare with models without the sample?

    attack_r      share of OUT models with p(x | target) >= p(x | OUT model)  Ye et al. 2022, arXiv:2111.09679
    watson        phi - mean_OUT                                        Watson et al. 2022, arXiv:2111.08440
    sablayrolles  phi - (mean_IN + mean_OUT) / 2                  Sablayrolles et al. 2019, arXiv:1908.11229

With k OUT models `attack_r` has k + 1 values and resolves no FPR below 1 / k; its refinement by a t-tail is
`attacks.lira.offline_1s`. The two others correct the difficulty of a sample, but not its spread.
Deviation: `watson` and `sablayrolles` take phi where the papers take the loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from attacks.inputs import Floats, Mask, membership, scores
from attacks.moments import total

name = "attack_r"
label = "Attack-R"
paper = "arXiv:2111.09679"
version = 1


def attack_r(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> Floats:
    """Scores (n,) in 0-1; target phi (n,), shadow phi (models, n), member (models, n), True = trained on.

    NaN = missing; a sample without an OUT model is NaN. The target must not be one of the shadows. Raises
    ValueError for a wrong shape or an infinite score.
    """
    x, refs, inside = _inputs(target, shadow, member)
    out = ~inside & ~np.isnan(refs)
    number = out.sum(axis=0)
    share = (out & (x >= refs)).sum(axis=0) / np.maximum(number, 1)
    return np.where(np.isnan(x) | (number == 0), np.nan, share)


def worlds_leave_pair_out(positive: ArrayLike, negative: ArrayLike) -> tuple[Floats, Floats]:
    """`attack_r` (k, n) of both worlds, the OUT models being the negative world of the other pairs.

    phi (k pairs, n), NaN = missing; an entry counts if both worlds are there. Raises ValueError for a wrong
    shape or an infinite score.
    """
    high, low = scores(positive, "phi", (2,)), scores(negative, "phi", (2,))
    if high.shape != low.shape:
        raise ValueError(f"phi: shapes {high.shape} and {low.shape} are not one (pairs, samples) shape.")
    here = ~(np.isnan(high) | np.isnan(low))
    out = np.full((2, *here.shape), np.nan)
    for p in range(len(here)):
        known = here.copy()
        known[p] = False  # never the pair itself
        number = known.sum(axis=0)
        for world, score in zip((high, low), out, strict=True):
            below = (known & (world[p] >= low)).sum(axis=0)
            score[p] = np.where(here[p] & (number > 0), below / np.maximum(number, 1), np.nan)
    return out[0], out[1]


def watson(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> Floats:
    """target phi minus the mean of the OUT models, (n,), in units of phi; arguments as `attack_r`."""
    x, refs, inside = _inputs(target, shadow, member)
    return x - _mean(refs, ~inside)


def sablayrolles(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> Floats:
    """target phi minus the middle of the IN and OUT means, (n,), in units of phi; arguments as `attack_r`.

    NaN also without an IN model.
    """
    x, refs, inside = _inputs(target, shadow, member)
    return x - 0.5 * (_mean(refs, inside) + _mean(refs, ~inside))


def _mean(refs: Floats, use: Mask) -> Floats:
    moments = total(refs, use & ~np.isnan(refs))
    return np.where(moments.number > 0, moments.mean, np.nan)


def _inputs(target: ArrayLike, shadow: ArrayLike, member: ArrayLike) -> tuple[Floats, Floats, Mask]:
    x, refs = scores(target, "target", (1,)), scores(shadow, "shadow", (2,))
    if refs.shape[1:] != x.shape:
        raise ValueError(f"shadow: shape {refs.shape} does not match target {x.shape}.")
    return x, refs, membership(member, refs.shape)
