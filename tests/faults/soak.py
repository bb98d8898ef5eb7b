"""Random faults against one run, for minutes: it has to end with the table of a run that nobody disturbed.

    python -m tests.faults.soak FOLDER [--minutes 20] [--pairs 64] [--seed 1]

Real processes and real signals: a Ray cluster of two nodes whose raylets are killed and replaced, actors that
are killed or stopped for a while, a driver that is killed or interrupted, parts of the results cut off, model
files lost or overwritten, a disk that is full. What happened is written to FOLDER/soak.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import ROOT, all_rows, results_table

LEAST_S, MOST_S = 4.0, 16.0  # between two faults
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
# As in a job, the code does not travel: nodes of one machine share the folder it would be unpacked to, and
# the first of them that dies takes it away from the others. Nodes of a real cluster have one each.
AS_A_JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}


def grid(pairs: int) -> dict[str, Any]:
    """pairs = 64: 128 bases, 256 retrains and 1,536 unlearned models to audit; 1,936 tasks in all."""
    return {
        "datasets": ["digits"],
        "architectures": ["cnn_small"],
        "forget": [{"random": {"fraction": 0.2}}],
        "methods": [
            {"finetune": {"epochs": 1, "batch_size": 256}},
            {"gradient_ascent": {"epochs": 1, "batch_size": 256}},
            {"neggrad_plus": {"epochs": 1, "batch_size": 256}},
            {"successive_random_labels": {"epochs": 1, "batch_size": 256}},
            {"masked_small_gradients": {"epochs": 1, "batch_size": 256}},
            {"random_noise_injection": {"noisy_epochs": 1, "fine_epochs": 1}},
        ],
        "seeds": 2,
        "training": {"all": {"epochs": 2, "batch_size": 256}},
        "audit": {"pairs": pairs, "forget_sets": 2},
        "run": {"flush_s": 2.0, "time_limit_s": 120.0},
    }


class Soak:
    """A cluster, a driver, and what is done to them."""

    def __init__(self, folder: Path, pairs: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= ENVIRONMENT  # the nodes' and their workers'
        self.folder, self.results = folder, folder / "results"
        self.random, self.log = random.Random(seed), (folder / "soak.jsonl").open("w", encoding="utf-8")
        self.grid = folder / "grid.yaml"
        self.grid.write_text(yaml.safe_dump(grid(pairs)), encoding="utf-8")
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.counts: Counter[str] = Counter()
        self.lost: set[str] = set()  # tasks whose durable rows a fault took away on purpose
        self.driver = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator", "run", str(self.grid)]
        command += ["--results", str(self.results), "--address", self.cluster.address]
        with (self.folder / "driver.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=ENVIRONMENT | AS_A_JOB,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def note(self, what: str, **facts: Any) -> None:
        self.counts[what] += 1
        self.log.write(json.dumps({"at": round(time.time(), 1), "what": what, **facts}) + "\n")
        self.log.flush()

    def run(self, minutes: float) -> int:
        """Disturb the run for so long, or until it ends; then let it end. Returns the driver's exit code."""
        end, done = time.monotonic() + 60 * minutes, set[str]()
        faults = [self.kill_actor, self.stop_actor, self.kill_node, self.kill_driver, self.interrupt_driver]
        faults += [self.cut_part, self.spoil_model, self.fill_disk]
        while time.monotonic() < end:
            time.sleep(self.random.uniform(LEAST_S, MOST_S))
            if self.driver.poll() is not None:
                if self.driver.returncode == 0:
                    break
                self.note("ended by itself", code=self.driver.returncode)
                self.driver = self.start()
                continue
            self.random.choice(faults)()
            done = self.check(done)
        while (code := self.driver.wait(timeout=3600)) == 2:  # the disk was full, the last fault of all
            self.note("ended by itself", code=code)
            self.driver = self.start()
        self.check(done)
        return code

    def check(self, before: set[str]) -> set[str]:
        """The tasks that are done; none that was done before may be gone, but for rows that were cut off."""
        if not (self.results / "runs").is_dir():
            return before
        try:
            now = {row["task_id"] for row in all_rows(self.results) if row["status"] == "done"}
        except FileNotFoundError:  # a driver that starts has moved a damaged part aside in between
            return before
        missing = before - now - self.lost
        assert not missing, f"done rows are gone: {sorted(missing)[:5]}"
        return before | now

    # ---- the faults ---------------------------------------------------------------------------------------

    def actors(self) -> list[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return [p for p in found if p.is_running() and p.name().startswith("ray::Actor")]

    def kill_actor(self) -> None:
        if actors := self.actors():
            self.note("worker killed")
            self.random.choice(actors).kill()

    def stop_actor(self) -> None:
        if actors := self.actors():
            self.note("worker stopped for 5 s")
            actor = self.random.choice(actors)
            actor.suspend()
            time.sleep(5)
            if actor.is_running():
                actor.resume()

    def kill_node(self) -> None:
        self.note("node killed")
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        time.sleep(self.random.uniform(0, 8))
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def end_driver(self, how: signal.Signals) -> None:
        self.driver.send_signal(how)
        self.driver.wait(timeout=120)

    def kill_driver(self) -> None:
        self.note("driver killed")
        self.end_driver(signal.SIGKILL)
        self.driver = self.start()

    def interrupt_driver(self) -> None:
        self.note("driver interrupted")
        self.end_driver(signal.SIGINT)
        self.driver = self.start()

    def cut_part(self) -> None:
        """A part of the ledger or of the scores loses its end while no driver runs."""
        self.end_driver(signal.SIGKILL)
        table = self.random.choice(["runs", "scores"])
        parts = sorted((self.results / table).rglob("*.parquet"))
        if parts:
            part = self.random.choice(parts)
            held = [row["task_id"] for row in all_rows(self.results) if row["part"] == part.stem]
            self.note("part cut off", file=str(part.relative_to(self.results)), tasks=len(held))
            self.lost |= set(held)
            part.write_bytes(part.read_bytes()[: -self.random.randrange(1, 500)])
        self.driver = self.start()

    def spoil_model(self) -> None:
        """The weights of a base are gone, or are those of another one."""
        self.end_driver(signal.SIGKILL)
        models = sorted((self.results / "models").glob("*.safetensors"))
        if len(models) > 1:
            one, other = self.random.sample(models, 2)
            gone = self.random.random() < 0.5
            self.note("model lost" if gone else "model overwritten by another", file=one.name)
            if gone:
                one.unlink()
            else:
                shutil.copyfile(other, one)
        self.driver = self.start()

    def fill_disk(self) -> None:
        """The results folder lies on a small file system of its own, which is full for five seconds."""
        if not os.path.ismount(self.folder):
            return
        self.note("disk full")
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        except OSError:
            time.sleep(5)
        ballast.unlink()

    def close(self) -> None:
        if self.driver.poll() is None:
            self.driver.kill()
        self.cluster.shutdown()
        self.log.close()


def undisturbed(folder: Path, pairs: int) -> Path:
    """Results of the same grid in one process that nobody disturbs."""
    path = folder / "undisturbed.yaml"
    path.write_text(yaml.safe_dump(grid(pairs)), encoding="utf-8")
    command = [sys.executable, "-m", "orchestrator", "run", str(path), "--inline"]
    subprocess.run(
        [*command, "--results", str(folder / "undisturbed")], cwd=ROOT, env=ENVIRONMENT, check=True
    )
    return folder / "undisturbed"


def compare(results: Path, expected: Path) -> dict[str, Any]:
    """What differs between two results folders. A task whose scores or weights a fault took away has a row
    for each time it was made; none may have two for one time.
    """
    rows, others = results_table(results), results_table(expected)
    ids, wanted = ([row["task_id"] for row in table] for table in (rows, others))
    assert ids == wanted, f"{len(set(ids) ^ set(wanted))} tasks differ"
    largest = 0.0
    for row, other in zip(rows, others, strict=True):
        for name, value in other.items():
            if isinstance(value, float):
                largest = max(largest, abs(row[name] - value))
            else:
                assert row[name] == value, (name, row[name], value)
    written = Counter((row["task_id"], row["attempt"]) for row in all_rows(results))
    twice = sum(count > 1 for count in written.values())
    again = len(written) - len(rows)
    return {"tasks": len(rows), "largest_difference": largest, "made_again": again, "counted_twice": twice}


def soak(folder: Path, minutes: float, pairs: int, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    one = Soak(folder, pairs, seed)
    try:
        code = one.run(minutes)
    finally:
        one.close()
    seconds = round(time.monotonic() - started)
    found = compare(one.results, undisturbed(folder, pairs))
    return {"exit_code": code, "seconds": seconds, "faults": dict(one.counts), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = soak(given.folder, given.minutes, given.pairs, given.seed)
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
