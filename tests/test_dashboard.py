"""`lethe dashboard`: what it serves, what it refuses, what it says where there is nothing to show."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import optuna
import pytest

from orchestrator.catalogue import ROOT
from orchestrator.cli import main
from orchestrator.dashboard import address, opened, server
from orchestrator.store import Store
from orchestrator.studies import open_study, storage
from orchestrator.tune import Budget
from tests.postgres import free_port


def fill(results: Path) -> None:
    """Two studies, one of 30 trials in which x alone matters, one without a trial."""
    kept = storage(Store.create(str(results)))
    study = open_study(kept, "first", Budget())
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("x", "y")}
    for _ in range(30):
        trial = study.ask(space)
        study.tell(trial, abs(trial.params["x"] - 0.3))
    open_study(kept, "second", Budget(objective="paper"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def site(results: Path) -> Iterator[str]:
    with server(opened(str(results), None), "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield address(running, "127.0.0.1")
        running.shutdown()


def get(url: str) -> Any:
    with urlopen(url, timeout=20) as answer:
        return json.load(answer)


def test_studies_trials_and_importances_are_served(site: str, results: Path) -> None:
    listed = get(f"{site}api/studies")["study_summaries"]
    assert [study["study_name"] for study in listed] == ["first", "second"]
    assert len(get(f"{site}api/studies/0")["trials"]) == 30
    (shares,) = get(f"{site}api/studies/0/param_importances")["param_importances"]
    assert {share["name"]: share["importance"] > 0.5 for share in shares} == {"x": True, "y": False}


def test_a_trial_of_the_driver_appears(tmp_path: Path) -> None:
    fill(tmp_path)
    with server(opened(str(tmp_path), None), "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        study = open_study(storage(Store.open(str(tmp_path))), "first", Budget())
        study.tell(study.ask(), 0.25)
        trials = get(f"{address(running, '127.0.0.1')}api/studies/0")["trials"]
        assert len(trials) == 31 and trials[-1]["values"] == [0.25]
        running.shutdown()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "api/studies/0"),
        ("POST", "api/studies"),
        ("POST", "api/studies/0/rename"),
        ("PUT", "api/studies/0/note"),
        ("POST", "api/trials/0/tell"),
    ],
)
def test_what_would_change_a_study_is_refused(site: str, results: Path, method: str, path: str) -> None:
    before = (results / "tuning" / "journal.log").read_bytes()
    with pytest.raises(HTTPError) as error:
        urlopen(
            Request(f"{site}{path}", b"{}", {"Content-Type": "application/json"}, method=method), timeout=20
        )
    assert error.value.code == 403 and "only looks" in error.value.read().decode()
    assert (results / "tuning" / "journal.log").read_bytes() == before


def test_the_page_asks_for_nothing_from_elsewhere(site: str) -> None:
    with urlopen(f"{site}dashboard", timeout=20) as page:
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert "http" not in page.read().decode().replace("http://www.w3.org/2000/svg", "")


def lethe(*words: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "dashboard", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=-1, **how,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_the_command_prints_its_address_and_ends_with_ctrl_c(results: Path) -> None:
    port = free_port()
    running = lethe("--results", str(results), "--port", str(port))
    assert running.stdout is not None
    assert running.stdout.readline() == f"http://127.0.0.1:{port}/  Ctrl-C ends it.\n"
    assert len(get(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]) == 2
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=30) == ("\n", "") and running.returncode == 0


def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.create(str(tmp_path / "bare"))
    database = f"sqlite:///{tmp_path}/no.db"
    storage(Store.create(str(tmp_path / "none")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            f"{tmp_path}/gone: no results yet.": ("--results", f"{tmp_path}/gone"),
            f"{tmp_path}/bare: no studies yet.": ("--results", f"{tmp_path}/bare"),
            f"{tmp_path}/none: no studies yet.": ("--results", f"{tmp_path}/none"),
            f"--optuna-storage {database}: no studies yet.": ("--optuna-storage", database),
            f"--port {port}: in use.": ("--results", str(results), "--port", str(port)),
            "--host 203.0.113.7 --port 8080: cannot": ("--results", str(results), "--host", "203.0.113.7"),
        }  # fmt: skip
        for said, words in cases.items():
            monkeypatch.setattr(sys, "argv", ["lethe", "dashboard", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            out, error = capsys.readouterr()
            assert (ended.value.code, out, error.count("\n")) == (2, "", 1), error
            assert error.startswith(said)
