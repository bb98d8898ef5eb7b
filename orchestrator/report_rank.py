"""Rank, flags and Pareto front of the methods of a cell; RULE says it in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LEAKAGE, FINGERPRINT = "auc_forgotten_vs_retrained", "auc_fingerprint"
UTILITY_MARGIN = 0.1  # a method whose TA is further below that of retraining has lost its utility
MARK = 0.1  # a fingerprint AUC further from one half than this, interval and all, is a mark
UTILITY_LOST, OVER_FORGETS, MARKED = "utility lost", "over-forgetting leaks too", "leaves a mark"

RULE = (
    "Methods are ranked within a cell by the mean of two ranks: RetDev, ascending, and leakage |AUC − 0.5| of"
    " forgotten against retrained, ascending (in a cell without audit: the distance of Indisc from that of"
    " retraining; where whole classes were forgotten, RetDev alone). Equal means are ordered by RetDev; a"
    " value that is not known ranks last. A method whose TA (A_R, where whole classes were forgotten) is on"
    " average more than 0.1 below that of the retrain of the same seed is flagged “utility lost” and comes"
    " after all others. An AUC whose whole interval lies below 0.5 is flagged “over-forgetting leaks too”. A"
    " fingerprint AUC whose whole interval lies outside 0.4–0.6 is flagged “leaves a mark”: samples that were"
    " never in tell the method's models from retrained ones. A method without a finished main-track run has"
    " no rank. Base and retrain are references."
)


def flags(row: dict[str, Any]) -> list[str]:
    if row["kind"] != "unlearn":
        return []
    below, upper = row["below_retrain"], row[f"{LEAKAGE}_high"]
    lost = below is not None and below > UTILITY_MARGIN
    over = upper is not None and row[LEAKAGE] < 0.5 and upper < 0.5
    low, high = row[f"{FINGERPRINT}_low"], row[f"{FINGERPRINT}_high"]
    marked = low is not None and (low > 0.5 + MARK or high < 0.5 - MARK)
    return [UTILITY_LOST] * lost + [OVER_FORGETS] * over + [MARKED] * marked


def rank(rows: list[dict[str, Any]]) -> None:
    """Number the methods of a cell that have a finished main-track run; RULE says how."""
    ranked = [row for row in rows if row["kind"] == "unlearn" and row["n"]]
    audited = any(row[LEAKAGE] is not None for row in ranked)
    by_class = any(row["ef"] is not None for row in ranked)
    utility = _ranks([row["ret_dev"] for row in ranked])
    leakage = _ranks([None if by_class and not audited else _leakage(row, audited) for row in ranked])
    order = sorted(
        range(len(ranked)),
        key=lambda i: (UTILITY_LOST in ranked[i]["flags"], utility[i] + leakage[i], utility[i]),
    )
    for position, i in enumerate(order, 1):
        ranked[i]["rank"] = position
    for row, best in zip(ranked, _front([_costs(row) for row in ranked]), strict=True):
        row["pareto"] = best


def _leakage(row: dict[str, Any], audited: bool) -> float | None:
    """Distance of the AUC from chance; in a cell without audit, of Indisc from that of retraining."""
    value, ideal = (row[LEAKAGE], 0.5) if audited else (row["indisc"], row["indisc_retrain"])
    return None if value is None or ideal is None else abs(value - ideal)


def _ranks(values: Sequence[float | None]) -> list[float]:
    """Ascending ranks from 1, equal values share the mean of theirs, unknown ones come last."""
    filled = [math.inf if value is None else value for value in values]
    return [sum(o < v for o in filled) + (sum(o == v for o in filled) + 1) / 2 for v in filled]


def _costs(row: dict[str, Any]) -> tuple[float | None, ...]:
    """What a good method has little of: accuracy lost against retraining, audited leakage, seconds."""
    below = row["below_retrain"]
    return None if below is None else max(below, 0.0), _leakage(row, audited=True), row["wall_s"]


def _front(costs: list[tuple[float | None, ...]]) -> list[str | None]:
    """'yes' where none is as small everywhere and smaller somewhere, else 'no'; None: not all is known."""
    known = [of for of in costs if None not in of]

    def beaten(mine: tuple[Any, ...]) -> bool:
        return any(of != mine and all(a <= b for a, b in zip(of, mine, strict=True)) for of in known)

    return [None if None in of else "no" if beaten(of) else "yes" for of in costs]
