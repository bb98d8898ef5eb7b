"""`lethe audit --scores`: anybody's scores, judged as Lethe's own; bad files get one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks import ulira
from attacks.worlds import world
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
            "holds forgotten. Either two or three of forgotten, never, retrained",
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


def matrix(pairs: int = 6, samples: int = 200, sets: int = 2) -> dict[str, np.ndarray]:
    """φ of the models of complementary pairs, two forget sets a base, and a retrain for each base."""
    rng = np.random.default_rng(1)
    hard, phi, state, pair = rng.normal(3, 1, samples), [], [], []
    again: list[list[Any]] = [[], [], []]
    for p in range(pairs):
        half = rng.permutation(samples) % 2
        for base in (0, 1):
            member = half == base
            of = rng.permutation(samples) % sets
            for index in range(sets):
                states = np.where(member, np.where(of == index, 2, 1), 0)
                phi.append(hard + rng.normal(size=samples) + np.array([0.0, 2.0, 1.0])[states])
                state.append(states)
                pair.append(10 * p)
            for values, into in zip((hard + rng.normal(size=samples), state[-1], 10 * p), again, strict=True):
                into.append(values)
    made = {"phi": np.array(phi), "state": np.array(state), "pair": np.array(pair)}
    names = ("retrained_phi", "retrained_state", "retrained_pair")
    return made | {name: np.array(values) for name, values in zip(names, again, strict=True)}


def test_a_matrix_with_states_gives_the_worlds(weird_tmp_path: Path) -> None:
    given = matrix()
    path = weird_tmp_path / "matrix.npz"
    np.savez(path, **given)
    found = {row["comparison"]: row for row in audit_file.rows(str(path))}
    assert found.keys() == {"forgotten_vs_retrained", "forgotten_vs_never", "fingerprint"}
    assert found["forgotten_vs_never"]["n_positive"] == 6 * 200, "each pair forgets each sample once"
    assert found["forgotten_vs_never"]["auc"] > 0.6 and found["fingerprint"]["auc_low"] < 0.5
    assert found["forgotten_vs_never"]["epsilon_split"] > 0
    np.savez(path, **{name: array for name, array in given.items() if not name.startswith("retrained")})
    assert [row["comparison"] for row in audit_file.rows(str(path))] == ["forgotten_vs_never"]


def test_every_entry_of_a_world_is_of_a_model_that_belongs_there() -> None:
    given = matrix()
    phi = np.arange(given["phi"].size, dtype=np.float64).reshape(given["phi"].shape)
    for state in (0, 1, 2):
        found = world(phi, given["state"] == state, given["pair"])
        assert found.shape == (6, 200) and not np.isnan(found).any()
        models, samples = np.divmod(found.astype(int), 200)
        assert (samples == np.arange(200)).all()
        assert (given["pair"][models] == 10 * np.arange(6)[:, None]).all()
        assert (given["state"][models, samples] == state).all()
    none = world(phi, given["state"] == 2, given["pair"], ids=[0, 5, 10, 20, 30, 40, 50])
    assert np.isnan(none[1]).all() and np.isnan(none).sum() == 200
    phi[given["pair"] == 20] = np.nan
    assert np.isnan(world(phi, given["state"] == 2, given["pair"])[2]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "holds phi, pair"),
        ({"retrained_pair": None}, "holds phi, state"),
        ({"forgotten": np.zeros((6, 200))}, "holds phi, state"),
        ({"state": np.full((12 * 2, 200), 7)}, "state: value 7; allowed are 0 (never in)"),
        ({"pair": np.zeros(3, dtype=int)}, "pair: shape (3,) does not match 24 models"),
        ({"retrained_pair": np.full(12, 3)}, "pair: id 3 is not among the 6 pairs"),
        ({"phi": np.zeros((24, 200), dtype=int)}, "phi: dtype int64"),
    ],
)
def test_a_bad_matrix_gets_one_line(weird_tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = weird_tmp_path / "bad.npz"
    np.savez(path, **{name: array for name, array in (matrix() | change).items() if array is not None})
    with pytest.raises(UserError) as caught:
        audit_file.rows(str(path))
    (line,) = caught.value.problems
    assert message in line and "bad.npz" in line


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "audit.md").read_text()
    blocks = [part.partition("```")[0] for part in guide.split("```python\n")[1:]]
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    for block in blocks:
        exec(block, seen)
    assert (tmp_path / "scores.npz").exists()
    assert seen["found"]["forgotten_vs_retrained"].auc_low > 0.5


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


def test_files_that_are_no_archive_of_arrays_get_one_line(weird_tmp_path: Path) -> None:
    single, broken = weird_tmp_path / "single.npz", weird_tmp_path / "broken.npz"
    with single.open("wb") as file:
        np.save(file, worlds()["never"])  # numpy.save, where numpy.savez was meant
    np.savez_compressed(broken, **worlds())
    data = bytearray(broken.read_bytes())
    data[200:400] = bytes(200)
    broken.write_bytes(data)
    for path in (single, broken):
        with pytest.raises(UserError, match=r"not an \.npz file"):
            audit_file.rows(str(path))


def test_doubtful_intervals_are_told(weird_tmp_path: Path) -> None:
    path = weird_tmp_path / "few.npz"
    np.savez(path, **worlds(pairs=4, samples=20))
    few = audit_file.as_text(audit_file.rows(str(path)))
    assert "4 pairs of bases are few" in few and "20 audited samples are few" in few
    np.savez(path, **worlds())
    assert "few" not in audit_file.as_text(audit_file.rows(str(path)))
