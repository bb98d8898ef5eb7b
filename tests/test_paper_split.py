"""The paper's split (arXiv 2410.01276): its fingerprints, what of it each track and forget recipe takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from methods.base import plugin
from orchestrator.catalogue import plugins
from tests.test_plan import ids, plan_of
from workers import designs
from workers.designs import FORGET, OUT, RETAIN, VAL, paper_split
from workers.forget.random import Random

# pool size -> sizes of D, D_R, D_F, D_V; how D_F, D_V and D_R start; the sum of D_F (spec/benchmark.md, A)
FINGERPRINTS: dict[int, tuple[tuple[int, ...], list[list[int]], int]] = {
    60_000: (
        (51_000, 45_900, 5_100, 9_000),
        [
            [12238, 20118, 23825, 29798, 10974],
            [29561, 26640, 24498, 24594, 24249],
            [2793, 8582, 56864, 20678, 49784],
        ],
        154_192_769,
    ),
    50_000: (
        (42_500, 38_250, 4_250, 7_500),
        [
            [33810, 44208, 6639, 25856, 49484],
            [11872, 40828, 36400, 5166, 30273],
            [30833, 48150, 4831, 11184, 46104],
        ],
        106_994_433,
    ),
    18_967: ((16_121, 14_508, 1_613, 2_846), [[1216, 11795, 8470, 3484, 12603], [], []], 15_855_072),
}
POOLS = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "utkface": 18_967}


def recipe(**more: Any) -> dict[str, Any]:
    return {"track": "main", "val_fraction": 0.15, "split": {"name": "paper", "version": 1}} | more


def states_of(n: int, forget: Any, **more: Any) -> np.ndarray:
    labels = np.arange(n) % 10
    draw = {"index": 0, "of": 2} if "pair" in more else None
    return designs.build("toy", labels, recipe(**more), forget, "key", draw)


@pytest.mark.parametrize("name", POOLS)
def test_the_pools_are_of_the_papers_size(name: str) -> None:
    assert plugins("datasets")[name].constants["pool_size"] == POOLS[name]


@pytest.mark.parametrize("n", FINGERPRINTS)
def test_the_chain_has_the_papers_fingerprints(n: int) -> None:
    sizes, starts, total = FINGERPRINTS[n]
    trained, val = paper_split(np.arange(n), 0.15)
    retain, forget = paper_split(trained, 0.10)
    assert tuple(map(len, (trained, retain, forget, val))) == sizes
    for found, start in zip((forget, val, retain), starts, strict=True):
        assert found[: len(start)].tolist() == start
    assert forget.sum() == total


@pytest.mark.parametrize("n", FINGERPRINTS)
def test_a_design_of_the_main_track_has_these_sets(n: int) -> None:
    (_, *sizes), starts, total = FINGERPRINTS[n]
    states = states_of(n, Random(0.1))
    assert [int((states == state).sum()) for state in (RETAIN, FORGET, VAL)] == sizes
    for state, start in zip((FORGET, VAL, RETAIN), starts, strict=True):
        assert np.all(states[start] == state)
    assert np.flatnonzero(states == FORGET).sum() == total


def test_the_second_step_takes_the_fraction_of_the_forget_recipe() -> None:
    """⌈0.25 · 850⌉ of 1,000 less ⌈0.15 · 1,000⌉, and no strata: the classes of 85 members each differ."""
    states = states_of(1000, Random(0.25))
    assert [int((states == state).sum()) for state in (RETAIN, FORGET, VAL)] == [637, 213, 150]
    assert np.ptp(np.bincount(np.arange(1000)[states == VAL] % 10)) > 1


def test_another_forget_recipe_draws_from_the_members_of_the_chain() -> None:
    classes = plugin("workers.forget", "class")((3,))
    states, random = states_of(1000, classes), states_of(1000, Random(0.1))
    assert np.array_equal(states == VAL, random == VAL)
    members = random != VAL
    assert np.array_equal(states == FORGET, members & (np.arange(1000) % 10 == 3))


def test_the_audit_keeps_balanced_pairs_around_the_papers_validation_set() -> None:
    val = states_of(1000, None) == VAL
    assert np.array_equal(np.flatnonzero(val), np.sort(paper_split(np.arange(1000), 0.15)[1]))
    one, other = (states_of(1000, Random(0.1), track="audit", pair=2, half=half) for half in (0, 1))
    assert np.array_equal(one == VAL, val) and np.array_equal(other == VAL, val)
    assert np.array_equal(one[~val] == OUT, other[~val] != OUT)
    for states in (one, other):
        counts = np.bincount(np.flatnonzero((states == RETAIN) | (states == FORGET)) % 10)
        whole = np.bincount(np.flatnonzero(~val) % 10)
        assert np.abs(counts - whole / 2).max() <= 1, "stratified by class"


def test_the_split_is_in_the_ids_of_all_tasks_and_the_default_leaves_no_trace() -> None:
    plain, paper = plan_of(), plan_of(split="paper")
    assert ids(plain) == ids(plan_of(split="default"))
    assert ids(plain).isdisjoint(ids(paper)) and plain.cells[0].id != paper.cells[0].id
    assert all(t.spec["members"]["split"] == {"name": "paper", "version": 1} for t in paper.tasks)
    assert not any("split" in t.spec["members"] for t in plain.tasks)
