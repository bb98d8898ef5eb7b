"""`tune` in a grid: every mistake in the ranges to search is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import catalogue, tune_space
from orchestrator.catalogue import Parameter
from orchestrator.config import load
from tests.test_config import problems

NAN = float("nan")
METHODS = ["finetune", "scrub", "fisher_forgetting"]

# space -> what the one line says
MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"scrubb": {"alpha": [0, 1]}}, ("tune.space.scrubb", "no method of this grid", "Did you mean 'scrub'?")),
    ({"salun": {"tau": [0.1, 0.2]}}, ("tune.space.salun", "no method of this grid", "all, finetune, scrub")),
    ({"scrub": {"alfa": [0, 1]}}, ("tune.space.scrub.alfa", "unknown parameter of scrub", "'alpha'")),
    ({"all": {"sigma": [0, 1]}}, ("tune.space.all.sigma", "no method of this grid has it", "gamma")),
    ({"scrub": {"alpha": [0.5]}}, ("tune.space.scrub.alpha", "[0.5] is not [low, high]")),
    ({"scrub": {"alpha": [0, 0.5, 1]}}, ("tune.space.scrub.alpha", "is not [low, high]")),
    ({"scrub": {"alpha": []}}, ("tune.space.scrub.alpha", "[] is not [low, high]")),
    ({"scrub": {"alpha": [1, 0.5]}}, ("tune.space.scrub.alpha", "1 is above 0.5")),
    ({"scrub": {"alpha": ["a", 1]}}, ("tune.space.scrub.alpha", "'a' is not of type float")),
    ({"scrub": {"alpha": [False, True]}}, ("tune.space.scrub.alpha", "False is not of type float")),
    ({"scrub": {"alpha": [-1, 1]}}, ("tune.space.scrub.alpha", "-1", "at least 0")),
    ({"scrub": {"alpha": [0, NAN]}}, ("tune.space.scrub.alpha", "nan", "finite")),
    ({"scrub": {"epochs": [2, 4.5]}}, ("tune.space.scrub.epochs", "4.5 is not of type int")),
    ({"all": {"epochs": [2, 4.5]}}, ("tune.space.all.epochs", "4.5 is not of type int")),
    ({"scrub": {"rewind": ["yes"]}}, ("tune.space.scrub.rewind", "'yes' is not one of True, False")),
    ({"scrub": {"rewind": [1]}}, ("tune.space.scrub.rewind", "1 is not one of True, False")),
    ({"scrub": {"rewind": []}}, ("tune.space.scrub.rewind", "empty", "True, False")),
    ({"finetune": {"batch_size": [64, 100]}}, ("finetune.batch_size", "100 is not one of 64, 128, 256")),
    ({"finetune": {"batch_size": [64, 64]}}, ("finetune.batch_size", "names 64 twice")),
    ({"scrub": {"alpha": 0.5}}, ("tune.space.scrub.alpha", "list", "0.5")),
    ({"scrub": [1, 2]}, ("tune.space.scrub", "[1, 2]")),
]


@pytest.mark.parametrize(("space", "expected"), MISTAKES)
def test_a_mistake_in_the_space_is_one_line(
    write_grid: Callable[..., Path], space: dict[str, Any], expected: tuple[str, ...]
) -> None:
    (line,) = problems(write_grid(methods=METHODS, tune={"space": space}))
    for words in expected:
        assert words in line


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluate_seeds", 1, "at least 2"),  # one seed has no interval
        ("evaluate_seeds", 1001, "at most 1000"),
        ("confirm_seeds", 0, "at least 1"),
        ("finalists", 0, "at least 1"),
        ("parallel", 0, "at least 1"),
        ("sampler", "tp", "Did you mean 'tpe'?"),
        ("objective", "papre", "Did you mean 'paper'?"),
        ("pruner", "mean", "'median'"),
        ("trial", 5, "Did you mean 'trials'?"),
    ],
)
def test_a_mistake_in_the_budget_is_one_line(
    write_grid: Callable[..., Path], key: str, value: Any, expected: str
) -> None:
    (line,) = problems(write_grid(tune={key: value}))
    assert f"tune.{key}" in line and expected in line


def test_every_mistake_is_told_at_once(write_grid: Callable[..., Path]) -> None:
    space = {"scrub": {"alpha": [1, 0], "rewind": [3]}, "nothing": {}}
    assert len(problems(write_grid(methods=METHODS, tune={"space": space}))) == 3


def test_what_is_allowed(write_grid: Callable[..., Path]) -> None:
    space = {
        "all": {"epochs": [1, 10], "batch_size": [64], "alpha": [0.01, 0.01]},
        "scrub": {"epochs": [2, 3], "rewind": [False], "learning_rate": [0, 1]},
    }
    grid = load(str(write_grid(methods=METHODS, tune={"space": space})))
    assert grid.tune is not None and grid.tune.space == space


def test_a_parameter_without_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    scrub = catalogue.plugins("methods")["scrub"]
    odd = replace(scrub, parameters={"alpha": Parameter("alpha", "float", 0.5)})
    monkeypatch.setattr(catalogue, "plugins", lambda kind: {"scrub": odd})
    (line,) = tune_space.problems({"scrub": {"alpha": [0, 1]}}, ["scrub"])
    assert line.startswith("tune.space.scrub.alpha: it has no range to search")
