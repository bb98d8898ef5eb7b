"""What the report says of the audit of a row: comparisons, per-sample figures, and the base beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.special import stdtrit

from attacks import exposed
from attacks.bootstrap import paired_difference

COMPARISONS = ("forgotten_vs_retrained", "forgotten_vs_never", "fingerprint")
TEMPLATES = ("auc_{}", "auc_by_pair_{}", "balanced_accuracy_{}", "tpr_{}_at_1pct", "tpr_{}_at_01pct")
AGAINST_BASE = tuple(
    name + end for name in ("leakage_left", "retained_delta") for end in ("", "_low", "_high")
)
PER_SAMPLE = (
    *(f"sample_auc{null}_p{percentile}" for percentile in exposed.PERCENTILES for null in ("", "_null")),
    *("exposed_found", "exposed_confirmed", "exposed_auc", "streisand", "streisand_retrained"),
)

Values = dict[str, float | None]
Curves = dict[str, dict[str, Any]]  # comparison -> its row of audits


def comparisons(curves: Curves) -> dict[str, Any]:
    """The flat columns of the comparisons; null where a comparison was not made."""
    first = next((curves[name] for name in COMPARISONS if name in curves), {})
    names = ("pairs", "samples", "n_positive", "n_negative", "missing")
    columns = {"audit_missing" if name == "missing" else name: first.get(name) for name in names}
    for comparison in COMPARISONS:
        found = curves.get(comparison, {})
        for template in (
            "auc_{}",
            "auc_by_pair_{}",
            "balanced_accuracy_{}",
            "tpr_{}_at_1pct",
            "tpr_{}_at_01pct",
        ):
            source = template.replace("_{}", "")
            for end in ("", "_low", "_high"):
                columns[template.format(comparison) + end] = finite(found.get(source + end))
        for alpha in ("1pct", "01pct"):
            columns[f"fpr_{comparison}_at_{alpha}"] = finite(found.get(f"fpr_at_{alpha}"))
            columns[f"false_positives_{comparison}_at_{alpha}"] = found.get(f"false_positives_at_{alpha}")
        for name in ("n_positive", "n_negative", "collapsed"):
            columns[f"{name}_{comparison}"] = found.get(name)
        for name in ("nu0_positive", "nu0_negative"):  # null where infinite: all variances are alike
            columns[f"{name}_{comparison}"] = finite(found.get(name))
    return columns


def against_base(curves: Curves, base: Curves) -> Values:
    """λ, the share of the base's memory of forgotten samples that is left, and by how much retained samples
    are more exposed than in the base; with paired intervals, where both were audited on the same pairs.
    """
    found: Values = {}
    for name, comparison in (
        ("leakage_left", "forgotten_vs_never"),
        ("retained_delta", "retained_vs_never"),
    ):
        mine, theirs = curves.get(comparison), base.get(comparison)
        if mine is None or theirs is None or mine["pairs"] != theirs["pairs"]:
            continue
        replicates = [np.asarray(row["auc_replicates"], dtype=np.float64) for row in (mine, theirs)]
        if name == "retained_delta":
            low, high = paired_difference(*replicates, mine["auc"] - theirs["auc"], mine["pairs"])
            found |= {name: mine["auc"] - theirs["auc"], f"{name}_low": low, f"{name}_high": high}
            continue
        left = exposed.leakage(mine["auc"], replicates[0], theirs["auc"], replicates[1], mine["pairs"])
        if left.supported:
            found |= {name: left.share, f"{name}_low": left.low, f"{name}_high": left.high}
    return found


def per_sample(curves: Curves) -> dict[str, Any]:
    """The per-sample columns of forgotten against retrained; null where it was not audited."""
    row = curves.get("forgotten_vs_retrained", {})
    return {name: row.get(name) for name in PER_SAMPLE}


def exposed_ids(curves: Curves) -> list[int]:
    """Ids of the samples confirmed as exposed, most exposed first; empty where none is or it is not known."""
    ids = curves.get("forgotten_vs_retrained", {}).get("exposed_ids")
    return [] if ids is None else [int(sample) for sample in ids]


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def interval(name: str, values: Iterable[float | None]) -> Values:
    """Mean over seeds and its 95 % Student-t interval; no interval below two seeds."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    mean, low, high = float(known.mean()), None, None
    if len(known) > 1:
        half = float(stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / math.sqrt(len(known)))
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
