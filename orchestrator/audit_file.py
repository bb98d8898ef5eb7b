"""`lethe audit --scores FILE.npz`: U-LiRA on a matrix of scores that somebody else made."""

from __future__ import annotations

import math
import zipfile
from typing import Any

import numpy as np

from attacks import ulira
from orchestrator.errors import UserError, nearest

WORLDS = ("forgotten", "never", "retrained")
SHAPE = "φ (pairs, samples), or (views, pairs, samples); NaN where a score is missing"


def rows(path: str) -> list[dict[str, Any]]:
    """One row per comparison that the arrays of the file allow; UserError for anything else in it."""
    worlds = _load(path)
    try:
        found = ulira.ulira(**worlds)
    except ValueError as error:
        raise UserError(f"{path}  {error}") from None
    return [{"comparison": name, **_row(comparison)} for name, comparison in found.items()]


def _load(path: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, AttributeError, EOFError):
        raise UserError(f"{path}: not an .npz file of plain arrays (numpy.savez writes one).") from None
    unknown = [name for name in arrays if name not in WORLDS]
    if unknown:
        raise UserError(
            f"{path}  {unknown[0]}: unknown array.{nearest(unknown[0], WORLDS)}"
            f" Allowed: {', '.join(WORLDS)}; each {SHAPE}."
        )
    if len(arrays) < 2:
        there = ", ".join(arrays) or "none"
        raise UserError(f"{path}: holds {there}; two of {', '.join(WORLDS)} are needed, each {SHAPE}.")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}  {name}: dtype {array.dtype}; real numbers are needed, {SHAPE}.")
    return {"forgotten": None} | arrays


def _row(found: ulira.Comparison) -> dict[str, Any]:
    tpr = found.tpr[0.01]
    names = ("pairs", "samples", "n_positive", "n_negative", "auc", "auc_low", "auc_high")
    facts = {name: getattr(found, name) for name in (*names, "balanced_accuracy", "loss_auc", "collapsed")}
    facts |= {f"nu0_{side}": _finite(getattr(found, f"nu0_{side}")) for side in ("positive", "negative")}
    return facts | {
        "tpr_at_1pct": tpr.tpr if tpr.supported else None,
        "fpr_at_1pct": tpr.fpr,
        "false_positives_at_1pct": tpr.false_positives,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_text(found: list[dict[str, Any]]) -> str:
    """A line per comparison."""
    lines = []
    for row in found:
        tpr = "n/a" if row["tpr_at_1pct"] is None else f"{row['tpr_at_1pct']:.3f}"
        lines.append(
            f"{row['comparison']:<24} AUC {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
            f"  TPR at 1 % FPR {tpr}  loss threshold {row['loss_auc']:.3f}"
            f"  ({row['pairs']} pairs, {row['samples']:,} samples, {row['n_positive']:,} scores a world)"
        )
    return "\n".join(lines)
