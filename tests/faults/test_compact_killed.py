"""`lethe store compact` under kill −9: the same scores, and the next call finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from orchestrator.compact import TABLES, verify
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import ROOT, Lethe

FOLDERS = [score_folder("digits", "cnn_small", "unlearn", f"method{i}") for i in range(40)]


def filled(folder: Path) -> Store:
    store = Store.create(str(folder))
    for number in range(3):
        part, runs = f"0000000000000{number}-x", []
        for i, place in enumerate(FOLDERS):
            phi = np.full(5000, 10 * i + number, np.float32)
            store.write_part("scores", list(score_rows(f"{i}-{number}", phi, phi > 0)), part, place)
            runs.append({"task_id": f"{i}-{number}", "attempt": 1, "status": "done", "part": part})
        store.write_part("runs", runs, part)
    return store


def content(uri: str) -> dict[str, float]:
    """What φ of each model is, which is one number here; the ledger has each model once."""
    store = Store.open(uri)
    runs = store.runs(["task_id", "part"])
    assert store.read_table("runs", ["task_id"]).num_rows == runs.num_rows == 3 * len(FOLDERS)
    found = {task: phi for folder in FOLDERS for task, phi in store.scores(runs, folder).items()}
    assert store.damaged == [] and all(len(phi) == 5000 and np.ptp(phi) == 0 for phi in found.values())
    return {task: float(phi[0]) for task, phi in found.items()}


def test_compaction_killed_again_and_again(tmp_path: Path, lethe: Lethe) -> None:
    store, moments = filled(tmp_path / "results"), random.Random(3)
    before = content(store.uri)
    assert len(before) == 3 * len(FOLDERS)
    killed = 0
    for _ in range(3):
        count = len(merged(store))
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "store", "compact", "--results", store.root],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and len(merged(store)) <= count:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert content(store.uri) == before
    assert killed >= 1
    done = lethe("store", "compact", "--results", store.root)
    assert done.returncode == 0, done.stderr
    assert content(store.uri) == before
    assert len(merged(store)) == len(FOLDERS) + 1 == len([f for t in TABLES for f in store.files(t)])
    assert [name for table in TABLES for name in store.leftovers(table)] == []
    assert verify(store) == (len(FOLDERS) + 1, [])


def merged(store: Store) -> list[str]:
    names = [name for table in ("runs", "scores") for name in store.files(table)]
    return [name for name in names if "compact-" in name]
