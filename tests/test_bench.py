"""Benchmarks compare equal results: the plain loop is a second implementation, not a copy of the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from attacks import ulira
from orchestrator import bench
from orchestrator.errors import UserError
from tests.conftest import ROOT, Lethe

ABSENT = (
    *("ray", "optuna", "pydantic", "typer", "click", "rich", "yaml", "pyarrow", "pandas", "plotly"),
    *("sklearn", "torchvision", "timm", "safetensors", "workers", "methods"),
)
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)


@pytest.mark.parametrize("device", ["numpy", "cpu", CUDA])
def test_the_plain_loop_gives_the_numbers_of_the_attack(device: str) -> None:
    found = bench.attack(models=80, samples=400, seed=3, device=device)
    assert (found.device, found.models, found.samples, found.pairs) == (device, 80, 400, 4)
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
    assert facts["models"] == 640 and facts["max_abs_difference"] < 1e-9 and facts["device"] == "numpy"


def test_an_unknown_benchmark_is_one_line(lethe: Lethe) -> None:
    done = lethe("bench", "atack")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "bench atack: unknown. Allowed: driver, plan, train, attack, store."
    ]


def test_an_unknown_device_is_one_line(lethe: Lethe) -> None:
    done = lethe("bench", "attack", "--device", "gpu")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["bench --device gpu: unknown. Allowed: numpy, cpu, cuda."]


def test_a_machine_without_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"bench --device cuda: torch .* sees no card\. Here: numpy, cpu\."):
        bench.attack(device="cuda")


WITHOUT = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["bench", *{arguments!r}]
runpy.run_module("orchestrator.bench", run_name="__main__")
"""


def alone(*arguments: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    """`python -m orchestrator.bench` where the `absent` packages are not installed."""
    command = [sys.executable, "-c", WITHOUT.format(absent=absent, arguments=arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("device", "absent"), [("numpy", (*ABSENT, "torch")), ("cpu", ABSENT)], ids=["numpy", "cpu"]
)
def test_the_benchmark_needs_numpy_scipy_and_torch_only(device: str, absent: tuple[str, ...]) -> None:
    done = alone("attack", "--samples", "100", "--device", device, "--json", absent=absent)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["device"] == device and facts["samples"] == 100 and facts["max_abs_difference"] < 1e-9


def test_mistakes_are_one_line_where_nothing_else_is_installed() -> None:
    without = alone("attack", "--device", "cuda", absent=(*ABSENT, "torch"))
    assert without.returncode == 2
    assert without.stderr == "bench --device cuda: torch is not installed. Without it: numpy.\n"
    few = alone("attack", "--samples", "5")
    assert few.returncode == 2 and "--samples: 5 is too few, at least 100." in few.stderr
    assert alone("driver").returncode == 2
