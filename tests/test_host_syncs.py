"""No step of a method waits for the device: nothing in an epoch asks for a number of a tensor. Found on a CPU
by the operators that a GPU would have to wait for; the host waits once per epoch, in `check_finite`.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import fit, plugin, sgd
from orchestrator.catalogue import plugins
from tests.contract.cases import CASES
from tests.contract.checks import Case, apply, short
from tests.contract.golden import tiny

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2"}


class Watch(TorchDispatchMode):
    """Notes where in `fit` the host would wait; not in Adam, whose count of steps is on the host of a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS or (name.startswith("index") and by_mask(given)):
            stack = traceback.extract_stack()
            names = {frame.name for frame in stack}
            if "fit" in names and "check_finite" not in names and "adam" not in names:
                own = [f for f in stack if "/methods/" in f.filename or "/workers/" in f.filename]
                self.found.append(f"{name} {own[-1].filename}:{own[-1].lineno}")
        return function(*given, **(named or {}))


def by_mask(given: Any) -> bool:
    indices = given[1] if len(given) > 1 and isinstance(given[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


@pytest.mark.parametrize("name", plugins("methods"))
def test_no_step_of_a_method_waits(name: str) -> None:
    cls = plugin("methods", name)
    toy, method = tiny(cls), short(cls, CASES.get(name, Case()))
    with Watch() as watch:
        apply(method, toy)
    assert watch.found == []


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.sum() > 0)]
)
def test_a_step_that_waits_is_found(wait: Any) -> None:
    model = nn.Linear(2, 2)
    images = torch.ones(4, 2)

    def loss(images: Tensor) -> Tensor:
        wait(images)
        return model(images).sum()

    with Watch() as watch:
        fit(sgd(model, 0.1), lambda: [(images,)] * 3, loss, epochs=1)
    assert len(watch.found) >= 3
