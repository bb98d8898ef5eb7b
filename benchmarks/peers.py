"""The work of `lethe bench driver` through Ray Tune and `optuna.optimize`: python -m benchmarks.peers

Each trial runs one task of workers/noop.py and reports an accuracy. Ray Tune runs two trials at once with its
defaults; Optuna runs its trials one after the other, with the samples drawn at random and with its default
sampler, kept in memory and in SQLite, where they are durable as rows of Lethe's ledger are. The last line
printed is JSON, a list of rows with

    peer, trials, seconds, trials_per_s  as measured, the start of Ray not counted
    hours_for_100000                     extrapolated from that rate
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

TASK = {
    "id": "0" * 20,
    "spec": {
        "kind": "unlearn",
        "members": {"track": "main", "val_fraction": 0.15},
        "forget": {"name": "random"},
    },
}


def with_ray_tune(trials: int, folder: str) -> float:
    """Seconds of this many trials of Ray Tune with its defaults, two at once."""
    from orchestrator import cluster

    cluster.connect("local")
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        from workers.noop import Worker

        tune.report({"ra": Worker("").run(TASK).row["ra"] + 0 * config["seed"]})

    try:
        tuner = tune.Tuner(
            trial,
            param_space={"seed": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2, metric="ra", mode="max"),
            run_config=tune.RunConfig(storage_path=folder, name="noop", verbose=0),
        )
        start = time.perf_counter()
        found = tuner.fit()
        seconds = time.perf_counter() - start
    finally:
        cluster.disconnect()
    if len(found) != trials or found.errors:
        raise RuntimeError(f"{len(found)} of {trials} trials, {len(found.errors)} errors")
    return seconds


def with_optuna(trials: int, sampler: str, storage: str | None) -> float:
    """Seconds of this many trials of `optuna.optimize` with a sampler, kept in memory or at a URL."""
    import optuna

    from workers.noop import Worker

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    worker = Worker("")

    def objective(trial: Any) -> float:
        return float(worker.run(TASK).row["ra"] + 0 * trial.suggest_float("seed", 0, 1))

    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    study = optuna.create_study(storage=storage, sampler=samplers[sampler](seed=0), direction="maximize")
    start = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    seconds = time.perf_counter() - start
    if len(study.get_trials(deepcopy=False)) != trials:
        raise RuntimeError(f"{len(study.trials)} of {trials} trials")
    return seconds


def row(peer: str, trials: int, run: Callable[[int], float]) -> dict[str, Any]:
    seconds = run(trials)
    rate = trials / seconds
    facts = {"peer": peer, "trials": trials, "seconds": round(seconds, 2), "trials_per_s": round(rate, 2)}
    return facts | {"hours_for_100000": round(100_000 / rate / 3600, 2)}


def measure(tune_trials: int, optuna_trials: int) -> list[dict[str, Any]]:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="lethe-peers-") as folder:
        url = f"sqlite:///{folder}/optuna.db"
        return [
            row("Ray Tune", tune_trials, lambda n: with_ray_tune(n, folder)),
            row("optuna.optimize, random", optuna_trials, lambda n: with_optuna(n, "random", None)),
            row("optuna.optimize, TPE", optuna_trials, lambda n: with_optuna(n, "tpe", None)),
            row("optuna.optimize, random, SQLite", optuna_trials, lambda n: with_optuna(n, "random", url)),
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune-trials", type=int, default=40)
    parser.add_argument("--optuna-trials", type=int, default=1000)
    given = parser.parse_args()
    print(json.dumps(measure(given.tune_trials, given.optuna_trials)))
