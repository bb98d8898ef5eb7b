"""workers/, methods/ and attacks/ run where neither the orchestrator nor its packages are installed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import sys
for absent in ("ray", "optuna", "pydantic", "typer", "rich", "pyarrow", "pandas", "plotly", "orchestrator"):
    sys.modules[absent] = None  # importing it fails
from workers.worker import Worker
from attacks import loss_threshold, metrics, population_loss, scores, ulira
training = dict(optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine")
training |= dict(epochs=1, batch_size=64, augment=True, precision="auto", version=1)
common = dict(dataset={"name": "digits"}, architecture={"name": "cnn_small"})
members = dict(track="main", val_fraction=0.15)
worker = Worker("data")
base = worker.run({"id": "base", "spec": common | dict(kind="base", training=training, members=members,
                                                       seeds=dict(init=1, order=2))})
forget = dict(name="random", parameters=dict(fraction=0.1))
unlearned = worker.run({"id": "u", "spec": common | dict(
    kind="unlearn", members=members, forget=forget, base="base", augment=True, precision="auto",
    method=dict(name="scrub", hyperparameters={"epochs": 2}), seeds=dict(unlearn=3))})
print(base.status, unlearned.status, unlearned.reason)
"""


def test_a_base_and_a_method_run_without_the_orchestrator() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["done", "done"], done.stdout + done.stderr
