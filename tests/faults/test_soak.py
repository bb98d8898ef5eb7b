"""Minutes of random faults; LETHE_SOAK_MINUTES says how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MINUTES = float(os.environ.get("LETHE_SOAK_MINUTES", "20"))


@pytest.mark.long
@pytest.mark.timeout(60 * (2 * MINUTES + 60))
def test_a_run_under_random_faults_ends_with_the_undisturbed_table(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from tests.faults.soak import soak

    found = soak(tmp_path, MINUTES, 64 if MINUTES >= 20 else 8, seed=1)
    assert found["exit_code"] == 0 and found["counted_twice"] == 0
    assert found["largest_difference"] <= 1e-6
    assert sum(found["faults"].values()) >= 3 * MINUTES
