"""Bugs of public ports, and others like them, must fail the contract; a sound method passes.

MUTANTS says which checks must see a mutant, and in what words.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from methods.base import Method
from tests.contract import checks
from tests.contract.checks import Case
from tests.contract.contract import OF_ALL_SAMPLES, ON_BOTH_NETS, ON_ONE_NET, title
from tests.contract.mutants import (
    Control,
    CudnnBenchmark,
    DefaultDtype,
    DoesLittle,
    DroppedLastBatch,
    FixedOrder,
    GlobalDraws,
    GlobalSeed,
    GradientsOff,
    HalfPrecision,
    HiddenCopy,
    IgnoredHyperparameter,
    LeftoverHook,
    LeftoverParameterHook,
    MovedStatistics,
    OnePassMore,
    OptimizerOnFrozenTeacher,
    OptimizerOnTeacher,
    PythonShuffle,
    RawLogits,
    SamplesOneByOne,
    ShallowTeacher,
    SilencedNan,
    StrayStep,
    UndeclaredValidation,
    UnreadForgetData,
    UnusedForgetData,
    WaitsEachStep,
    WrappedLayers,
    WrongLabels,
    WrongSign,
    shallow_unlearn,
)
from tests.contract.toy import Toy, few
from workers import run_task

MUTANTS: dict[type[Method], dict[str, str]] = {
    OptimizerOnTeacher: {
        "weights_change": "no weight changed",
        "every_hyperparameter_matters": "does nothing",
        "influence": "does not matter",
    },
    OptimizerOnFrozenTeacher: {"weights_change": "an optimizer must not change it"},
    ShallowTeacher: {
        "every_hyperparameter_matters": "alpha does nothing",
        "influence": "forget set is read but",
    },
    RawLogits: {"weights_change": "diverged", "utility": "diverged"},
    IgnoredHyperparameter: {"every_hyperparameter_matters": "alpha does nothing"},
    UnusedForgetData: {
        "every_hyperparameter_matters": "alpha does nothing",
        "influence": "forget set is read but",
    },
    UnreadForgetData: {"needs": "forget is in needs but is not read", "influence": "forget set is read but"},
    UndeclaredValidation: {"needs": "reads val but", "weights_change": "reads val but"},
    LeftoverHook: {"same_structure": "hooks left"},
    LeftoverParameterHook: {"same_structure": "hooks left on 0.weight"},
    WrappedLayers: {"same_structure": "0.0.weight"},
    GlobalDraws: {"seeds": "same seed", "no_global_state": "torch generator"},
    GlobalSeed: {"no_global_state": "torch generator"},
    PythonShuffle: {"no_global_state": "python generator"},
    FixedOrder: {"seeds": "the seed does nothing"},
    GradientsOff: {"no_global_state": "grad mode"},
    DefaultDtype: {"no_global_state": "default dtype"},
    CudnnBenchmark: {"no_global_state": "cudnn"},
    HalfPrecision: {"same_structure": "other shapes or types"},
    StrayStep: {"zero_steps": "zero steps: 0.weight differs"},
    MovedStatistics: {"zero_steps": "zero steps: 1.running_mean differs"},
    WaitsEachStep: {"no_wait_per_step": "the host waits"},
    SilencedNan: {"diverged": "went unnoticed"},
    DroppedLastBatch: {"sizes": "nothing happened"},
    SamplesOneByOne: {"sizes": "a batch of one"},
    WrongSign: {"nearer_to_retraining": "from retraining|is lost"},
    WrongLabels: {"utility": "test accuracy", "nearer_to_retraining": "from retraining|is lost"},
    OnePassMore: {"cost": "retain: 3.00 passes are read, 2.00 declared"},
    HiddenCopy: {"cost": "copies: 2 are held, 1 declared"},
    DoesLittle: {"nearer_to_retraining": "from retraining"},
}
CHECKS = {title(check): check for check in ON_BOTH_NETS + ON_ONE_NET + OF_ALL_SAMPLES}
PAIRS = [(cls, check) for cls, seen_by in MUTANTS.items() for check in seen_by]


CASE = Case(toy={"learning_rate": 0.05, "epochs": 10})


def samples_for(check: str, toy: Toy) -> Toy:
    return toy if CHECKS[check] in OF_ALL_SAMPLES else few(toy)


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_method_passes(check: str, cnn: Toy) -> None:
    CHECKS[check](Control, samples_for(check, cnn), CASE)


@pytest.mark.parametrize(("cls", "check"), PAIRS, ids=[f"{cls.__name__}-{check}" for cls, check in PAIRS])
def test_a_mutant_fails(cls: type[Method], check: str, cnn: Toy) -> None:
    state = checks.global_state()
    try:
        with pytest.raises(
            (AssertionError, ValueError, LookupError, PermissionError), match=MUTANTS[cls][check]
        ):
            CHECKS[check](cls, samples_for(check, cnn), CASE)
    finally:
        checks.restore(state)


def test_a_shallow_copy_of_the_base_fails(cnn: Toy) -> None:
    private = replace(cnn, base=copy.deepcopy(cnn.base))
    with pytest.raises(AssertionError, match="base handed in"):
        checks.check_weights_change(Control, private, CASE, unlearn=shallow_unlearn)
    checks.check_weights_change(Control, cnn, CASE, unlearn=run_task.unlearn)


def test_what_is_said_to_draw_nothing_must_draw_nothing(cnn: Toy) -> None:
    with pytest.raises(AssertionError, match="another seed"):
        checks.check_seeds(Control, cnn, Case(deterministic=True))


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"test": "1"}, "cost is a dict of formulas"),
        ({"retain": "epochs", "val": "1"}, "val has a cost and is not in needs"),
        ({"retain": "epochs - 100"}, "cost of retain is -"),
        ({"retain": "steps"}, "'steps' is no arithmetic"),
    ],
)
def test_a_cost_is_a_formula_of_what_is_read(cost: dict[str, str], message: str) -> None:
    cls = type("Costly", (Control,), {"cost": cost})
    with pytest.raises((AssertionError, ValueError), match=message):
        checks.check_formulas(cls)
    checks.check_formulas(Control)
