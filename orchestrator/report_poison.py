"""What the report says of a cell whose forgotten samples were poisoned: GUS, and how to read the rest."""

from __future__ import annotations

import math
from typing import Any

from orchestrator import catalogue

# Columns of runs that rows show as a mean over seeds.
SEEDED = ("fa_flipped", "gus", "gus_tpr_at_1pct")
CRITICAL = 1.645  # of a standard normal, one-sided at 5 %
CLEAN = (
    "The forgotten samples were poisoned in training; accuracies, losses and φ are of the clean images with"
    " the right labels."
)


def poisons(forget: str) -> bool:
    """Whether a forget recipe, given by its label 'name(parameters)', poisons what it forgets."""
    known = catalogue.plugins("forget").get(forget.partition("(")[0])
    return known is not None and bool(known.constants.get("poisons"))


def note(rows: list[dict[str, Any]]) -> str:
    """Sentences for the caption of a cell with a space in front, empty where nothing was poisoned."""
    if not any(poisons(row["forget"]) for row in rows):
        return ""
    text = f" {CLEAN}"
    samples = max((row["gus_samples"] for row in rows if row["gus_samples"]), default=0)
    if samples:
        limit = CRITICAL / math.sqrt(samples)
        text += (
            f" GUS 0: nothing of the noise is remembered; one model of p = {samples:,} samples is found at"
            f" 5 % above 1.645/√p = {limit:.3f}."
        )
    if any(row["fa_flipped"] is not None for row in rows):
        text += " A model that remembers the wrong labels has a low FA, and forgetting raises it."
    return text


def not_shown(forget: str) -> list[str]:
    """What an audit card says a poisoned cell cannot show."""
    if not poisons(forget):
        return []
    return [f"{CLEAN} GUS detects memory of the noise, which is not memory of the image."]
