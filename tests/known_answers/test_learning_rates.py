"""The rate of each step a method takes, against the tables of the reference (arXiv 2410.01276), from which
the `Deviation:` lines of the methods depart where these tests say so.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.known_answers.test_method_formulas import unlearned

RATE = 0.01


def factors(name: str, **values: Any) -> list[float]:
    """The rates of the steps over the rate asked for. Each epoch has one batch of a set."""
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        unlearned(name, learning_rate=RATE, **values)
    finally:
        handle.remove()
    return [rate / RATE for rate in rates]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [1]),
        (2, [1, 1 / 2]),
        (3, [1 / 2, 1, 1 / 2]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (10, [0.2, 0.4, 0.6, 0.8, 1, 0.833, 0.667, 0.5, 0.333, 0.167]),
    ],
)
def test_masked_small_gradients_rises_and_falls(epochs: int, expected: list[float]) -> None:
    assert factors("masked_small_gradients", epochs=epochs) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("name", ["finetune", "convolution_transpose", "noise_finetune"])
def test_cosine_by_epoch(name: str) -> None:
    expected = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert factors(name, epochs=4) == pytest.approx(expected)


def test_distill_entropy_anneals_the_second_phase_alone() -> None:
    values = {"warm_up_epochs": 2, "warm_up_learning_rate": RATE, "epochs": 2}
    assert factors("distill_entropy", **values) == pytest.approx([1, 1, 1, 0.5])


@pytest.mark.parametrize("name", ["gradient_ascent", "neggrad_plus", "successive_random_labels", "salun"])
def test_constant(name: str) -> None:
    assert factors(name, epochs=3) == pytest.approx([1, 1, 1])


def reference_decay(epochs: int, first: int) -> list[int]:
    """s of each epoch, counted from `first`, in the reference: the marks (half, 80, 90 %) it is beyond."""
    marks = [tenths * epochs // 10 for tenths in (5, 8, 9)]
    return [sum(epoch > mark for mark in marks) for epoch in range(first, epochs + first)]


def exponents(name: str, epochs: int, **values: Any) -> list[int]:
    return [round(-math.log10(factor)) for factor in factors(name, epochs=epochs, **values)]


def test_the_reference_decays_as_its_appendix_says() -> None:
    assert reference_decay(10, 0) == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    assert reference_decay(10, 1) == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("epochs", [2, 5, 10])
def test_scrub_decays_as_the_reference_does(epochs: int) -> None:
    ours = exponents("scrub", epochs, forget_epochs=0, rewind=False)
    assert ours == reference_decay(epochs, 1)


@pytest.mark.parametrize("name", ["catastrophic_forgetting_k", "exact_unlearning_k"])
def test_the_last_k_decay_an_epoch_before_the_reference(name: str) -> None:
    """Deviation: after 50, 80 and 90 % of the epochs, where the reference counts epochs from 0."""
    assert exponents(name, 10) == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]
    assert exponents(name, 10)[:-1] == reference_decay(10, 0)[1:]
    assert exponents(name, 2) == [0, 1] and reference_decay(2, 0) == [0, 0], "there never, of two epochs"
    assert factors(name, epochs=2, rho=0.5) == pytest.approx([1, 0.5])


def test_prune_reinitialise_match_quantise_is_constant() -> None:
    assert factors("prune_reinitialise_match_quantise", epochs=2.0) == pytest.approx([1, 1])


def test_forget_contrast_strengthen_anneals_the_contrast_by_step_down_to_its_floor() -> None:
    """Deviation: the floor is a share of the rate, which therefore never rises."""
    values = {"uniform_learning_rate": RATE, "contrast_learning_rate": RATE, "floor": 0.2}
    found = factors("forget_contrast_strengthen", epochs=4, **values)
    contrast = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert found == pytest.approx([1, *(factor for step in contrast for factor in (step, 1))])
