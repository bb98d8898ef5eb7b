"""The simulation of a cluster against cases computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.simulate import Costs, Simulation, simulate
from orchestrator.plan import Task
from orchestrator.schedule import Schedule


def tasks(children: int = 2) -> list[Task]:
    """A base and unlearn tasks that start from it."""
    return [
        Task("b", {"kind": "base"}),
        *(Task(f"u{i}", {"kind": "unlearn", "base": "b"}) for i in range(children)),
    ]


def ten(_: Task) -> float:
    return 10.0


def test_one_actor_without_costs_is_always_busy() -> None:
    found = simulate(tasks(), 1, ten, Costs())
    assert (found["seconds"], found["busy_min"], found["driver_busy"]) == (30, 1, 0)


def test_two_actors_share_the_children_once_the_base_is_there() -> None:
    """The base takes 10 s, during which the second actor waits; then each has a child."""
    found = simulate(tasks(), 2, ten, Costs())
    assert (found["seconds"], found["busy_min"], found["busy_mean"]) == (20, 0.5, 0.75)


def test_what_the_driver_and_the_network_cost_is_waited_for() -> None:
    """Given at 1, there at 1.25, ended at 11.25, seen at 11.5, passed at 11.625 (an eighth), taken at 12.125.
    The first child is given at 13.125, there at 13.375, the second waits for it: the end is at 33.375.
    """
    costs = Costs(give_s=1, take_s=0.5, pass_s=0.125, latency_s=0.25)
    simulation = Simulation(Schedule(tasks(), {}), 1, ten, costs)
    simulation.run()
    assert simulation.actors[0].worked == [(1.25, 11.25), (13.375, 23.375), (23.375, 33.375)]
    assert simulation.driver_s == 3 * 1 + 3 * 0.5 + 3 * 0.125
    assert simulation.shares() == [pytest.approx(30 / 33.375)]


def test_the_next_task_waits_at_its_actor() -> None:
    """Retrains need no base: with two given ahead no actor waits for the driver but at the start."""
    retrains = [Task(f"r{i}", {"kind": "retrain"}) for i in range(40)]
    found = simulate(retrains, 4, ten, Costs(give_s=0.1, take_s=0.1, latency_s=0.05))
    assert found["seconds"] == pytest.approx(100 + 4 * 0.1 + 0.05)
    slow = simulate(retrains, 4, ten, Costs(give_s=3.0, take_s=3.0))  # 6 s a task: more than it can bear
    assert slow["driver_busy"] > 0.95 > 0.5 > slow["busy_mean"]
