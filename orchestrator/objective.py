"""What a tuning trial is judged by: distances of an unlearned model to the retrain of the same seed.

A row is what `runs` says of a model: ra, fa, va (accuracies on retain, forget and validation), val_auc (AUC
of the losses of forget against validation samples, ½ where they are alike), val_mia (accuracy of the
population attack with validation samples as non-members) and wall_s. The test set is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from workers.distance import gaps, root_mean_square

Row = Mapping[str, Any]
OBJECTIVES = ("retrain_distance", "paper")


def components(objective: str, row: Row, retrain: Row) -> tuple[float, ...]:
    """The four parts of an objective, each 0 at best and 1 at worst (a third of 1 for accuracies of `paper`).

    retrain_distance: |RA − RA_R|, |FA − FA_R|, |VA − VA_R| and 2·|AUC − AUC_R|. paper (arXiv 2410.01276,
    its reference implementation): a third of each accuracy gap, and |MIA − ½|/½, which has no R in it.
    """
    parts: tuple[float, ...] = gaps(row, retrain)
    if objective == "paper":
        return (*(gap / 3 for gap in parts[:3]), abs(row["val_mia"] - 0.5) / 0.5)
    return parts


def scalar(objective: str, parts: Sequence[float]) -> float:
    """One number for the parts: their root mean square (retrain_distance), their Euclidean norm (paper)."""
    return math.hypot(*parts) if objective == "paper" else root_mean_square(parts)


def mean_components(objective: str, pairs: Sequence[tuple[Row, Row]]) -> tuple[float, ...]:
    """The parts averaged over (row, retrain) of several seeds."""
    found = [components(objective, row, retrain) for row, retrain in pairs]
    return tuple(fmean(values) for values in zip(*found, strict=True))


def distance(objective: str, row: Row, retrain: Row) -> float:
    """The objective of a single row as one number."""
    return scalar(objective, components(objective, row, retrain))


def noise_floor(objective: str, retrains: Sequence[Row]) -> float | None:
    """What a perfect method would get: the mean distance of a retrain to that of another seed on the same
    split; None with fewer than two retrains.
    """
    found = [distance(objective, one, other) for one, other in combinations(retrains, 2)]
    return fmean(found) if found else None
