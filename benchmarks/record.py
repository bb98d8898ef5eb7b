"""Run a benchmark and keep what it found: python -m benchmarks.record NAME COMMAND…

The last line that the command prints is JSON; it goes to benchmarks/results/NAME.json with the command, the
machine and the versions.

    python -m benchmarks.record driver python -m orchestrator bench driver --tasks 100000 --json
    python -m benchmarks.record peers python -m benchmarks.peers
    python -m benchmarks.record simulated_cluster python -m benchmarks.simulated_cluster
    python -m benchmarks.record simulate python -m benchmarks.simulate
    python -m benchmarks.record train-cpu python -m workers.bench_train --device cpu --json
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.provenance import commit

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("ray", "optuna", "pyarrow", "numpy", "torch", "torchvision")


def provenance(command: list[str]) -> dict[str, Any]:
    """What one has to know to repeat a measurement: command, day, commit, cores, memory, load, versions."""
    page = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": shlex.join(command),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "cores": os.cpu_count(),
        "memory_gib": round(page / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of those PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main(name: str, *command: str) -> None:
    facts = provenance(list(command))
    words = [sys.executable if word == "python" else word for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"record {name}: {shlex.join(command)} ended with {done.returncode}. Nothing is kept.")
    line = (done.stdout.rstrip().splitlines() or [""])[-1]
    try:
        found = json.loads(line)
    except ValueError:
        sys.exit(
            f"record {name}: the last line printed is no JSON (--json?): {line[:80]!r}. Nothing is kept."
        )
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(facts | {"found": found}, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m benchmarks.record NAME COMMAND…")
    main(*sys.argv[1:])
