"""What a task leaves. Here torch is not imported: the driver, which reads outcomes, needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scores:
    """φ float32 (n,) and correctness bool (n,) of every sample, the pool first; views: φ in further ones;
    columns: further scores of the image as it is by their name in evaluate.COLUMNS, float16 (n,).
    """

    phi: np.ndarray
    correct: np.ndarray
    views: tuple[np.ndarray, ...] = ()
    columns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a task leaves: its status, the columns it knows of its row, its scores, design and, for a model
    that others start from, weights.
    """

    task_id: str
    status: str
    reason: str = ""
    log: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    scores: Scores | None = None
    design: dict[str, Any] | None = None
    weights: bytes | None = None
