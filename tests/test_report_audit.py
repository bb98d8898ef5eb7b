"""λ, ΔAUC of retained samples and the per-sample figures, from rows of the table audits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator import report_audit
from orchestrator.report_audit import against_base, per_sample


def row(auc: float, spread: float = 0.01, pairs: int = 8, seed: int = 0) -> dict[str, Any]:
    """A row of audits; rows of one seed have replicates that move together."""
    noise = np.random.default_rng(seed).normal(0, 1, 500)
    return {"auc": auc, "pairs": pairs, "auc_replicates": (auc + spread * noise).tolist()}


def curves(never: float, retained: float, **options: Any) -> dict[str, Any]:
    return {"forgotten_vs_never": row(never, **options), "retained_vs_never": row(retained, **options)}


def test_a_base_keeps_all_of_its_leakage_and_changes_nothing() -> None:
    base = curves(0.7, 0.7)
    found = against_base(base, base)
    assert (found["leakage_left"], found["leakage_left_low"], found["leakage_left_high"]) == (1, 1, 1)
    assert (found["retained_delta"], found["retained_delta_low"], found["retained_delta_high"]) == (0, 0, 0)


def test_half_of_the_leakage_left_by_hand() -> None:
    found = against_base(curves(0.6, 0.75), curves(0.7, 0.7))
    assert found["leakage_left"] == pytest.approx(0.5)
    assert found["retained_delta"] == pytest.approx(0.05)
    assert found["leakage_left_low"] < 0.5 < found["leakage_left_high"]


def test_intervals_are_paired() -> None:
    """Replicates that move together make a narrower difference than independent ones."""
    together = against_base(curves(0.6, 0.75), curves(0.7, 0.7))
    apart = against_base(curves(0.6, 0.75, seed=1), curves(0.7, 0.7))
    widths = [found["retained_delta_high"] - found["retained_delta_low"] for found in (together, apart)]
    assert widths[0] < 0.001 < 0.03 < widths[1]


def test_no_share_of_a_leakage_that_is_not_there() -> None:
    found = against_base(curves(0.51, 0.7), curves(0.52, 0.7))  # two standard errors from ½
    assert "leakage_left" not in found and found["retained_delta"] == 0


def test_rows_of_other_pairs_are_not_compared() -> None:
    assert against_base(curves(0.6, 0.7, pairs=7), curves(0.7, 0.7)) == {}
    assert against_base({}, curves(0.7, 0.7)) == {}


def test_per_sample_figures_are_those_of_forgotten_against_retrained() -> None:
    given = {name: float(i) for i, name in enumerate(report_audit.PER_SAMPLE)}
    found = per_sample({"forgotten_vs_retrained": given, "fingerprint": {"streisand": -1.0}})
    assert found == given
    assert set(per_sample({}).values()) == {None}
