"""Every method, found by folder, against the contract. A new one is tested without an entry here."""

from __future__ import annotations

import pytest

from methods.base import Method, plugin
from orchestrator.catalogue import ROOT, plugins
from tests.contract import Case, MethodContract
from tests.contract.cases import CASES

METHODS = {name: plugin("methods", name) for name in plugins("methods")}

for _name, _cls in METHODS.items():  # -k <name> finds the tests of a method
    _own = {"method": _cls, "case": CASES.get(_name, Case())}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (MethodContract,), _own)


def test_methods_are_found_and_cases_are_of_methods() -> None:
    assert {"finetune", "gradient_ascent", "successive_random_labels", "neggrad_plus"} <= set(METHODS)
    assert set(CASES) <= set(METHODS)
    assert all(issubclass(cls, Method) for cls in METHODS.values())


def test_cases_that_ask_for_other_than_defaults_say_why() -> None:
    assert all(case.reason for case in CASES.values())


@pytest.mark.parametrize("name", METHODS)
def test_file_is_short_and_says_where_it_deviates(name: str) -> None:
    text = (ROOT / "methods" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80 or "Longer than 80 lines" in text
    assert "Deviation:" in text
