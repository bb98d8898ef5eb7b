"""Tuning runs that are killed in the middle of a write: a journal, and a real PostgreSQL server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from orchestrator import dashboard
from orchestrator.catalogue import ROOT
from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.studies import Count, counts, storage
from orchestrator.tune import Budget, Tuner
from tests import postgres
from tests.test_tune import drive, search, subject

TOGETHER = """
import os, sys
from orchestrator.studies import open_study, storage
from orchestrator.store import Store
from orchestrator.tune import Budget
import optuna
url = sys.argv[1]
def work(start):
    kept = storage(None, url) if "://" in url else storage(Store(url), note=print)
    study = open_study(kept, "shared", Budget())
    for step in range(6):
        trial = study.ask({"x": optuna.distributions.IntDistribution(0, 1000)})
        study.tell(trial, trial.params["x"] + start)
children = []
for start in (0.25, 0.75):
    if not (child := os.fork()):
        code = 1
        try:
            work(start)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
"""


def child(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def tuned(folder: Path, url: str, trials: int, count: int, *kills: int) -> dict[str, Any]:
    """What a run of two studies, or one, ends with that is killed in its writes of these numbers."""
    words = (str(folder), url, "tpe", str(trials), str(count), "0", *map(str, kills))
    found: dict[str, Any] = json.loads(child("tests/studies_child.py", *words).splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


def assert_nothing_lost_or_doubled(found: dict[str, Any], trials: int, folder: Path) -> None:
    """As a run of the same studies that was left alone, and no task ran twice."""
    for name in found:
        alone = search(Budget(trials=trials, parallel=1), of=subject(name))
        drive(Tuner([alone]), {})
        assert [number for number, *_ in found[name]["trials"]] == list(range(trials))
        for (_, state, params, values), expected in zip(
            found[name]["trials"], alone.study.trials, strict=True
        ):
            assert (state, params) == ("COMPLETE", pytest.approx(expected.params, rel=1e-12))
            assert values == pytest.approx(expected.values, rel=1e-12)
        assert alone.result is not None
        assert found[name]["winner"] == pytest.approx(alone.result.winner, rel=1e-12)
    ids = [json.loads(line)["id"] for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids))


def test_a_journal_that_is_killed_in_its_writes(tmp_path: Path) -> None:
    kills = range(1, 15)  # so that each kind of write is cut off
    found = tuned(tmp_path, "-", 12, 2, *kills)  # the first ten trials of TPE are random
    assert len(found) == 2
    assert_nothing_lost_or_doubled(found, 12, tmp_path)
    assert len(list((tmp_path / "aside").iterdir())) == len(kills)


def test_a_database_that_is_killed_in_its_writes(tmp_path: Path, server: str) -> None:
    found = tuned(tmp_path, server, 5, 1, 5, 7, 10)
    assert_nothing_lost_or_doubled(found, 5, tmp_path)
    kept = counts(storage(None, server))
    assert all(Count(name, 5, 0, 0) in kept for name in found)
    with dashboard.server(dashboard.opened("", server), "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with urlopen(f"{dashboard.address(running, '127.0.0.1')}api/studies", timeout=20) as answer:
            shown = {study["study_name"] for study in json.load(answer)["study_summaries"]}
        running.shutdown()
    assert shown >= found.keys()


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_two_processes_at_once_lose_no_trial(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server") if kind == "postgresql" else str(tmp_path)
    child("-c", TOGETHER, url)
    kept = storage(None, url) if kind == "postgresql" else storage(Store(url))
    study = next(study for study in kept.get_all_studies() if study.study_name == "shared")
    trials = kept.get_all_trials(study._study_id)
    assert [trial.number for trial in trials] == list(range(12))
    ends = [trial.values[0] - trial.params["x"] for trial in trials]
    assert sorted(ends) == [0.25] * 6 + [0.75] * 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((postgres.QUOTED, "wrong"), "Check user and password."),
        (("/lethe", "/elsewhere"), "Make it with createdb and createuser, or check the name."),
    ],
)
def test_what_a_server_refuses_is_one_line(server: str, change: tuple[str, str], said: str) -> None:
    start, _, end = server.rpartition(change[0])
    with pytest.raises(UserError) as error:
        storage(None, start + change[1] + end)
    line = str(error.value)
    assert line.endswith(said) and "\n" not in line
    assert postgres.PASSWORD not in line and postgres.QUOTED not in line and "wrong" not in line
