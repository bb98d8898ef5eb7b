"""Where studies are kept: addresses and what is said of bad ones, damaged journals, owners."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from orchestrator import studies, torn
from orchestrator.errors import UserError
from orchestrator.samplers import distributions, make_sampler
from orchestrator.store import Store
from orchestrator.studies import Count, counts, importances, open_study, storage
from orchestrator.tune import Budget, Tuner
from tests.postgres import free_port
from tests.test_tune import SPACE, drive, search

SECRET = "hush-hush"


def refused(url: str | None = None, store: Store | None = None, **how: bool) -> str:
    with pytest.raises(UserError) as error:
        storage(store, url, **how)
    assert len(error.value.problems) == 1 and "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    return str(error.value)


# ---- addresses --------------------------------------------------------------------------------------------


def test_by_default_studies_lie_in_a_journal_of_the_results_folder(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "a b"))
    open_study(storage(store), "one", Budget())
    assert (tmp_path / "a b" / "tuning" / "journal.log").is_file()
    assert counts(storage(store, write=False)) == [Count("one", 0, 0, 0)]


def test_remote_results_ask_for_a_database() -> None:
    remote = SimpleNamespace(local=False, uri="s3://bucket/results")
    assert refused(store=remote) == (  # type: ignore[arg-type]
        "s3://bucket/results: the studies of tuning need a local results folder or a database."
        " Name one with --optuna-storage postgresql://USER@HOST/DATABASE."
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "not the address of a database. Allowed: postgresql://"),
        (
            f"mysql://me:{SECRET}@host/db",
            "mysql://me@host/db: mysql is not supported. Allowed: postgresql://",
        ),
        (f"postgresql://me:{SECRET}@host", "postgresql://me@host: names no database."),
        (f"postgresql://me:{SECRET}@host:port/db", "not the address of a database."),
    ],
)
def test_an_address_that_is_none(url: str, said: str) -> None:
    assert said in refused(url)


def test_a_server_that_is_not_there() -> None:
    port = free_port()
    said = refused(f"postgresql://me:{SECRET}@127.0.0.1:{port}/lethe")
    assert said.startswith(f"--optuna-storage postgresql://me@127.0.0.1:{port}/lethe: cannot be used (")
    assert said.endswith("Is the server running there?")


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = refused(f"postgresql://me:{SECRET}@host/lethe")
    assert said.endswith('the driver for PostgreSQL is not installed. pip install "psycopg[binary]"')


def test_an_sqlite_file_does_too_and_is_not_made_by_looking(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    assert refused(url, write=False) == f"--optuna-storage {url}: no studies yet."
    assert not (tmp_path / "studies.db").exists()
    open_study(storage(None, url), "one", Budget())
    assert [study.name for study in counts(storage(None, url, write=False))] == ["one"]
    assert "cannot be used" in refused(f"sqlite:///{tmp_path}/nowhere/studies.db")


def test_tables_of_another_optuna_are_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    storage(None, url)
    with sqlite3.connect(tmp_path / "studies.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    assert "its tables are of another version of Optuna" in refused(url)


# ---- studies ----------------------------------------------------------------------------------------------


def test_objectives_are_named_and_others_are_refused(tmp_path: Path) -> None:
    kept = storage(Store.create(str(tmp_path)))
    study = open_study(kept, "one", Budget(time=True))
    assert study.metric_names == ["retrain_distance", "wall_s"] and len(study.directions) == 2
    assert open_study(kept, "one", Budget(time=True))._study_id == study._study_id
    with pytest.raises(UserError) as error:
        open_study(kept, "one", Budget(objective="paper"))
    assert str(error.value).startswith(
        "study one: its objectives are retrain_distance, wall_s; this grid asks for gap_ra"
    )
    assert "\n" not in str(error.value)
    assert len(open_study(kept, "two", Budget(objective="paper")).directions) == 4


def test_a_study_of_other_results_is_refused(tmp_path: Path) -> None:
    kept = storage(None, f"sqlite:///{tmp_path}/studies.db")
    open_study(kept, "one", Budget(), owner="mine")
    open_study(kept, "one", Budget(), owner="mine")
    with pytest.raises(UserError, match=r"study one: it belongs to other results \(mine\)"):
        open_study(kept, "one", Budget(), owner="yours")


def test_studies_are_counted() -> None:
    one = search(Budget(trials=4))
    drive(Tuner([one]), {}, fails=lambda values: "oom" if values["rate"] == 0.5 else None)
    one.study.ask()
    assert counts(one.study._storage) == [Count("toy", 4, 1, 1)]


@pytest.mark.parametrize("goals", [1, 2, 5])
def test_importances_name_what_matters(goals: int) -> None:
    """In a world where the epochs alone decide; the last of several objectives, the seconds, is left out."""
    goal = ["minimize"] * goals
    study = optuna.create_study(directions=goal, sampler=optuna.samplers.RandomSampler(seed=3))
    flat = optuna.create_study(directions=goal)
    space = distributions(SPACE)
    for number in range(12):
        assert number > 9 or importances(study) is None
        trial = study.ask(space)
        distance = abs(trial.params["epochs"] - 8.0)
        study.tell(trial, [distance] * max(1, goals - 1) + [trial.params["rate"]] * (goals > 1))
        flat.tell(flat.ask(space), [1.0] * goals)
    found = importances(study)
    assert found is not None and found.keys() == SPACE.keys()
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "epochs" and found["epochs"] > 0.7
    assert goals > 1 or importances(study) == found  # seeded
    assert importances(flat) is None


# ---- what a kill leaves -----------------------------------------------------------------------------------


def journal(folder: Path) -> Path:
    """The journal of a finished small study."""
    kept = storage(Store.create(str(folder)))
    study = open_study(kept, "one", Budget())
    for _ in range(3):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    return folder / "tuning" / "journal.log"


TAIL = b'{"op_code":4,"worker_id":"x","study'


TAILS = {
    "cut off": TAIL,
    "zeros": b"\0" * 50,
    "line of zeros": b"\0\0\n",
    "two in one": TAIL + TAIL + b"}\n",
    "list": b"[1]\n",
    "number": b"7\n",
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
def test_a_damaged_end_is_set_aside_and_told(tmp_path: Path, tail: bytes) -> None:
    path = journal(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    said: list[str] = []
    study = open_study(storage(Store.open(str(tmp_path)), note=said.append), "one", Budget())
    assert len(study.trials) == 3 and path.read_bytes()[: len(whole)] == whole
    (kept,) = (tmp_path / "aside").iterdir()
    assert kept.read_bytes() == tail
    assert said[0].startswith(
        f"{path}: its last {len(tail)} bytes are damaged and were put into aside/{kept.name}."
    )
    study.tell(study.ask(), 0.1)  # the next write stands on a line of its own
    assert counts(storage(Store.open(str(tmp_path)), note=said.append)) == [Count("one", 4, 0, 0)]
    assert len(said) == 1


def test_from_a_damaged_line_on_everything_is_set_aside(tmp_path: Path) -> None:
    path = journal(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], b"garbage\n", *lines[-2:]]))
    with pytest.raises(UserError, match="damaged"):
        storage(Store.open(str(tmp_path)), write=False)
    assert counts(storage(Store.open(str(tmp_path)), note=lambda _: None)) == [Count("one", 2, 0, 1)]


def test_records_that_mean_nothing_are_one_line(tmp_path: Path) -> None:
    path = journal(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"op_code":99}\n')
    assert refused(store=Store.open(str(tmp_path)), write=False).startswith(f"{path}: damaged.")


def test_a_lock_left_behind_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a folder which was moved: a link into nothing, for which Optuna would wait for ever."""
    monkeypatch.setattr(studies, "LOCK_PATIENCE_S", 0.05)
    path = journal(tmp_path)
    os.symlink("/nowhere/journal.log", f"{path}.lock")
    said: list[str] = []
    open_study(storage(Store.open(str(tmp_path)), note=said.append), "two", Budget())
    assert said == [f"{path}.lock: left by a driver that was killed; removed."]


def test_readers_leave_the_journal_as_it_is(tmp_path: Path) -> None:
    path = journal(tmp_path)
    path.write_bytes(path.read_bytes() + TAIL)
    Path(f"{path}.lock").touch()
    before = path.read_bytes()
    assert counts(storage(Store.open(str(tmp_path)), write=False)) == [Count("one", 3, 0, 0)]
    assert path.read_bytes() == before and Path(f"{path}.lock").exists()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("number", [4, 13])  # before and after TPE has seen enough
def test_a_cut_off_ask_draws_what_it_would_have_drawn(sampler: str, number: int) -> None:
    whole = search(Budget(trials=number + 1, sampler=sampler, parallel=1))
    drive(Tuner([whole]), {})
    expected = whole.study.trials[number].params
    for known in range(len(SPACE)):
        study = optuna.create_study()
        study.add_trials(whole.study.trials[:number])
        asked = study._storage.create_new_trial(study._study_id)
        for name in list(SPACE)[:known]:
            space = distributions(SPACE)[name]
            study._storage.set_trial_param(asked, name, space.to_internal_repr(expected[name]), space)
        mended = torn.finish(study, distributions(SPACE), lambda n: make_sampler(sampler, "toy", n))
        assert mended == [number] and study.trials[number].params == expected
