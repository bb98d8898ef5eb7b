"""What changes between steps and a recorded step cannot see: an error, and not a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Diverged, Method, divergence, fit, frozen_copy, sgd
from tests.test_recordings import batches, bits, net, train
from workers.engine import Graphs, chosen
from workers.pruning import Pruned


class Counting(nn.Module):
    """Its forward pass changes an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def test_a_net_that_counts_ends_in_an_error_and_not_in_a_wrong_result() -> None:
    graphs, model = Graphs(), Counting()
    given = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 5
    with (
        chosen(graphs),
        pytest.raises(RuntimeError, match=r"an attribute of the net .* Use the engine eager"),
    ):
        train(model, sgd(model, 0.1), lambda: given)
    assert not graphs.free
    model = net(0)
    with chosen(graphs), pytest.raises(RuntimeError, match="Use the engine eager"):
        train(model, sgd(model, 0.1), lambda: (model.eval(), batches(0))[1])


@pytest.mark.parametrize("result", [Diverged, Pruned])
def test_a_net_that_counts_ends_in_an_error_where_its_fit_ends_early(result: type[Exception]) -> None:
    graphs, model = Graphs(), Counting()

    def given() -> list[Batch]:
        if turns:
            raise result
        turns.append(1)
        return [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 5

    turns: list[int] = []
    with chosen(graphs), pytest.raises(RuntimeError, match="Use the engine eager"):
        train(model, sgd(model, 0.1), given)
    assert turns and not graphs.free


def test_a_net_that_counts_ends_in_an_error_where_it_is_recorded_for_one_fit() -> None:
    model = Counting()
    optimizer = sgd(model, 0.1)
    optimizer.register_step_pre_hook(lambda *_: None)
    given = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 5
    with chosen(Graphs()), pytest.raises(RuntimeError, match="Use the engine eager"):
        train(model, optimizer, lambda: given)


class Centred(nn.Module):
    """Its forward pass replaces a buffer, whose values are then those of no memory that was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
        return self.layer(x - self.centre)


class Keeping(Centred):
    """Its forward pass keeps a result, with its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.layer(x)
        return self.kept


@pytest.mark.parametrize("kind", [Centred, Keeping])
def test_a_net_that_replaces_a_tensor_ends_in_an_error(kind: type[nn.Module]) -> None:
    graphs = Graphs()
    given = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 5
    for _ in range(2):
        model = kind()
        with (
            chosen(graphs),
            pytest.raises(RuntimeError, match=r"a tensor was replaced .* Use the engine eager"),
        ):
            train(model, sgd(model, 0.1), lambda: given)
        assert not graphs.free


def new_weight(model: Any, _: list[Tensor]) -> None:
    model[5].bias = nn.Parameter(model[5].bias.detach() + 1, requires_grad=False)


def new_memory(model: Any, _: list[Tensor]) -> None:
    model[1].weight.data = model[1].weight.data + 1


def new_constant(_: Any, held: list[Tensor]) -> None:
    held[0] = held[0] + 1


@pytest.mark.parametrize("replace", [new_weight, new_memory, new_constant])
def test_tensors_replaced_between_steps_end_in_an_error(replace: Callable[..., None]) -> None:
    graphs, model, weights = Graphs(), net(0), torch.ones(4)
    model[5].bias.requires_grad_(False)
    optimizer, turns = sgd(model, 0.1), []

    def given() -> list[Batch]:
        nonlocal weights
        turns.append(1)
        if len(turns) == 2:
            held = [weights]
            replace(model, held)
            weights = held[0]
        return batches(0)

    with chosen(graphs), pytest.raises(RuntimeError, match="a tensor was replaced"):
        fit(optimizer, given, lambda x, y: cross_entropy(model(x), y, weights), epochs=2, pure=True)
    assert not graphs.free


def test_a_function_that_calls_itself_is_lent_like_others() -> None:
    graphs, found = Graphs(), []
    for engine in (graphs, graphs, "eager"):
        model = net(0)

        def power(value: Tensor, exponent: int) -> Tensor:
            return value * power(value, exponent - 1) if exponent else value

        def loss(x: Tensor, y: Tensor, model: nn.Module = model, power: Any = power) -> Tensor:
            return power(cross_entropy(model(x), y), 2)

        with chosen(engine), torch.random.fork_rng([]):
            torch.manual_seed(7)
            fit(sgd(model, 0.1), lambda: batches(0), loss, epochs=1, pure=True)
        found.append(bits(model))
    assert found[0] == found[1] == found[2] and len(graphs.free) == 1


@dataclass(frozen=True)
class Remembering(Method):
    """A method that sets, besides its fields, the teacher that its loss reads."""

    def unlearn(self, model: nn.Module, data: Any) -> nn.Module:
        object.__setattr__(self, "teacher", frozen_copy(model))

        def loss(x: Tensor, _: Tensor) -> Tensor:
            return divergence(self.teacher(x), model(x))  # type: ignore[attr-defined]

        fit(sgd(model, 0.1), lambda: data, loss, epochs=1, pure=True)
        return model


def test_what_a_method_sets_besides_its_fields_is_that_of_each_fit() -> None:
    graphs, found = Graphs(), []
    for engine in (graphs, "eager"):
        for seed in (0, 1):
            with chosen(engine), torch.random.fork_rng([]):
                torch.manual_seed(7)
                found.append(bits(Remembering().unlearn(net(seed), batches(0))))
    assert found[:2] == found[2:] and found[0] != found[1] and len(graphs.free) == 1
