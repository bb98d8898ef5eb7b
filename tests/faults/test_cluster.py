"""Nodes that come, go and are killed under a run: Ray's own cluster utilities, real raylets, real signals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cluster, driver, plans
from orchestrator.cluster import Resources
from orchestrator.config import Grid
from orchestrator.lock import Lock
from orchestrator.plan import make_plan
from orchestrator.runner import Options, run_grid
from orchestrator.session import Progress, Session
from orchestrator.store import Store
from tests.conftest import ROOT, Lethe, all_rows, grid_data, results_table
from tests.faults.test_resume import assert_same_within, parts, start, wait_for
from workers.worker import Worker

METHODS = [{"finetune": {"epochs": 1}}, "gradient_ascent"]
TASKS = 2 + 8 + 2 + 16 + 2 * (2 + 16)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head without cores and one worker of one core; ends with the test."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        cluster.disconnect()
        made.shutdown()


LIGHT = {"all": {"epochs": 1, "batch_size": 256}}


def a_grid(**changes: Any) -> Grid:
    return Grid.model_validate(grid_data(methods=METHODS, training=LIGHT, run={"flush_s": 0.5}, **changes))


def run(
    grid: Grid,
    results: Path,
    address: str,
    meanwhile: Callable[[Progress], None] = lambda _: None,
    actors_per_gpu: int | str = 1,
    worker: str = driver.WORKER,
) -> Progress:
    """Run a grid on a cluster; meanwhile is called after each task in between."""
    made = make_plan(grid)
    store = Store.create(str(results))
    with Lock(store) as lock:
        plans.remember(store, made)
        with Session(made, store, lock, meanwhile) as session:
            cluster.connect(address)
            driver.run(session, str(results.parent / "data"), Resources(actors_per_gpu), worker)
    return session.progress


class Steps:
    """Does each thing once, as soon as its condition holds. Until all are done each task costs .3 s more, so
    that an actor has time to start before the work is over.
    """

    def __init__(self, *steps: tuple[Callable[[Progress], bool], Callable[[], object]]) -> None:
        self.left = list(steps)

    def __call__(self, progress: Progress) -> None:
        while self.left and self.left[0][0](progress):
            self.left.pop(0)[1]()
        if self.left:
            time.sleep(0.3)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The table of a run that nobody disturbed, in this process."""
    results = tmp_path_factory.mktemp("undisturbed") / "results"
    ended = run_grid(a_grid(), Options(str(results), "data", address=None))
    assert ended.done == ended.total == TASKS
    return results_table(results)


def check(results: Path, progress: Progress, expected: list[dict[str, Any]]) -> None:
    """Every task done, each once, with the values of the undisturbed run."""
    assert progress.done == TASKS and not progress.failed
    rows = all_rows(results)
    assert Counter(row["task_id"] for row in rows).most_common(1)[0][1] == 1
    assert_same_within(results_table(results), expected, 1e-6)


@pytest.mark.long
def test_actors_appear_on_nodes_that_join_and_vanish_with_nodes_that_are_killed(
    nodes: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    first = nodes.add_node(num_cpus=1)
    joined: list[Any] = []
    steps = Steps(
        (lambda progress: progress.done >= 5, lambda: joined.append(nodes.add_node(num_cpus=1))),
        # SIGKILL to its raylet, tasks and all, once both nodes have work
        (lambda progress: progress.running == 2, lambda: nodes.remove_node(first, allow_graceful=False)),
    )
    progress = run(a_grid(), tmp_path / "results", nodes.address, steps)
    check(tmp_path / "results", progress, expected)
    assert not steps.left, "there was one actor, and never two"
    assert progress.retries >= 1


@pytest.mark.long
def test_no_node_at_first_then_one(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an autoscaled cluster: the head has no cores; a hint is given, and a node comes for it."""
    hints: list[int] = []
    ask_for = cluster.ask_for

    def asked(actors: int, each: cluster.Share) -> None:
        if not hints:
            nodes.add_node(num_cpus=1)
        hints.append(actors)
        ask_for(actors, each)

    monkeypatch.setattr(cluster, "ask_for", asked)
    grid = a_grid(seeds=1, audit=None)
    progress = run(grid, tmp_path / "results", nodes.address)
    assert progress.done == 4 and hints[0] == 4 and hints[-1] == 0


def counted_digits(log: Path) -> str:
    """The source of digits under another name, which notes each reading in a file."""
    source = (ROOT / "workers" / "datasets" / "digits.py").read_text(encoding="utf-8")
    note = f"        with open({str(log)!r}, 'a') as log:\n            log.write('read\\n')\n"
    first = "        from sklearn.datasets import load_digits\n"
    assert first in source
    return source.replace('name = "digits"', 'name = "counted"').replace(first, note + first)


@pytest.mark.long
def test_dataset_files_are_read_by_one_worker_for_all(
    nodes: Any, lethe: Lethe, write_grid: Callable[..., Path], project_copy: Callable[..., Path]
) -> None:
    """They need to be on the driver's machine alone; the others get the bytes through the object store."""
    project = project_copy()
    log = project / "log.txt"
    (project / "workers" / "datasets" / "counted.py").write_text(counted_digits(log))
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    grid = write_grid(datasets=["counted"], methods=METHODS, training={"all": {"epochs": 1}})
    results = grid.parent / "results"
    done = lethe("run", grid, "--results", results, "--address", nodes.address, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(log.read_text().splitlines()) == 1
    assert len({row["status"] for row in all_rows(results)}) == 1


@pytest.mark.long
def test_a_driver_killed_on_one_cluster_goes_on_on_another(
    nodes: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    nodes.add_node(num_cpus=1)
    grid, results = tmp_path / "grid.yaml", tmp_path / "results"
    grid.write_text(yaml.safe_dump(grid_data(methods=METHODS, training=LIGHT, run={"flush_s": 0.5})))
    process = start(grid, results, "--address", nodes.address)
    wait_for(lambda: parts(results) >= 2)
    process.kill()
    process.communicate()
    assert 0 < len(all_rows(results)) < TASKS
    nodes.shutdown()
    other = start(grid, results)
    out, err = other.communicate(timeout=200)
    assert other.returncode == 0, out + err
    assert Counter(row["task_id"] for row in all_rows(results)).most_common(1)[0][1] == 1
    assert_same_within(results_table(results), expected, 1e-6)


class Measured(Worker):
    """A worker on a made-up GPU of 4,000 MiB of which each task takes 1,000."""

    def memory_mib(self) -> float:
        return 4000.0

    def run(self, task: dict[str, Any], weights: bytes | None = None) -> Any:
        outcome = super().run(task, weights)
        outcome.row["peak_memory_mib"] = 1000.0
        return outcome


@pytest.mark.long
def test_as_many_actors_share_a_gpu_as_its_memory_holds(
    nodes: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    """The GPU is a number to Ray here: none is at hand."""
    nodes.add_node(num_cpus=4, num_gpus=1)
    here = tmp_path / "results"
    progress = run(a_grid(), here, nodes.address, actors_per_gpu="auto", worker=f"{__name__}:Measured")
    check(tmp_path / "results", progress, expected)
    assert any(
        note.startswith("2 actors share a GPU: a task took up to 1,000 MiB") for note in progress.notes
    )


@pytest.mark.parametrize(
    ("peak", "device", "cores", "actors"),
    [(0, 80_000, 8, 1), (1000, 0, 8, 1), (1000, 4000, 8, 2), (300, 80_000, 8, 8), (90_000, 80_000, 8, 1)],
)
def test_packing(peak: float, device: float, cores: float, actors: int) -> None:
    assert cluster.packing(peak, device, cores) == actors
