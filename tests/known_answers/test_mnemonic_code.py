"""Mnemonic codes: the ratio of Fisher informations, the step, its sign, and the training with codes.

The numbers are those of the list of tests in the specification of the method (arXiv 2306.05670).
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import mnemonic_code
from methods.base import steady
from methods.mnemonic_code import MnemonicCode, perturbation
from tests.contract.toy import CPU, RECIPE, SETS, T_MIX, Toy, data_for, memory, problem
from workers.data import UnlearnData, View
from workers.mnemonic import MnemonicView, draw_codes
from workers.run_task import generator, unlearn
from workers.train import train

CODES = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class OnlyCodes:
    """What the method may read of a problem of 5 classes; there is no set to draw batches of."""

    num_classes, device = 5, CPU

    def __init__(self, *forget_classes: int, codes: Tensor = CODES) -> None:
        self.forget_classes, self._codes = forget_classes, codes

    def codes(self) -> Tensor:
        return self._codes


def net() -> nn.Module:
    """A net whose last hidden unit is dead: its bias keeps it at zero for every input of moderate size."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 8), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(8, 5)).eval()
    with torch.no_grad():
        model[3].bias[-1] = -1e3
    return model


def perturbed(
    model: nn.Module, *forget: int, lambda_1: float = 1.0, lambda_2: float = 1e30, codes: Tensor = CODES
) -> list[Tensor]:
    """α η of every parameter; at these λ it is η itself."""
    forgotten = torch.zeros(5, dtype=torch.bool)
    forgotten[list(forget)] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return perturbation(steady(copy.deepcopy(model)), codes, forgotten, lambda_1, lambda_2)


def by_hand(model: nn.Module, *forget: int) -> list[Tensor]:
    """η = F^{C_F} / F^{C_R}, written out."""
    squares: dict[bool, list[Any]] = {gone: [0.0] * len(list(model.parameters())) for gone in (True, False)}
    for c in range(5):
        loss = cross_entropy(model(CODES[c : c + 1]), torch.tensor([c]))
        for i, g in enumerate(torch.autograd.grad(loss, list(model.parameters()))):
            squares[c in forget][i] += g.double() ** 2
    share = (5 - len(forget)) / len(forget)
    pairs = zip(squares[True], squares[False], strict=True)
    return [share * (1e-16 + f) / (1e-16 + r) for f, r in pairs]


def forget_one(**values: float) -> nn.Module:
    """The net without class 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MnemonicCode(**values).unlearn(net().train(), OnlyCodes(2))


def test_the_ratio_is_that_of_the_formula() -> None:
    for found, expected in zip(perturbed(net(), 1, 3), by_hand(net(), 1, 3), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("zero", ["lambda_1", "lambda_2"])
def test_1_a_lambda_of_zero_changes_nothing(zero: str) -> None:
    model = forget_one(**{zero: 0.0})
    for name, tensor in net().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_2_both_candidates_are_as_far_from_the_base_and_plus_is_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidates: list[list[Tensor]] = []
    true = mnemonic_code.score

    def watched(model: nn.Module, *rest: Tensor) -> float:
        candidates.append([p.detach().clone() for p in model.parameters()])
        return true(model, *rest)

    monkeypatch.setattr(mnemonic_code, "score", watched)
    forget_one(lambda_1=1e-2, lambda_2=1e-2)
    plus, minus = candidates
    for start, up, down in zip(net().parameters(), plus, minus, strict=True):
        torch.testing.assert_close((up + down) / 2, start.detach(), rtol=1e-6, atol=1e-6)
        assert bool((up >= down).all()) and bool((up > down).any())
    assert all(bool((step > 0).all()) for step in perturbed(net(), 2, lambda_1=1e-2, lambda_2=1e-2))


@pytest.mark.parametrize(("lambda_1", "lambda_2"), [(1e-3, 1e4), (0.1, 0.5), (1e-6, 1e-2), (10.0, 1e-3)])
def test_3_the_largest_step_of_a_tensor_is_the_smaller_bound(lambda_1: float, lambda_2: float) -> None:
    steps = perturbed(net(), 2, lambda_1=lambda_1, lambda_2=lambda_2)
    for step, eta in zip(steps, by_hand(net(), 2), strict=True):
        expected = min(lambda_1 * float(eta.max()), lambda_2)
        assert float(step.max()) == pytest.approx(expected, rel=1e-6)
        assert float(step.max()) <= lambda_2 * (1 + 1e-12)


@pytest.mark.parametrize(("lambda_1", "lambda_2"), [(0.01, 0.5), (0.5, 0.02)])
def test_4_equal_gradients_of_all_codes_give_a_constant_step(
    lambda_1: float, lambda_2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnemonic_code, "cross_entropy", lambda logits, _: logits.square().sum())
    model = net()
    model[4], model[3].bias.data[-1] = nn.Softplus(), 0.5  # nothing is dead, where the ratio is that of δ
    equal = CODES[:1].expand(5, -1, -1, -1)
    for step in perturbed(model, 2, lambda_1=lambda_1, lambda_2=lambda_2, codes=equal):
        torch.testing.assert_close(step, torch.full_like(step, min(lambda_1, lambda_2)), rtol=1e-4, atol=0.0)


def test_5_a_parameter_without_a_gradient_gets_the_ratio_of_the_class_counts() -> None:
    for forget, ratio in (((2,), 4.0), ((0, 4), 1.5)):
        weight = perturbed(net(), *forget)[4]  # of the linear layer, whose last row is dead
        torch.testing.assert_close(weight[-1], torch.full((48,), ratio, dtype=torch.float64))
        assert not bool((weight[:-1] == ratio).all())


def test_6_the_scale_of_the_loss_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = perturbed(net(), 2)
    monkeypatch.setattr(mnemonic_code, "cross_entropy", lambda *a: 1000 * cross_entropy(*a))
    for one, other, eta in zip(before, perturbed(net(), 2), squares(net()), strict=True):
        large = eta > 1e-10
        torch.testing.assert_close(one[large], other[large], rtol=1e-3, atol=0.0)
        assert large.any()


def squares(model: nn.Module) -> list[Tensor]:
    """The least sum of g² of any side, by which one sees where δ has no part."""
    found = []
    for gone in ([2], [0, 1, 3, 4]):
        loss = [cross_entropy(model(CODES[c : c + 1]), torch.tensor([c])) for c in gone]
        found.append([torch.autograd.grad(value, list(model.parameters())) for value in loss])
    sums = [[sum(g.double() ** 2 for g in of) for of in zip(*side, strict=True)] for side in found]
    return [torch.minimum(a, b) for a, b in zip(*sums, strict=True)]


def test_7_buffers_stay_each_code_is_passed_back_once_and_no_batch_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, backward, forward = net(), [], []
    true = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backward.append(1) or true(*a, **k))
    model.register_forward_pre_hook(lambda _, inputs: forward.append(len(inputs[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MnemonicCode(lambda_1=0.1).unlearn(model.train(), OnlyCodes(2))  # has no batches to read
    assert len(backward) == 5 and forward == [1] * 5 + [5] * 2
    for name, buffer in net().named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), net().parameters(), strict=True))


# ---- training ------------------------------------------------------------------------------------


class Recorded:
    """A mnemonic view of the toy's samples that remembers what it showed."""

    def __init__(self, toy: Toy, codes: Tensor, t_mix: float) -> None:
        view = View(toy.dataset, SETS["retain"], generator(0, CPU), augment=True)
        self.codes, self.view = codes, MnemonicView(view, codes, t_mix, generator(7, CPU))
        self.shown = self.total = 0

    def batches(self, batch_size: int) -> Any:
        for images, labels, ids in self.view.batches(batch_size):
            self.shown += int((images == self.codes[labels]).flatten(1).all(1).sum())
            self.total += len(labels)
            yield images, labels, ids


def trained(toy: Toy, view: Any) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    train(model, view, replace(RECIPE, epochs=10))
    return model


def test_8_without_codes_training_is_ordinary_and_with_nothing_else_no_image_is_seen() -> None:
    toy, codes = problem("cnn", "class", "plain"), draw_codes(4, (1, 8, 8), generator(1, CPU))
    plain = trained(toy, View(toy.dataset, SETS["retain"], generator(0, CPU), augment=True))
    none, some, every = (Recorded(toy, codes, t_mix) for t_mix in (0.0, 0.3, 1.0))
    same = zip(plain.parameters(), trained(toy, none).parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in same) and none.shown == 0
    trained(toy, some)
    deviation = math.sqrt(0.3 * 0.7 * some.total)
    assert some.total == 2560 and abs(some.shown - 0.3 * some.total) < 4 * deviation
    trained(toy, every)
    assert every.shown == every.total
    assert codes.min() >= 0 and codes.max() < 1 and codes.std().item() == pytest.approx(12**-0.5, rel=0.1)


def test_9_a_base_that_does_not_know_its_codes_is_warned_of() -> None:
    toy = problem("cnn", "class", "mnemonic")
    with torch.no_grad():
        assert torch.equal(toy.base(toy.codes).argmax(1), torch.arange(4)), "trained with them, it knows them"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unlearn(MnemonicCode(), toy.base, data_for(toy, ("codes",)))
    strange = UnlearnData(
        toy.dataset, toy.sets, ("codes",), generator(1, CPU), augment=True, codes=-toy.codes
    )
    with pytest.warns(UserWarning, match=r"knows \d of 4 codes"):
        unlearn(MnemonicCode(), toy.base, strange)


def test_10_forgotten_and_retained_classes_exchanged_invert_the_ratio() -> None:
    for one, other in zip(perturbed(net(), 1, 3), perturbed(net(), 0, 2, 4), strict=True):
        torch.testing.assert_close(one.log(), -other.log(), rtol=1e-9, atol=1e-9)


# ---- the choice of the sign, and what it is for --------------------------------------------------


def test_the_score_counts_forgotten_errors_and_retained_hits() -> None:
    forgotten = torch.tensor([True, True, False, False, False])
    answers = torch.eye(5)[[0, 3, 2, 3, 0]]  # of 0 right, of 1 wrong; of 2 and 3 right, of 4 wrong
    assert mnemonic_code.score(lambda _: answers, CODES, forgotten) == pytest.approx(1 / 2 + 2 / 3)


@pytest.mark.parametrize(("scores", "sign"), [((1.0, 0.5), 1), ((0.5, 1.0), -1), ((0.7, 0.7), -1)])
def test_the_better_sign_is_taken_and_minus_of_equals(
    scores: tuple[float, float], sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(scores)
    monkeypatch.setattr(mnemonic_code, "score", lambda *_: next(given))
    moved = forget_one(lambda_1=0.01)[5].weight - net()[5].weight
    assert bool((sign * moved > 0).any()) and not bool((sign * moved < 0).any())


@pytest.mark.parametrize("classes", [(), (0, 1, 2, 3, 4)])
def test_no_whole_class_or_every_class_is_an_error(classes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"forgets some of 5 classes, not {len(classes)}"):
        MnemonicCode().unlearn(net(), OnlyCodes(*classes))


def test_the_two_kinds_of_retraining_know_no_sample_of_the_class() -> None:
    """The reference for a mnemonic base is trained with the codes of the other classes, or without any."""
    for training in ("plain", "mnemonic"):
        toy = problem("cnn", "class", training)
        assert memory(toy, toy.retrain) == 0 and memory(toy, toy.base) > 0.9
        assert np.array_equal(toy.sets["retain"], problem("cnn", "class", "plain").sets["retain"])
    assert T_MIX == 0.3
