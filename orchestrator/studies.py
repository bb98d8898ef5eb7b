"""Where the studies of tuning are kept: Optuna's journal in the results folder, or a PostgreSQL server.

The journal has one writer, the driver, which holds the lock of the results folder; readers (the dashboard)
take no lock and see whole lines only. What a kill leaves of a line is set aside before the next write, since
Optuna would append to it and never read the journal again.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from orchestrator import objective
from orchestrator.errors import UserError
from orchestrator.store import ASIDE, Store, new_part
from orchestrator.tune import Budget

JOURNAL = "tuning/journal.log"
LOCK_PATIENCE_S = 2.0  # a live writer holds the journal's lock for one write
CONNECT_S = 10
PAPER = ("gap_ra_third", "gap_fa_third", "gap_va_third", "mia")  # of orchestrator/objective.components
ENOUGH = 10  # finished trials from which on importances say something
INSTALL = 'pip install "psycopg[binary]"'
Note = Callable[[str], None]

_log = logging.getLogger(__name__)


def storage(
    store: Store | None, url: str | None = None, *, write: bool = True, note: Note = _log.warning
) -> BaseStorage:
    """The storage of the studies: the database at `url`, else the journal in `store`.

    write: the caller is the one writer, holding the lock of the results folder; then the journal is made
    where there is none, and mended after a kill. note: gets one line for each thing that was mended.
    UserError, one line: a database that cannot be used, no studies to read, results that are not local.
    """
    if url is not None:
        return _database(url, write)
    if store is None:
        raise UserError("no studies named: give --results or --optuna-storage.")
    if not store.local:
        raise UserError(
            f"{store.uri}: the studies of tuning need a local results folder or a database."
            " Name one with --optuna-storage postgresql://USER@HOST/DATABASE."
        )
    path = Path(store.path(JOURNAL))
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        _free(path, note)
        mend(path, Path(store.path(ASIDE)), note)
    elif not path.is_file():
        raise UserError(f"{store.uri}: no studies yet. `lethe tune GRID --results {store.uri}` makes them.")
    try:
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except (ValueError, KeyError, TypeError, AssertionError):  # what Optuna raises on lines of another kind
        raise UserError(
            f"{path}: damaged. `lethe tune` with the same grid sets the damaged part aside and goes on."
        ) from None


# ---- the journal ------------------------------------------------------------------------------------------


def mend(path: Path, aside: Path, note: Note) -> int:
    """Cut a journal before its first damaged line and keep the rest in `aside`; the bytes that were cut.

    Trials that are cut off with it are asked for again, and answered from the ledger where they had run.
    """
    if not path.exists() or (good := _good(path)) == (size := path.stat().st_size):
        return 0
    kept = aside / f"tuning__journal-{new_part()}.log"
    aside.mkdir(parents=True, exist_ok=True)
    with path.open("rb+") as file:
        file.seek(good)
        with kept.open("wb") as copy:
            copy.write(file.read())
            copy.flush()
            os.fsync(copy.fileno())
        file.truncate(good)
        os.fsync(file.fileno())
    note(
        f"{path}: its last {size - good:,} bytes are damaged and were put into {ASIDE}/{kept.name}."
        " Finished tasks are in the ledger: their trials are told again."
    )
    return size - good


def _good(path: Path) -> int:
    """The bytes of a journal up to its first line that is cut off or no record of Optuna."""
    good = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:  # of encoding too
                return good
            if not isinstance(record, dict) or "op_code" not in record:
                return good
            good += len(line)
    return good


def _free(path: Path, note: Note) -> None:
    """Remove the journal's lock that a killed writer left; Optuna would wait half a minute for it."""
    lock = Path(f"{path}.lock")
    until = time.monotonic() + LOCK_PATIENCE_S
    while os.path.lexists(lock) and time.monotonic() < until:
        time.sleep(0.05)
    if os.path.lexists(lock):
        lock.unlink(missing_ok=True)
        note(f"{lock}: left by a driver that was killed; removed.")


# ---- databases --------------------------------------------------------------------------------------------


def _database(text: str, write: bool) -> BaseStorage:
    url = _parsed(text)
    if url.get_backend_name() == "sqlite" and not write and not Path(url.database or "").is_file():
        raise UserError(f"--optuna-storage {shown(text)}: no studies yet.")
    if url.get_backend_name() == "sqlite":
        options: dict[str, object] = {"timeout": 60}
    else:
        options = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
    try:
        with reachable(text):
            return _connect(url, options)
    except RuntimeError:  # Optuna's own check of the version of its tables
        raise UserError(
            f"--optuna-storage {shown(text)}: its tables are of another version of Optuna."
            " Make another database, or upgrade this one with `optuna storage upgrade`."
        ) from None
    except ImportError:
        raise UserError(
            f"--optuna-storage {shown(text)}: the driver for PostgreSQL is not installed. {INSTALL}"
        ) from None


def _connect(url: URL, options: dict[str, object]) -> RDBStorage:
    """Open it, and once more if another process made the tables in the same moment."""
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    engine = {"pool_pre_ping": True, "connect_args": options}
    try:
        return RDBStorage(address, engine_kwargs=engine)
    except (
        sqlalchemy.exc.IntegrityError,
        sqlalchemy.exc.ProgrammingError,
        optuna.exceptions.StorageInternalError,
    ):
        time.sleep(1)
        return RDBStorage(address, engine_kwargs=engine)


def _parsed(text: str) -> URL:
    allowed = "Allowed: postgresql://USER@HOST/DATABASE or sqlite:///FILE."
    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError(f"--optuna-storage: not the address of a database. {allowed}") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise UserError(
            f"--optuna-storage {shown(text)}: {url.get_backend_name()} is not supported. {allowed}"
        )
    if not url.database:
        raise UserError(f"--optuna-storage {shown(text)}: names no database. {allowed}")
    return url


def shown(text: str) -> str:
    """The address of a database without password and options, to be printed."""
    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "(unreadable)"
    plain = URL.create(url.drivername, url.username, None, url.host, url.port, url.database)
    return plain.render_as_string()


@contextmanager
def reachable(text: str) -> Iterator[None]:
    """Make a database that fails inside the block a UserError of one line, without the password."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise _failed(text, error.__cause__ or error) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _failed(text, error) from None


HINTS = {
    "password": "Check user and password.",
    "does not exist": "Make it with createdb and createuser, or check the name.",
    "refused": "Is the server running there?",
    "timeout": "Is the server running there?",
    "resolve": "Check the name of the host.",
    "translate host": "Check the name of the host.",
    "permission denied": "The user needs the right to make tables in it.",
}


def _failed(text: str, error: BaseException) -> UserError:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    said = " ".join((lines or [type(error).__name__])[0].split())[:300]
    password = make_url(text).password
    if password:
        said = said.replace(str(password), "***")
    hint = next((f" {advice}" for word, advice in HINTS.items() if word in said.lower()), "")
    return UserError(f"--optuna-storage {shown(text)}: cannot be used ({said.rstrip('.')}).{hint}")


# ---- studies ----------------------------------------------------------------------------------------------


def objectives(budget: Budget) -> list[str]:
    """The names of what a study minimises, one per direction."""
    parts = list(PAPER) if budget.objective == "paper" else [budget.objective]
    return parts + (["wall_s"] if budget.time else [])


def open_study(kept: BaseStorage, name: str, budget: Budget, owner: str = "") -> optuna.Study:
    """The study of that name, made where there is none.

    owner: whose it is, such as an id of the results folder: two drivers on one study would take each other's
    running trials for their own. UserError: the study has other objectives, or another owner.
    """
    wanted = objectives(budget)
    study = optuna.create_study(
        storage=kept, study_name=name, directions=["minimize"] * len(wanted), load_if_exists=True
    )
    names = study.metric_names
    if names is None and len(study.directions) == len(wanted):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(wanted)
    elif names != wanted:
        has = ", ".join(names) if names else f"{len(study.directions)} without names"
        raise UserError(
            f"study {name}: its objectives are {has}; this grid asks for {', '.join(wanted)}."
            " Use the same objective as before, or another --results folder or database."
        )
    known = study.user_attrs.get("owner")
    if owner and known not in (None, owner):
        raise UserError(f"study {name}: it belongs to other results ({known}). Use another database.")
    if owner and known is None:
        study.set_user_attr("owner", owner)
    return study


@dataclass(frozen=True)
class Count:
    """How far a study is: trials by how they ended."""

    name: str
    complete: int
    failed: int
    running: int


def counts(kept: BaseStorage) -> list[Count]:
    """All studies of a storage, by name."""
    found = []
    for study in sorted(kept.get_all_studies(), key=lambda study: study.study_name):
        states = Counter(t.state for t in kept.get_all_trials(study._study_id, deepcopy=False))
        done = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
        found.append(Count(study.study_name, done, states[TrialState.FAIL], states[TrialState.RUNNING]))
    return found


def importances(study: optuna.Study) -> dict[str, float] | None:
    """The share of each hyper-parameter in the variance of the distance, the largest first; sums to 1. None
    with fewer than 10 finished trials, or where nothing varies.

    fANOVA (Hutter, Hoos and Leyton-Brown, 2014) of the number by which trials are compared, seconds left out.
    With 10 random trials and one parameter that matters it named that one in 12 studies of 12; PED-ANOVA,
    Optuna's default, of the best tenth of the trials, in 8.
    """

    def value(trial: FrozenTrial) -> float:
        return objective.scalar("paper", trial.values[:4]) if len(trial.values) > 2 else trial.values[0]

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH or len({value(trial) for trial in done}) == 1:
        return None
    trees = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=trees, target=value)
    return {name: float(share) for name, share in found.items()} or None
