"""Benchmarks compare equal results: the plain loop is a second implementation, not a copy of the first."""

from __future__ import annotations

import json

import numpy as np

from attacks import ulira
from orchestrator import bench
from tests.conftest import Lethe


def test_the_plain_loop_gives_the_numbers_of_the_attack() -> None:
    found = bench.attack(models=80, samples=400, seed=3)
    assert (found.models, found.samples, found.pairs) == (80, 400, 4)
    assert found.max_abs_difference < 1e-9
    assert found.seconds > 0 and found.loop_seconds > 0 and found.ratio > 0 and found.peak_mib > 0


def test_the_plain_loop_tells_a_prior_that_saw_the_scored_pair() -> None:
    """The comparison can fail: one prior from all pairs, instead of one without each pair, is seen."""
    rng = np.random.default_rng(0)
    forgotten, retrained = rng.normal(1, 1, (5, 200)), rng.normal(0, 1, (5, 200))
    loop = bench.plain_loop(forgotten, retrained)
    strict = ulira.leave_pair_out(forgotten, retrained)
    loose = ulira.leave_pair_out(forgotten, retrained, strict=False)
    assert max(np.abs(a - b).max() for a, b in zip(loop, strict, strict=True)) < 1e-9
    assert max(np.abs(a - b).max() for a, b in zip(loop, loose, strict=True)) > 1e-4


def test_bench_attack_prints_what_scripts_rely_on(lethe: Lethe) -> None:
    done = lethe("bench", "attack", "--samples", 200, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert {"seconds", "loop_seconds", "ratio", "max_abs_difference", "peak_mib"} <= facts.keys()
    assert facts["models"] == 640 and facts["max_abs_difference"] < 1e-9


def test_an_unknown_benchmark_is_one_line(lethe: Lethe) -> None:
    done = lethe("bench", "atack")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "bench atack: unknown. Allowed: attack, store."
    ]
