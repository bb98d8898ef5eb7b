"""What a version of a method computes stays what it is."""

from __future__ import annotations

import importlib

import pytest

from methods.base import plugin, sgd
from methods.finetune import Finetune
from orchestrator.catalogue import plugins
from tests.contract.golden import fingerprint, load, verdict


@pytest.mark.parametrize("name", plugins("methods"))
def test_behaviour_is_that_of_the_version(name: str) -> None:
    cls = plugin("methods", name)
    problem = verdict(cls, fingerprint(cls), load())
    assert not problem, problem


def test_nothing_is_kept_of_methods_that_are_gone() -> None:
    assert set(load()) <= set(plugins("methods")), "run `make golden`"


# Steps alone, layers drawn anew before them, weights moved before them.
@pytest.mark.parametrize(
    "name", ["finetune", "exact_unlearning_k", "convolution_transpose", "noise_finetune"]
)
def test_a_changed_behaviour_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, module = plugin("methods", name), importlib.import_module(f"methods.{name}")
    monkeypatch.setattr(module, "sgd", lambda model, rate, *rest: sgd(model, 1.01 * rate, *rest))
    assert "Raise it or undo" in verdict(cls, fingerprint(cls), load())
    monkeypatch.setattr(cls, "version", cls.version + 1)
    assert "Run `make golden`" in verdict(cls, fingerprint(cls), load())


def test_another_order_of_sums_is_no_changed_behaviour() -> None:
    found = fingerprint(Finetune)
    near = {name: [number + 1e-4 * numbers[0] for number in numbers] for name, numbers in found.items()}
    assert verdict(Finetune, near, load()) == ""
