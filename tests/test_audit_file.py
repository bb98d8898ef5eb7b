"""`lethe audit --scores`: anybody's scores, judged as Lethe's own; bad files get one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks import ulira
from orchestrator import audit_file
from orchestrator.errors import UserError
from tests.conftest import Lethe


def worlds(pairs: int = 8, samples: int = 300) -> dict[str, np.ndarray]:
    """A method that leaves a shift of 1 and no fingerprint."""
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, samples)
    made = {name: rng.normal(size=(pairs, samples)) + hard for name in ("forgotten", "never", "retrained")}
    made["forgotten"] += 1
    return {name: array.astype(np.float32) for name, array in made.items()}


def audit(lethe: Lethe, path: Path, **arrays: Any) -> Any:
    np.savez(path, **arrays)
    return lethe("audit", "--scores", path, "--json")


def test_the_rows_are_those_of_the_library(lethe: Lethe, weird_tmp_path: Path) -> None:
    given = worlds()
    done = audit(lethe, weird_tmp_path / "s.npz", **given)
    assert done.returncode == 0, done.stderr
    rows = {row["comparison"]: row for row in json.loads(done.stdout)}
    expected = ulira.ulira(**given)
    assert rows.keys() == expected.keys() == {"forgotten_vs_retrained", "forgotten_vs_never", "fingerprint"}
    for name, row in rows.items():
        assert row["auc"] == expected[name].auc and row["auc_low"] == expected[name].auc_low
        assert row["pairs"] == 8 and row["n_positive"] == 8 * 300
    assert rows["forgotten_vs_never"]["auc_low"] > 0.6
    assert rows["fingerprint"]["auc_low"] < 0.5 < rows["fingerprint"]["auc_high"]
    text = lethe("audit", "--scores", weird_tmp_path / "s.npz").stdout
    assert text.count("AUC") == 3 and "8 pairs, 300 samples" in text


def test_two_worlds_give_one_comparison(weird_tmp_path: Path) -> None:
    given = worlds()
    for missing, left in (("never", "forgotten_vs_retrained"), ("forgotten", "fingerprint")):
        path = weird_tmp_path / "two.npz"
        np.savez(path, **{name: array for name, array in given.items() if name != missing})
        assert [row["comparison"] for row in audit_file.rows(str(path))] == [left]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forgoten": np.zeros((4, 5))}, "forgoten: unknown array. Did you mean 'forgotten'?"),
        (
            {"never": None, "retrained": None},
            "holds forgotten; two of forgotten, never, retrained are needed",
        ),
        ({"never": np.zeros((8, 4), dtype=np.float32)}, "are not one (pairs, samples) shape"),
        ({"never": np.full((8, 300), np.inf)}, "scores are infinite"),
        ({"never": np.zeros((8, 300), dtype=int)}, "never: dtype int64; real numbers are needed"),
        ({"never": np.array([{}], dtype=object)}, "not an .npz file of plain arrays"),
    ],
)
def test_bad_arrays_get_one_line(weird_tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = weird_tmp_path / "bad.npz"
    np.savez(path, **{name: array for name, array in (worlds() | change).items() if array is not None})
    with pytest.raises(UserError) as caught:
        audit_file.rows(str(path))
    (line,) = caught.value.problems
    assert message in line and "bad.npz" in line


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_none_gets_one_line(weird_tmp_path: Path, content: bytes) -> None:
    path = weird_tmp_path / "scores.npz"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        audit_file.rows(str(path))
    assert len(caught.value.problems) == 1 and "not an .npz file" in caught.value.problems[0]


def test_a_file_that_is_not_there(lethe: Lethe) -> None:
    done = lethe("audit", "--scores", "nowhere.npz")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "nowhere.npz" in done.stderr
