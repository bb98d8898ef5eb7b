"""The contract of an unlearning method, importable: subclass MethodContract in a test file of your own.

class TestMyMethod(MethodContract):
    method = MyMethod
    case = Case(toy={"epochs": 20}, reason="…")
"""

import pytest

pytest.register_assert_rewrite("tests.contract.checks", "tests.contract.checks_data")

from tests.contract.checks import Case  # noqa: E402
from tests.contract.contract import MethodContract  # noqa: E402

__all__ = ["Case", "MethodContract"]
