"""One recording serves many models, each of which comes out as by plain steps, bit for bit.

On a CPU the recorded step, which is of the recording's own copies, is called in place of a replay.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import AFTER_EPOCH, Batch, Diverged, adam, fit, sgd
from methods.schedules import cosine, one_cycle
from workers.engine import WARM_UP, Graphs, Stepper, chosen, is_full

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda model: sgd(model, 0.1, 0.9, 5e-4),
    "plain sgd": lambda model: sgd(model, 0.1),
    "adam": lambda model: adam(model, 0.003, 1e-4),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "by epoch": {"schedule": cosine},
    "by step": {"schedule": one_cycle, "steps": 6},
}
SIZES = (16,) * 5 + (9,)


def net(seed: int) -> nn.Module:
    """Dropout, running statistics, and weights of the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Dropout(0.2), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
        )


def batches(seed: int, sizes: tuple[int, ...] = SIZES) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 1, 6, 6, generator=draw), torch.randint(4, (n,), generator=draw)) for n in sizes]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, given: Callable[[], Any], **more: Any
) -> torch.optim.Optimizer:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        loss = lambda x, y: cross_entropy(model(x), y)  # noqa: E731
        fit(optimizer, given, loss, **{"epochs": 3, "pure": True} | more)
    return optimizer


def bits(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[bytes]:
    """Of all tensors of a model and of an optimizer's state, in order: zeros of both signs differ."""
    states = [] if optimizer is None else [optimizer.state.get(p, {}) for p in model.parameters()]
    state = [state[name] for state in states for name in sorted(state)]
    return [tensor.detach().numpy().tobytes() for tensor in [*model.state_dict().values(), *state]]


def places(model: nn.Module) -> list[tuple[int, tuple[int, ...]]]:
    return [(tensor.data_ptr(), tensor.stride()) for tensor in model.state_dict().values()]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches for which steps are recorded."""
    sizes, record = [], Stepper._recorded
    monkeypatch.setattr(Stepper, "_recorded", lambda self, b: (sizes.append(len(b[0])), record(self, b))[1])
    return sizes


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    engine = Graphs()
    with chosen(engine):
        yield engine


# ---- many models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_models_in_a_row_by_one_recording_equal_plain_ones(
    graphs: Graphs, recorded: list[int], name: str, schedule: str
) -> None:
    """Other weights, batches and learning rates; ragged batches, dropout and running statistics."""
    for seed, rate in ((0, 1.0), (1, 0.3), (2, 1.0)):
        model, plain = net(seed), net(seed)
        before, given = places(model), batches(seed)
        optimizers = OPTIMIZERS[name](model), OPTIMIZERS[name](plain)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] *= rate
        train(model, optimizers[0], lambda given=given: given, **SCHEDULES[schedule])
        with chosen("eager"):
            train(plain, optimizers[1], lambda given=given: given, **SCHEDULES[schedule])
        assert bits(model, optimizers[0]) == bits(plain, optimizers[1]) != bits(net(seed))
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]
        assert places(model) == before
    assert sorted(recorded) == [9, 16] and len(graphs.free) == 1


def test_a_fit_that_takes_over_has_no_plain_steps(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, step = [], Stepper._step_aside
    monkeypatch.setattr(Stepper, "_step_aside", lambda self, b: (plain.append(1), step(self, b))[1])
    for seed in range(3):
        model = net(seed)
        train(model, sgd(model, 0.1), lambda: batches(0, (16,) * 5))
    assert len(plain) == WARM_UP


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gradient", [-0.0, 0.0, 2.0])
def test_the_first_step_is_that_of_a_fresh_optimizer_to_the_sign_of_zero(
    graphs: Graphs, gradient: float, momentum: float, decay: float
) -> None:
    found = []
    for how in (graphs, graphs, "eager"):
        held = nn.ParameterList([torch.tensor([-0.0, 0.0, 1.0])])
        weight = held[0]
        optimizer = torch.optim.SGD([weight], lr=0.5, momentum=momentum, weight_decay=decay)
        count = WARM_UP + 2 if not found else 1
        with chosen(how):
            fit(
                optimizer,
                lambda count=count: [(torch.full((3,), gradient),)] * count,
                lambda x, weight=weight: (weight * x).sum(),
                epochs=1,
                pure=True,
            )
        found.append(bits(held, optimizer))
    assert found[1] == found[2]
    assert len(graphs.free) == 1


def test_a_model_is_not_changed_by_the_fits_after_its_own(graphs: Graphs) -> None:
    """Nor do its gradients or its optimizer's state live on in the recording."""
    first, optimizers = net(0), []
    optimizers.append(train(first, sgd(first, 0.1, 0.9), lambda: batches(0)))
    kept = bits(first, optimizers[0])
    second = net(1)
    optimizers.append(train(second, sgd(second, 0.1, 0.9), lambda: batches(1)))
    assert bits(first, optimizers[0]) == kept
    owners = [
        {t.untyped_storage().data_ptr() for t in tensors}
        for tensors in (
            [*first.state_dict().values(), *(s["momentum_buffer"] for s in optimizers[0].state.values())],
            [*second.state_dict().values(), *(s["momentum_buffer"] for s in optimizers[1].state.values())],
            [*graphs.free[0].tensors, *graphs.free[0].stepper.rates],
            [s["momentum_buffer"] for s in graphs.free[0].optimizer.state.values()],
            [o.__dict__["all_finite"] for o in (*optimizers, graphs.free[0].optimizer)],
        )
    ]
    assert sum(map(len, owners)) == len(set.union(*owners))
    assert all(p.grad is None for model in (first, second) for p in model.parameters())


def test_strides_stay_as_they_were(graphs: Graphs) -> None:
    for _ in range(2):
        model = net(0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        before = places(model)
        assert not model[1].weight.is_contiguous() or model[1].weight.stride()[1] == 1
        train(model, sgd(model, 0.1), lambda: batches(0))
        assert places(model) == before


# ---- fits that end early ---------------------------------------------------------------------------------


class Stop(Exception):
    pass


def diverging() -> Iterator[Batch]:
    for number, (images, labels) in enumerate(batches(1)):
        yield images * (float("nan") if number == 4 else 1), labels


def breaking() -> Iterator[Batch]:
    yield from batches(1)[:4]
    raise Stop


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("how", ["diverged", "broken", "pruned"])
def test_after_a_fit_that_ended_early_the_next_one_is_right(
    graphs: Graphs, recorded: list[int], how: str, first: bool
) -> None:
    """Whether or not it was the one that recorded. Its own model keeps what plain steps leave."""
    given = {"diverged": diverging, "broken": breaking, "pruned": lambda: batches(1)}[how]
    if not first:
        model = net(5)
        train(model, sgd(model, 0.1, 0.9), lambda: batches(5))

    def stop() -> None:
        raise Stop

    left = []
    for engine in (graphs, "eager"):
        ended = net(1)
        before, token = places(ended), AFTER_EPOCH.set(stop if how == "pruned" else None)
        with chosen(engine), pytest.raises(Diverged if how == "diverged" else Stop):
            train(ended, sgd(ended, 0.1, 0.9), given)
        AFTER_EPOCH.reset(token)
        assert places(ended) == before
        left.append(bits(ended))
    assert left[0] == left[1]
    model, plain = net(2), net(2)
    train(model, sgd(model, 0.1, 0.9), lambda: batches(2))
    with chosen("eager"):
        train(plain, sgd(plain, 0.1, 0.9), lambda: batches(2))
    assert bits(model) == bits(plain)
    assert recorded.count(16) == 1 and len(graphs.free) == 1


# ---- several fits of a model, and fits at the same time --------------------------------------------------


def in_turns(model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Two optimizers, three rounds, momentum lasting from one round to the next."""
    optimizers = sgd(model, 0.1, 0.9), adam(model, 0.01)
    for turn in range(3):
        for optimizer in optimizers:
            train(model, optimizer, lambda turn=turn: batches(turn), epochs=1)
    return optimizers


def test_fits_in_turns_keep_their_optimizers_state(graphs: Graphs, recorded: list[int]) -> None:
    model, plain = net(0), net(0)
    found = in_turns(model)
    with chosen("eager"):
        expected = in_turns(plain)
    for ours, theirs in zip(found, expected, strict=True):
        assert bits(model, ours) == bits(plain, theirs)
    assert recorded.count(16) == 2 and len(graphs.free) == 2


def test_a_loss_that_was_not_finite_is_remembered_by_its_optimizer_alone(graphs: Graphs) -> None:
    model = net(0)
    guilty = sgd(model, 0.1)
    for given in (diverging, lambda: batches(0)):
        with pytest.raises(Diverged):
            train(model, guilty, given)
    fresh = net(0)
    train(fresh, sgd(fresh, 0.1), lambda: batches(0))
    assert len(graphs.free) == 1


def nested(outer: nn.Module, inner: nn.Module) -> None:
    def given() -> Iterator[Batch]:
        for number, batch in enumerate(batches(0)):
            if number == 4:
                train(inner, sgd(inner, 0.1), lambda: batches(1), epochs=2)
            yield batch

    train(outer, sgd(outer, 0.1), given, epochs=2)


def test_a_recording_in_use_is_not_lent_again(graphs: Graphs, recorded: list[int]) -> None:
    models, plain = (net(0), net(1)), (net(0), net(1))
    nested(*models)
    with chosen("eager"):
        nested(*plain)
    assert [bits(model) for model in models] == [bits(model) for model in plain]
    assert recorded.count(16) == 2 and len(graphs.free) == 2


def test_what_happens_between_steps_reaches_the_model(graphs: Graphs) -> None:
    """Weights changed in place by the batches, and looked at after each epoch."""
    found = []
    for engine in (graphs, graphs, "eager"):
        model, seen = net(3), []
        token = AFTER_EPOCH.set(lambda model=model, seen=seen: seen.append(bits(model)))

        def given(model: nn.Module = model) -> list[Batch]:
            with torch.no_grad():
                model[1].weight.add_(0.01)
            return batches(3)

        with chosen(engine):
            train(model, sgd(model, 0.1, 0.9), given)
        AFTER_EPOCH.reset(token)
        found.append([*seen, bits(model)])
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


def test_tensors_that_a_loss_holds_are_those_of_the_fit(graphs: Graphs, recorded: list[int]) -> None:
    """A teacher and the weights of classes: others for each model."""
    found = {}
    for engine in (graphs, "eager"):
        for seed in range(3):
            model, teacher = net(seed), net(seed + 10).eval().requires_grad_(False)
            weights = torch.arange(4.0) + seed

            def loss(x: Tensor, y: Tensor, model=model, teacher=teacher, weights=weights) -> Tensor:
                return cross_entropy(model(x), y, weights) + (model(x) - teacher(x)).square().mean()

            with chosen(engine), torch.random.fork_rng([]):
                torch.manual_seed(7)
                fit(sgd(model, 0.1), lambda: batches(0), loss, epochs=2, pure=True)
            found[engine == "eager", seed] = bits(model)
            assert torch.equal(weights, torch.arange(4.0) + seed)
            assert bits(teacher) == bits(net(seed + 10))
    for seed in range(3):
        assert found[False, seed] == found[True, seed]
    assert recorded.count(16) == 1


# ---- how many are kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("held", "expected"), [(2, 4), (3, 3), (4, 3)])
def test_the_recording_returned_longest_ago_is_dropped(recorded: list[int], held: int, expected: int) -> None:
    with chosen(Graphs(held)):
        for momentum in (0.1, 0.2, 0.1, 0.3, 0.1, 0.2):
            model = net(0)
            train(model, sgd(model, 0.1, momentum), lambda: batches(0, (16,) * 5))
    assert len(recorded) == expected, "where only two are kept, 0.2 is recorded twice"


def test_fewer_are_kept_while_the_device_is_full(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes first, until there is room; without a GPU there always is."""
    graphs, left = Graphs(), [100, 100, 20, 20, 30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (left.pop(0), 100))
    monkeypatch.setattr("workers.engine.is_full", lambda device: is_full(torch.device("cuda")))
    with chosen(graphs):
        for momentum in (0.1, 0.2, 0.3):
            model = net(0)
            train(model, sgd(model, 0.1, momentum), lambda: batches(0, (16,) * 5))
    assert [r.optimizer.param_groups[0]["momentum"] for r in graphs.free] == [0.3] and not left
    assert len(recorded) == 3 and not is_full(torch.device("cpu"))


def test_on_a_device_short_of_memory_nothing_more_is_recorded(recorded: list[int]) -> None:
    graphs, weights = Graphs(), []
    with chosen(graphs):
        for kept in (1, 0):
            model = net(0)
            train(model, sgd(model, 0.1), lambda: batches(0, (16,) * 5))
            weights.append(bits(model))
            assert len(graphs.free) == kept
            assert graphs.give_up() == bool(kept) and not graphs.free
    assert len(recorded) == 1 and weights[0] == weights[1]


def test_a_dropped_recording_leaves_its_memory_before_that_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, told = Graphs(), []
    model = net(0)
    with chosen(graphs):
        train(model, sgd(model, 0.1), lambda: batches(0, (16,) * 5))
    graphs.free[0].stepper.on_gpu = True
    weight = weakref.ref(graphs.free[0].tensors[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append(weight() is not None))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append(weight() is None))
    assert graphs.give_up() and told == [True, True]
