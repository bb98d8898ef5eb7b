"""The one loop and its guard, schedules by their tables, optimizers and frozen models, and discovery."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from methods import base
from methods.base import (
    PRECISION,
    Batch,
    Diverged,
    accumulate_gradient,
    adam,
    descend,
    divergence,
    fit,
    frozen_copy,
    head,
    layers,
    plugin,
    precision,
    reinitialise,
    sgd,
    smallest,
    stem,
)
from methods.schedules import constant, cosine, triangular

CPU = torch.device("cpu")


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def batches(count: int = 3) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(5, 3, generator=draw), torch.randint(0, 2, (5,), generator=draw)


# ---- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "factors"),
    [
        (1, [1]),
        (2, [1, 1 / 2]),
        (3, [1 / 2, 1, 1 / 2]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (10, [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_triangular(epochs: int, factors: list[float]) -> None:
    assert [triangular(e, epochs) for e in range(epochs)] == pytest.approx(factors)


def test_cosine_starts_at_one_and_is_stepped_by_epoch() -> None:
    assert [cosine(e, 4) for e in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert cosine(0, 1) == 1 and 0 < cosine(181, 182) < 1e-4


def test_constant() -> None:
    assert {constant(e, 7) for e in range(7)} == {1.0}


# ---- the loop ------------------------------------------------------------------------------------


def test_fit_takes_a_step_per_batch_at_the_rate_of_its_epoch() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    fit(optimizer, lambda: ((torch.ones(1),) for _ in range(4)), lambda x: -(weight * x).sum(), epochs=3,
        schedule=triangular)  # fmt: skip
    assert weight.item() == pytest.approx(0.1 * 4 * (0.5 + 1 + 0.5))


def test_fit_equals_a_plain_loop() -> None:
    model, other = net(), net()
    fit(
        sgd(model, 0.1, 0.9, 0.01),
        batches,
        lambda x, y: nn.functional.cross_entropy(model(x), y),
        epochs=2,
        schedule=cosine,
    )
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for rate in (0.1, 0.05):
        optimizer.param_groups[0]["lr"] = rate
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(x), y).backward()
            optimizer.step()
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_zero_epochs_do_nothing() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    fit(sgd(model, 0.1), batches, lambda x, y: pytest.fail("no step was asked for"), epochs=0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_loss_that_is_not_finite_diverges_at_the_end_of_its_epoch(bad: float, at: int) -> None:
    """Also when its gradient is finite and losses after it are, so that no weight shows it."""
    model, seen = net(), []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(seen))
        value = nn.functional.cross_entropy(model(x), y)
        return value + bad if seen[-1] == at else value

    with pytest.raises(Diverged, match="the loss is not finite"):
        fit(sgd(model, 0.1), batches, loss, epochs=5)
    assert len(seen) == 3, "the first epoch is finished, a second not begun"


def test_the_guard_is_of_one_optimizer_and_lasts() -> None:
    model = net()
    guilty, innocent = sgd(model, 0.1), sgd(model, 0.1)
    descend(guilty, sum(p.sum() for p in model.parameters()) * math.nan)
    model = net()
    descend(innocent, sum(p.sum() for p in model.parameters()))
    base.check_finite(innocent)
    for _ in range(2):
        with pytest.raises(Diverged):
            base.check_finite(guilty)


def test_descend_forgets_gradients_that_were_there() -> None:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 100.0)
    descend(torch.optim.SGD([weight], lr=1.0), weight.sum())
    assert weight.item() == -1.0


def test_check_finite_before_any_step() -> None:
    base.check_finite(sgd(net(), 0.1))


# ---- optimizers and models -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adam])
def test_no_optimizer_accepts_a_frozen_copy(make) -> None:
    with pytest.raises(ValueError, match="frozen"):
        make(frozen_copy(net()), 0.1)


@pytest.mark.parametrize("make", [sgd, adam])
def test_optimizers_leave_frozen_parameters_alone(make) -> None:
    model = net()
    model[0].requires_grad_(False)
    assert {id(p) for p in make(model, 0.1).param_groups[0]["params"]} == {
        id(p) for m in (model[1], model[3]) for p in m.parameters()
    }


def test_frozen_copy_is_deep_in_eval_mode_and_without_gradients() -> None:
    model = net().train()
    teacher = frozen_copy(model)
    assert model.training and not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    shared = {t.data_ptr() for t in model.state_dict().values()} & {
        t.data_ptr() for t in teacher.state_dict().values()
    }
    assert not shared
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(model[0].weight, teacher[0].weight)


def test_accumulated_gradients_weigh_each_batch_once() -> None:
    """One port adds a running sum at each batch, so that the first of n counts n times."""
    model = net().eval()
    accumulate_gradient(model, batches(3), lambda x, y: nn.functional.cross_entropy(model(x), y))
    total = sum(nn.functional.cross_entropy(model(x), y) for x, y in batches(3))
    expected = torch.autograd.grad(total, list(model.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_layers_are_named_and_in_order() -> None:
    assert [name for name, _ in layers(net(), nn.Linear)] == ["0", "3"]
    assert [name for name, _ in layers(net(), nn.Linear, nn.BatchNorm1d)] == ["0", "1", "3"]


@pytest.mark.parametrize(("chosen", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_of_the_forward_pass_on_a_cpu(chosen: str, dtype: torch.dtype) -> None:
    token = PRECISION.set(chosen)
    try:
        with precision(CPU):
            assert net()[0](torch.ones(1, 3)).dtype == dtype
    finally:
        PRECISION.reset(token)
    assert net()[0](torch.ones(1, 3)).dtype == torch.float32


class Vit(nn.Module):
    """One block of attention with a class token, as such nets are written."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.patches = nn.Conv2d(1, 8, 2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16)
        self.head = nn.Linear(8, 5)


def test_stem_and_head_of_a_transformer_and_of_a_convolutional_net() -> None:
    vit = Vit()
    assert stem(vit) is vit.patches and head(vit) is vit.head
    cnn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    assert stem(cnn) is cnn[0] and head(cnn) is cnn[4]
    with pytest.raises(ValueError, match="no convolution"):
        stem(net())


def changed(model: nn.Module, start: nn.Module) -> set[str]:
    before, after = start.state_dict(), model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_reinitialise_leaves_no_parameter_as_it_was_and_follows_its_generator() -> None:
    for make in (net, Vit):
        start = make()
        with torch.no_grad():
            for tensor in start.state_dict().values():
                tensor.add_(3)
        models = [copy.deepcopy(start) for _ in range(3)]
        state = torch.get_rng_state()
        for model, seed in zip(models, (1, 1, 2), strict=True):
            reinitialise(model, torch.Generator().manual_seed(seed))
        assert torch.equal(state, torch.get_rng_state()), "the global generator moved"
        assert changed(models[0], start) == set(start.state_dict()), "running statistics included"
        assert not changed(models[0], models[1])
        assert {name for name, p in start.named_parameters() if p.dim() > 1} <= changed(models[0], models[2])


def test_reinitialise_uses_the_initialisers_of_the_layers() -> None:
    start = frozen_copy(Vit())
    reinitialise(start, torch.Generator().manual_seed(0))
    assert not any(p.requires_grad for p in start.parameters())
    assert torch.equal(start.block.norm1.weight, torch.ones(8))
    assert torch.equal(start.block.self_attn.out_proj.bias, torch.zeros(8)), "as attention wants it"
    assert start.head.weight.abs().max() <= 8**-0.5
    assert start.token.abs().max() < 0.1


# ---- what losses are made of ---------------------------------------------------------------------


def test_divergence_is_from_the_teacher_to_the_student_averaged_over_the_batch() -> None:
    teacher, student = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]]), torch.zeros(2, 2)
    expected = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2  # ¼ and ¾ against ½ and ½; then nothing
    assert divergence(teacher, student).item() == pytest.approx(expected, rel=1e-6)
    assert divergence(2 * teacher, student, 2.0).item() == pytest.approx(expected, rel=1e-6), "no factor T²"
    backwards = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert divergence(student, teacher).item() == pytest.approx(backwards, rel=1e-6)


def test_smallest_counts_exactly() -> None:
    values = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert smallest(values, 0.5).tolist() == [[False, True], [True, False]]
    assert [int(smallest(values, f).sum()) for f in (0.0, 0.3, 0.75, 1.0)] == [0, 1, 3, 4]


# ---- discovery -----------------------------------------------------------------------------------


def test_plugin_is_the_class_with_the_name_of_its_file() -> None:
    from methods.finetune import Finetune

    assert plugin("methods", "finetune") is Finetune


def test_plugin_without_a_class_of_that_name() -> None:
    with pytest.raises(LookupError, match="no class with name = 'base'"):
        plugin("methods", "base")


def test_methods_are_frozen() -> None:
    method = plugin("methods", "finetune")()
    with pytest.raises(AttributeError):
        method.epochs = 3
