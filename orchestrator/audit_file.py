"""`lethe audit --scores FILE.npz`: U-LiRA on a matrix of scores that somebody else made."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np

from attacks import ulira
from attacks.worlds import FORGET, OUT, RETAIN, world
from orchestrator import audit_attacks
from orchestrator.errors import UserError, nearest
from orchestrator.report_card import few_pairs, few_samples

# What numpy.load raises, by what is wrong: a TypeError is the .npy file of one array, a TokenError a header
# that is no longer text.
NOT_ARRAYS = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, ValueError, TypeError, EOFError)
WORLDS = ("forgotten", "never", "retrained")
MATRIX = ("phi", "state", "pair")
RETRAINED = tuple(f"retrained_{name}" for name in MATRIX)
KNOWN = (*WORLDS, *MATRIX, *RETRAINED)
SHAPE = "φ (pairs, samples), or (views, pairs, samples); NaN where a score is missing"
FORMS = (
    f"Either two or three of {', '.join(WORLDS)}, each {SHAPE}; or {', '.join(MATRIX)} (and"
    f" {', '.join(RETRAINED)}): φ (models, samples), states (models, samples) with {OUT} never in, {RETAIN}"
    f" retained, {FORGET} forgotten, and the id of each model's pair of bases (models,)."
)


def rows(path: str) -> list[dict[str, Any]]:
    """One row per comparison that the arrays of the file allow; UserError for anything else in it."""
    arrays = _load(path)
    try:
        found = ulira.ulira(**(_worlds(arrays) if "phi" in arrays else {"forgotten": None} | arrays))
    except ValueError as error:
        raise UserError(f"{path}  {error}") from None
    return [_row(name, comparison) for name, comparison in found.items()]


def _load(path: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except NOT_ARRAYS:
        raise UserError(f"{path}: not an .npz file of plain arrays (numpy.savez writes one).") from None
    unknown = [name for name in arrays if name not in KNOWN]
    if unknown:
        raise UserError(f"{path}  {unknown[0]}: unknown array.{nearest(unknown[0], KNOWN)} {FORMS}")
    worlds, matrix, retrained = (arrays.keys() & set(form) for form in (WORLDS, MATRIX, RETRAINED))
    whole = all(len(part) in (0, 3) for part in (matrix, retrained)) and (matrix or not retrained)
    if not whole or bool(matrix) == bool(worlds) or (worlds and len(worlds) < 2):
        raise UserError(f"{path}: holds {', '.join(arrays) or 'none'}. {FORMS}")
    for name, array in arrays.items():
        if name.endswith(("state", "pair")):
            continue
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}  {name}: dtype {array.dtype}; real numbers are needed, φ.")
    return arrays


def _worlds(arrays: dict[str, Any]) -> dict[str, Any]:
    """The worlds of a matrix with states; ValueError for a state that there is not."""
    for name in ("state", "retrained_state"):
        strange = np.setdiff1d(arrays.get(name, OUT), (OUT, RETAIN, FORGET))
        if strange.size:
            raise ValueError(
                f"{name}: value {strange[0]}; allowed are {OUT} (never in), {RETAIN} (retained) and {FORGET}"
                " (forgotten)."
            )
    phi, state, pair = (arrays[name] for name in MATRIX)
    found = {"forgotten": world(phi, state == FORGET, pair), "never": world(phi, state == OUT, pair)}
    if "retrained_phi" in arrays:
        phi, state, pair = (arrays[name] for name in RETRAINED)
        found["retrained"] = world(phi, state == OUT, pair, ids=arrays["pair"])
    return found


def _row(comparison: str, found: ulira.Comparison) -> dict[str, Any]:
    tpr = found.tpr[0.01]
    names = ("pairs", "samples", "n_positive", "n_negative", "auc", "auc_low", "auc_high")
    facts = {name: getattr(found, name) for name in (*names, "balanced_accuracy", "loss_auc", "collapsed")}
    facts |= {f"nu0_{side}": _finite(getattr(found, f"nu0_{side}")) for side in ("positive", "negative")}
    if comparison.startswith("forgotten"):
        facts |= audit_attacks.thresholds(found.llr_positive, found.llr_negative)
    return (
        {"comparison": comparison}
        | facts
        | {
            "tpr_at_1pct": tpr.tpr if tpr.supported else None,
            "fpr_at_1pct": tpr.fpr,
            "false_positives_at_1pct": tpr.false_positives,
        }
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_text(found: list[dict[str, Any]]) -> str:
    """A line per comparison, and what makes their intervals doubtful."""
    lines = []
    for row in found:
        tpr = "n/a" if row["tpr_at_1pct"] is None else f"{row['tpr_at_1pct']:.3f}"
        lines.append(
            f"{row['comparison']:<24} AUC {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
            f"  TPR at 1 % FPR {tpr}  loss threshold {row['loss_auc']:.3f}"
            f"  ({row['pairs']} pairs, {row['samples']:,} samples, {row['n_positive']:,} scores a world)"
        )
    pairs, samples = (min(row[name] for row in found) for name in ("pairs", "samples"))
    return "\n".join([*lines, *few_pairs(pairs), *few_samples(samples)])
