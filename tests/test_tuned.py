"""Winners written to a store are found again, where and only where they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import tuned
from orchestrator.store import Store
from orchestrator.tuned import Place, Winner

HERE = Place("digits", "cnn_small", "random(fraction=0.2)", "abc")
SCRUB = Winner("scrub", 1, {"learning_rate": 0.06, "rewind": True}, {"objective": "retrain_distance"})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    return Store.create(str(tmp_path / "results"))


def test_what_was_written_is_found(store: Store) -> None:
    name = tuned.write(store, HERE, [SCRUB])
    assert name.startswith("tuned/digits_cnn_small_random-fraction=0.2_")
    assert tuned.known(store) == {(HERE, "scrub", 1): SCRUB}


def test_a_later_winner_replaces_its_own_method_only(store: Store) -> None:
    finetune = Winner("finetune", 1, {"epochs": 3})
    tuned.write(store, HERE, [SCRUB, finetune])
    better = Winner("scrub", 1, {"learning_rate": 0.03, "rewind": True})
    tuned.write(store, HERE, [better])
    assert list(tuned.known(store).values()) == [finetune, better]
    assert tuned.known(store)[HERE, "scrub", 1] == better


def test_another_place_has_a_file_of_its_own(store: Store) -> None:
    """Labels that look alike in a file name are still told apart."""
    there = Place("digits", "cnn_small", "random(fraction 0.2)", "abc")
    tuned.write(store, HERE, [SCRUB])
    tuned.write(store, there, [Winner("scrub", 1, {"learning_rate": 0.5})])
    found = tuned.known(store)
    assert found[HERE, "scrub", 1].hyperparameters["learning_rate"] == 0.06
    assert found[there, "scrub", 1].hyperparameters["learning_rate"] == 0.5


def test_those_of_the_store_stand_above_the_shipped_ones(store: Store, tmp_path: Path) -> None:
    tuned.write(store, HERE, [Winner("scrub", 1, {"learning_rate": 0.9}), Winner("finetune", 1, {})])
    (tmp_path / "shipped").mkdir()
    [written] = (tmp_path / "results" / "tuned").iterdir()
    written.rename(tmp_path / "shipped" / written.name)
    tuned.write(store, HERE, [SCRUB])
    found = tuned.known(store)
    assert found[HERE, "scrub", 1] == SCRUB and (HERE, "finetune", 1) in found
    assert tuned.known(None)[HERE, "scrub", 1].hyperparameters == {"learning_rate": 0.9}


@pytest.mark.parametrize("text", ["", "[", "a: 1", "winners: 3", "dataset: d\nwinners: {}"])
def test_a_damaged_file_is_noted_and_not_fatal(store: Store, text: str) -> None:
    tuned.write(store, HERE, [SCRUB])
    store.write("tuned/odd.yaml", text.encode())
    assert (HERE, "scrub", 1) in tuned.known(store)
    assert store.damaged == ["tuned/odd.yaml"]


def test_the_shipped_files_are_read_and_name_methods_that_exist() -> None:
    from orchestrator import catalogue

    for _, method, version in tuned.known(None):
        assert catalogue.plugins("methods")[method].version == version
