"""A worker that does nothing, at once: what is left is what the driver, the store and the ledger cost.

It has the methods of worker.Worker and no torch. A row has the columns of a real one; φ and correctness are
of 16 samples, on a dataset of 16, so that a resume finds scores for every row; weights of a base are one KiB.
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.designs import pack
from workers.outcome import Outcome, Scores

POOL, TEST = 12, 4
SHA256 = hashlib.sha256(b"no-op").hexdigest()
TENSOR = bytes(1024)
HEADER = json.dumps({"w": {"dtype": "U8", "shape": [len(TENSOR)], "data_offsets": [0, len(TENSOR)]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + TENSOR  # as safetensors
FACTS = {
    **dict.fromkeys(("ra", "fa", "va", "ta"), 0.875),
    **dict.fromkeys(("retain_loss", "forget_loss", "val_loss", "test_loss"), 0.123456789),
    **dict.fromkeys(("wall_s", "evaluate_s"), 0.0),
    **dict.fromkeys(("members_sha256", "dataset_sha256"), SHA256),
    "weights_sha256": hashlib.sha256(b"w" + TENSOR).hexdigest(),
    "peak_memory_mib": 512.0,
    "device": f"cpu ({platform.machine()})",
    "host": socket.gethostname(),
    "versions": json.dumps({"python": platform.python_version(), "numpy": np.__version__}),
}


class Worker:
    """Runs tasks that do nothing."""

    def __init__(
        self, data: str, device: str = "auto", folders: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        phi = np.linspace(-3, 5, POOL + TEST, dtype=np.float32)
        self._scores, self._states = Scores(phi, phi > 0), pack(np.arange(POOL) % 4)
        self._designs: dict[str, dict[str, Any]] = {}

    def run(self, task: dict[str, Any], weights: bytes | None = None) -> Outcome:
        """An outcome as a real task leaves it."""
        started, spec = time.time(), task["spec"]
        self.work()
        design = self._design(spec)
        row = FACTS | {"design": design["design"], "started_at": started, "finished_at": time.time()}
        outcome = Outcome(task["id"], "done", row=row, scores=self._scores, design=design)
        outcome.weights = WEIGHTS if spec["kind"] == "base" else None
        return outcome

    def _design(self, spec: dict[str, Any]) -> dict[str, Any]:
        """A row of designs; a run has few different ones."""
        key = str((spec["members"], spec.get("forget")))
        if key not in self._designs:
            members, forget = json.dumps(spec["members"]), json.dumps(spec.get("forget", ""))
            row = {"design": hashlib.sha256(key.encode()).hexdigest()[:20], "members": members}
            row |= {"forget": forget, "n_pool": POOL, "states": self._states, "sha256": SHA256}
            self._designs[key] = row
        return self._designs[key]

    def work(self) -> None:
        """Where a task would train."""

    def holds(self) -> list[str]:
        return []

    def memory_mib(self) -> float:
        return 0.0

    def arrays(self, name: str) -> None:
        return None

    def receive(self, name: str, arrays: None) -> None: ...

    def samples(self, name: str) -> dict[str, Any]:
        sha256 = [hashlib.sha256(bytes([sample])).digest() for sample in range(POOL + TEST)]
        return {"labels": np.arange(POOL + TEST) % 2, "n_pool": POOL, "sha256": sha256}

    def duplicates(self, name: str) -> dict[str, Any]:
        none = np.full(POOL + TEST, -1)
        return {"dup_exact": none, "dup_near": none}

    def try_out(self, architecture: str, dataset: str) -> str:
        return ""
