"""What a version of a method computes stays what it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from methods.base import plugin, sgd
from methods.finetune import Finetune
from orchestrator.catalogue import plugins
from tests.contract import golden
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


def test_the_command_writes_what_is_new_and_refuses_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "plugins", lambda _: ["finetune"])
    monkeypatch.setattr(golden, "PATH", tmp_path / "golden.json")
    golden.main()
    written = golden.PATH.read_text(encoding="utf-8")
    monkeypatch.setattr(golden, "fingerprint", lambda cls: {"0.weight": [1.0, 0.0]})
    with pytest.raises(SystemExit, match="Raise it or undo"):
        golden.main()
    assert golden.PATH.read_text(encoding="utf-8") == written
    monkeypatch.setattr(Finetune, "version", 2)
    golden.main()
    assert golden.load() == {"finetune": {"version": 2, "numbers": {"0.weight": [1.0, 0.0]}}}
