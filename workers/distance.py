"""How far a model is from the retrain of its seed, without the test set. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ACCURACIES = ("ra", "fa", "va")


def gaps(row: Mapping[str, Any], retrain: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """|RA − RA_R|, |FA − FA_R|, |VA − VA_R| and 2·|AUC − AUC_R|, each in 0–1; AUC is `val_auc`, of the losses
    of forget against validation samples.
    """
    ra, fa, va = (abs(row[name] - retrain[name]) for name in ACCURACIES)
    return ra, fa, va, 2 * abs(row["val_auc"] - retrain["val_auc"])


def root_mean_square(parts: Sequence[float]) -> float:
    return math.sqrt(math.fsum(part * part for part in parts) / len(parts))
