"""Recorded steps equal plain ones bit for bit; memory formats.

On a CPU the recorded step is called in place of a replay.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import ENGINE, Batch, Diverged, Method, adam, fit, plain_step, plugin, sgd
from methods.schedules import cosine, one_cycle
from orchestrator.catalogue import plugins
from tests.contract import golden
from tests.contract.golden import fingerprint
from tests.contract.toy import Toy
from workers import engine
from workers.architectures import architecture
from workers.data import DeviceDataset, View
from workers.datasets.digits import Digits
from workers.engine import WARM_UP, Graphs, Stepper, channels_last, chosen, placed
from workers.evaluate import evaluate
from workers.run_task import Base, generator, pack_base, unpack_base, weights_hash
from workers.train import Recipe, train

CPU = torch.device("cpu")
RECIPE = Recipe("sgd", 0.05, 0.9, 5e-4, "cosine", 3, 64, True, "float32", 1)


def net(name: str = "cnn_small", channels: int = 1, size: int = 8) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return architecture(name).build(10, channels, size)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), *net())


def batches(sizes: tuple[int, ...], device: torch.device = CPU) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 8, 8, generator=draw).to(device),
            torch.randint(10, (n,), generator=draw).to(device),
        )
        for n in sizes
    ]


def trained(
    model: nn.Module,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    given: list[Batch],
    how: str | Graphs | None,
    seed: int = 2,
    **more: Any,
) -> torch.optim.Optimizer:
    """The optimizer after three epochs on the batches by an engine; None: by the one that is chosen."""
    optimizer = make(model)
    with torch.random.fork_rng(), nullcontext() if how is None else chosen(how):
        torch.manual_seed(seed)
        fit(optimizer, lambda: given, lambda x, y: cross_entropy(model(x), y), epochs=3, pure=True, **more)
    return optimizer


def same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- recorded steps --------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda model: sgd(model, 0.1, 0.9, 5e-4),
    "plain sgd": lambda model: sgd(model, 0.1),
    "adam": lambda model: adam(model, 0.003, 1e-4),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "by epoch": {"schedule": cosine},
    "by step": {"schedule": one_cycle, "steps": 6},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sizes", [(16,) * 6, (16,) * 5 + (9,), (9,) + (16,) * 5, (16, 9) * 3, (16,)])
def test_recorded_steps_equal_plain_ones_bit_for_bit(
    sizes: tuple[int, ...], optimizer: str, schedule: str
) -> None:
    recorded, plain = with_dropout(), with_dropout()
    given, more = batches(sizes), SCHEDULES[schedule]
    after = trained(recorded, OPTIMIZERS[optimizer], given, "graphs", **more)
    before = trained(plain, OPTIMIZERS[optimizer], given, "eager", **more)
    assert same(recorded, plain) and not same(recorded, with_dropout())
    assert after.param_groups[0]["lr"] == before.param_groups[0]["lr"]
    assert isinstance(after.param_groups[0]["lr"], float), "whoever uses it next finds a number"


def test_each_shape_of_batch_is_replayed_from_its_own_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fourth batch of a shape on, and so for the first SHAPES shapes alone."""
    recorded, replayed, seen = [], [], []
    record = Stepper._recorded

    def watched(self: Stepper, buffers: Batch) -> Callable[[], None]:
        replay, size = record(self, buffers), len(buffers[0])
        recorded.append(size)
        return lambda: (replayed.append(size), replay())[1]

    monkeypatch.setattr(Stepper, "_recorded", watched)
    monkeypatch.setattr(engine, "SHAPES", 2)
    model, given = net(), batches((16,) * 5 + (9, 7))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(images), images.data_ptr()))
        return cross_entropy(model(images), labels)

    with chosen(lambda optimizer, loss: nullcontext(Stepper(optimizer, plain_step(optimizer, loss)))):
        fit(sgd(model, 0.1), lambda: given, loss, epochs=5, pure=True)
    assert recorded == [16, 9] and Counter(replayed) == {16: 25 - WARM_UP, 9: 5 - WARM_UP}
    assert [size for size, _ in seen] == [16, 16, 16, 16, 16, 9, 7] * 5, "recording takes no step of its own"
    for size in (16, 9):
        places = [place for of, place in seen if of == size][WARM_UP:]
        assert len(set(places)) == 1 and not {x.data_ptr() for x, _ in given} & set(places)


def test_schedules_reach_a_recorded_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, fill = [], Stepper._fill_rates
    monkeypatch.setattr(
        Stepper, "_fill_rates", lambda self: (fill(self), rates.append(self.rates[0].item()))[0]
    )
    trained(net(), OPTIMIZERS["sgd"], batches((16,) * 4), "graphs", schedule=cosine)
    assert rates == [0.1 * cosine(epoch, 3) for epoch in (0, 1, 1, 1, 1, 2, 2, 2, 2)]


def test_what_is_not_pure_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stepper, "__call__", lambda *_: pytest.fail("the loss is not pure"))
    model, other = net(), net()
    for engine_name, m in (("graphs", model), ("eager", other)):
        with chosen(engine_name):
            fit(sgd(m, 0.1), lambda: batches((16,) * 6), lambda x, y, m=m: cross_entropy(m(x), y), epochs=1)
    assert same(model, other) and not same(model, net())


@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_loss_that_is_not_finite_is_noticed_in_any_kind_of_step(at: int) -> None:
    """In a step of warming up, in a replayed one, and in a ragged one; later losses are finite again."""
    given, model, done = batches((16,) * 5 + (9,)), net(), []
    mark = given[at][0][0, 0, 0, 0].clone()

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        done.append(1)
        value = cross_entropy(model(images), labels)
        return torch.where((images == mark).any(), value.detach() + math.inf, value) + 0 * value

    with chosen("graphs"), pytest.raises(Diverged):
        fit(sgd(model, 0.1), lambda: given, loss, epochs=2, pure=True)
    assert len(done) == 6, "the first epoch is finished, a second not begun"


def test_the_engine_is_chosen_for_a_block_and_known_by_name() -> None:
    assert ENGINE.get() is None
    with pytest.raises(ZeroDivisionError), chosen("graphs"):
        assert isinstance(ENGINE.get(), Graphs)
        raise ZeroDivisionError
    assert ENGINE.get() is None and engine.made("eager") is None
    with pytest.raises(ValueError, match=r"engine: 'graph' is unknown\. Allowed: eager, graphs"):
        engine.made("graph")


NOT_PURE = {"fisher_forgetting", "influence_unlearning", "mnemonic_code"}  # they take no steps by `fit`
WITH_HOOKS = {"masked_small_gradients", "salun"}  # on gradients: recorded for their fit alone


@pytest.mark.parametrize("name", plugins("methods"))
def test_methods_compute_the_same_by_recorded_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later by the recordings there are, where their steps can be told to be the same. The second time adds
    shapes of batches that came once per pass.
    """
    used, record = [], Stepper._recorded
    monkeypatch.setattr(engine, "WARM_UP", 1)
    monkeypatch.setattr(Stepper, "_recorded", lambda self, b: (used.append(1), record(self, b))[1])
    cls = plugin("methods", name)
    plain = fingerprint(cls)
    counts = []
    with chosen(Graphs(held=20)):
        for _ in range(3):
            assert fingerprint(cls) == plain
            counts.append(len(used))
    assert bool(counts[0]) == (name not in NOT_PURE)
    assert counts[2] == (3 * counts[0] if name in WITH_HOOKS else counts[1])


# ---- the fast path and the plain path --------------------------------------------------------------------


class Moved(Digits):
    augment_pad, augment_flip = 1, True


@pytest.fixture(scope="module")
def digits() -> DeviceDataset:
    return DeviceDataset(Moved, Digits().load(Path("unused")), CPU)


class Stepwise(View):
    """The plain path: gathered, then cropped, then mirrored, then normalised."""

    def _gathered(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.dataset.gather(ids)
        return self.dataset.normalised(self.dataset.augmented(images, self.rng, self.flip)), labels


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_the_fast_path_trains_the_same_model_on_digits(digits: DeviceDataset, schedule: str) -> None:
    """Recorded steps on batches gathered at once against plain steps on batches made one operator at a time:
    the same weights bit for bit, a ragged last batch included.
    """
    assert 400 % RECIPE.batch_size > 1
    models = []
    for view, how in ((View, "graphs"), (Stepwise, "eager")):
        model = net()
        with chosen(how):
            train(
                model,
                view(digits, np.arange(400), generator(3, CPU), augment=True),
                Recipe(**vars(RECIPE) | {"schedule": schedule}),
            )
        models.append(model)
    assert same(*models) and not same(models[0], net())


@pytest.mark.long
def test_bfloat16_is_as_accurate_as_float32_within_seed_noise(digits: DeviceDataset) -> None:
    """cnn_small on digits, six seeds of each: mean test accuracies within three standard errors of their
    difference, and none of the models below what float32 reaches at its worst by more than its spread.
    """
    accuracy: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(6):
        for precision, found in accuracy.items():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = architecture("cnn_small").build(10, 1, 8)
            view = View(digits, np.arange(digits.n_pool), generator(seed, CPU), augment=True)
            with chosen("graphs"):
                train(model, view, Recipe(**vars(RECIPE) | {"epochs": 10, "precision": precision}))
            found.append(float(evaluate(model, digits).correct[digits.n_pool :].mean()))
    plain, reduced = (np.array(found) for found in accuracy.values())
    error = np.sqrt((plain.var(ddof=1) + reduced.var(ddof=1)) / len(plain))
    assert plain.mean() > 0.85 and not np.array_equal(plain, reduced)
    assert abs(plain.mean() - reduced.mean()) < 3 * error
    assert reduced.min() > plain.min() - np.ptp(plain)


# ---- channels last ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convolutional"),
    [("cnn_small", True), ("resnet18_cifar", True), ("vit_tiny", False), ("tinyvit11m", False)],
)
def test_convolutional_nets_get_their_channels_last(name: str, convolutional: bool) -> None:
    model = channels_last(net(name, 3, 32))
    wide = [p for p in model.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) == convolutional for p in wide)


def test_nets_with_group_norms_keep_their_format() -> None:
    """Torch 2.11 crashes on the gradient of a GroupNorm's weight alone in channels_last."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 36, 10))
    assert channels_last(model)[0].weight.is_contiguous()
    del model[1]
    assert not channels_last(model)[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("device", "how", "last"),
    [("cpu", "eager", True), ("cpu", "graphs", True), ("meta", "eager", False), ("meta", "graphs", True)],
)
def test_a_cpu_always_has_channels_last_and_other_devices_with_graphs(
    device: str, how: str, last: bool
) -> None:
    with chosen(how):
        model = placed(net(channels=3), torch.device(device))
    assert model[0].weight.device.type == device
    assert model[0].weight.is_contiguous() != last


def test_channels_last_changes_no_file_and_results_by_rounding_only() -> None:
    plain, last = net("wide_resnet16_4", 3, 8), channels_last(net("wide_resnet16_4", 3, 8))
    facts = ("members", "", 1.5, None, "task")
    packed, usual = (pack_base(Base(model, *facts)) for model in (last, plain))
    assert len(packed) == len(usual) and weights_hash(last, None) == weights_hash(plain, None)
    assert same(unpack_base(packed, net("wide_resnet16_4", 3, 8), CPU).model, plain)
    assert not next(p for p in copy.deepcopy(last).parameters() if p.dim() == 4).is_contiguous()
    draw = torch.Generator().manual_seed(0)
    given = [(torch.randn(8, 3, 8, 8, generator=draw), torch.arange(8)) for _ in range(4)]
    for model in (plain, last):
        optimizer = sgd(model, 0.01, 0.9, 5e-4)
        fit(optimizer, lambda: given, lambda x, y, m=model: cross_entropy(m(x), y), epochs=1)
    assert any(not p.is_contiguous() for p in last.parameters()), "training keeps the format"
    for a, b in zip(plain.state_dict().values(), last.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert len(pack_base(Base(last, *facts))) == len(packed)


DRAW_IN_PLACE = {"masked_small_gradients", "prune_reinitialise_match_quantise"}  # in the order of the memory


@pytest.mark.parametrize("name", plugins("methods"))
def test_methods_take_bases_with_their_channels_last(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are those of contiguous bases within rounding, but where fresh weights are drawn in place: they
    come from the same distribution in another order.
    """
    cls, tiny = plugin("methods", name), golden.tiny

    def last(cls: type[Method]) -> Toy:
        toy = tiny(cls)
        channels_last(toy.base)
        assert any(not p.is_contiguous() for p in toy.base.parameters())
        return toy

    monkeypatch.setattr(golden, "tiny", last)
    told = golden.verdict(cls, fingerprint(cls), golden.load())
    assert bool(told) == (name in DRAW_IN_PLACE)
