"""Every check of the contract as tests of a class that others subclass; this is the one list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch

from methods.base import Method
from tests.contract import checks, checks_data
from tests.contract.checks import Case
from tests.contract.toy import NETS, Toy, few, problem_for

Check = Callable[[type[Method], Toy, Case], None]

DECLARATION: tuple[Callable[[type[Method]], None], ...] = (
    checks.check_declared,
    checks.check_space,
    checks.check_unknown_hyperparameter,
)
ON_BOTH_NETS: tuple[Check, ...] = (
    checks.check_weights_change,
    checks.check_same_structure,
    checks.check_seeds,
    checks.check_zero_steps,
    checks_data.check_sizes,
    checks_data.check_influence,
)
ON_ONE_NET: tuple[Check, ...] = (
    checks.check_random_point,
    checks.check_every_hyperparameter_matters,
    checks.check_no_global_state,
    checks.check_diverged,
    checks.check_scope,
    checks_data.check_needs,
    checks_data.check_no_wait_per_step,
    checks_data.check_cost,
)
OF_ALL_SAMPLES: tuple[Check, ...] = (
    checks.check_utility,
    checks.check_nearer_to_retraining,
)


def title(check: Callable[..., None]) -> str:
    return check.__name__.removeprefix("check_")


class MethodContract:
    """What every method must satisfy, on toy problems that are trained once per process.

    Subclasses name the `method` and, where its defaults do not do on so small a problem, its `case`.
    """

    method: ClassVar[type[Method]]
    case: ClassVar[Case] = Case()

    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        """The nets are too small for more, and sums do not depend on the machine."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.mark.parametrize("check", DECLARATION, ids=title)
    def test_declaration(self, check: Callable[[type[Method]], None]) -> None:
        check(self.method)

    @pytest.mark.parametrize("net", NETS)
    @pytest.mark.parametrize("check", ON_BOTH_NETS, ids=title)
    def test_on_a_convolutional_net_and_on_a_transformer(self, check: Check, net: str) -> None:
        check(self.method, few(problem_for(self.method, net)), self.case)

    @pytest.mark.parametrize("check", ON_ONE_NET + OF_ALL_SAMPLES, ids=title)
    def test_on_a_convolutional_net(self, check: Check) -> None:
        toy = problem_for(self.method, "cnn")
        check(self.method, toy if check in OF_ALL_SAMPLES else few(toy), self.case)
