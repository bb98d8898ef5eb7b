"""A list of defects, each with the check that the right function passes and the defective one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Check = Callable[[Any], None]


class Defects:
    """Collects mutants by decorator, and holds each against the very check that the right one passes."""

    def __init__(self) -> None:
        self.cases: list[Any] = []

    def of(self, right: Any, check: Check) -> Callable[[Any], Any]:
        """The decorated function is a defective version of `right`, and `check` must tell them apart."""

        def keep(mutant: Any) -> Any:
            self.cases.append(pytest.param(right, check, mutant, id=mutant.__name__))
            return mutant

        return keep


def tell_apart(right: Any, check: Check, mutant: Any) -> None:
    """Fails unless `check` accepts the right function and refuses the mutant."""
    check(right)
    with pytest.raises(AssertionError):
        check(mutant)
