"""Every method, found by folder, against the contract. A new one is tested without an entry here."""

from __future__ import annotations

import pytest

from methods.base import Method, head, plugin, stem
from orchestrator.catalogue import plugins
from tests.contract import checks, checks_data
from tests.contract.checks import Case
from tests.contract.toy import Toy

CASES = {
    "finetune": Case(
        toy={"batch_size": 64, "epochs": 10, "weight_decay": 0.05},
        reason="at the defaults, 5 steps on a loss near zero leave the base as it was",
    ),
    "gradient_ascent": Case(
        toy={"batch_size": 64, "learning_rate": 0.0035},
        reason="forgets only by degrees before it destroys; this is the stretch between",
    ),
    "successive_random_labels": Case(
        toy={"batch_size": 64, "learning_rate": 0.01},
        defaults_lose_the_toy=True,
        reason="a quarter of the samples under random labels at a constant rate of 0.1 ruins so small a net",
    ),
    "neggrad_plus": Case(
        toy={"batch_size": 64, "alpha": 0.7},
        reason="at the defaults, 10 steps of a loss near zero, of which 5 % ascend, leave the base as it was",
    ),
    "convolution_transpose": Case(
        zero_rounds=2,
        reason="kernels are transposed before any epoch, so two rounds without epochs give the input back",
    ),
    "fisher_forgetting": Case(
        zero={"alpha": 0.0},
        toy={"alpha": 0.01},
        reason="one perturbation of strength alpha; the default, for deeper nets, is weak on so small a one",
    ),
    "influence_unlearning": Case(
        zero={"alpha": 0.0},
        reason="a single step of length alpha",
    ),
    "catastrophic_forgetting_k": Case(
        toy={"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.05},
        reason="at the defaults, 10 steps of a loss near zero leave the base as it was",
    ),
    "exact_unlearning_k": Case(
        zero={"epochs": 0, "k": 0},
        reason="the last k stages are drawn anew before any epoch",
    ),
    "noise_finetune": Case(
        zero={"epochs": 0, "sigma": 0.0},
        toy={"learning_rate": 0.01},
        defaults_lose_the_toy=True,
        reason="the stem gets noise before any epoch; 16 steps at a rate of 7e-4 hardly repair it",
    ),
    "random_noise_injection": Case(
        zero={"noisy_epochs": 0, "fine_epochs": 0},
        toy={"learning_rate": 0.01, "fine_learning_rate": 0.01},
        defaults_lose_the_toy=True,
        reason="two kinds of epochs; 36 steps at a rate of 2e-4 do not train the fresh head",
    ),
    "masked_small_gradients": Case(
        zero={"epochs": 0, "rho": 0.0},
        reason="a fraction rho of the weights is drawn anew before any epoch",
    ),
    "salun": Case(
        toy={"batch_size": 64, "learning_rate": 0.03, "tau": 0.2},
        reason="at the defaults, 20 steps without momentum hardly move the base",
    ),
    "scrub": Case(
        toy={"epochs": 10, "forget_epochs": 5, "forget_batch_size": 32, "learning_rate": 0.02},
        reason="at the defaults, 2 steps per epoch away from a teacher that is the student leave them close",
    ),
    "forget_contrast_strengthen": Case(
        zero={"epochs": 0, "uniform_epochs": 0},
        toy={"batch_size": 64, "contrast_learning_rate": 0.003},
        reason="the first pass over the forget set is no round; at the defaults the contrast takes 8 steps",
    ),
    "prune_reinitialise_match_quantise": Case(
        zero={"epochs": 0, "rho": 0.0, "quantise": False},
        toy={"rho": 0.9, "learning_rate": 0.01, "epochs": 10.0},
        defaults_lose_the_toy=True,
        reason="weights are drawn anew before any epoch and rounded after the last; at the defaults 13 steps "
        "at a rate of 0.0005 repair no net of which 99 % is new",
    ),
    "distill_entropy": Case(
        zero={"epochs": 0, "warm_up_epochs": 0},
        fresh=lambda model: [stem(model), head(model)],
        reason="stem and head are always re-initialised",
    ),
}
METHODS = {name: plugin("methods", name) for name in plugins("methods")}

every_method = pytest.mark.parametrize("name", METHODS)


def case(name: str) -> Case:
    return CASES.get(name, Case())


def test_methods_are_found_and_cases_are_of_methods() -> None:
    assert {"finetune", "gradient_ascent", "successive_random_labels", "neggrad_plus"} <= set(METHODS)
    assert set(CASES) <= set(METHODS)
    assert all(issubclass(cls, Method) for cls in METHODS.values())


@every_method
def test_declaration(name: str) -> None:
    checks.check_declared(METHODS[name], plugins("methods")[name])
    checks.check_space(METHODS[name], plugins("methods")[name])
    checks.check_unknown_hyperparameter(METHODS[name])


@every_method
def test_file_is_short_and_says_where_it_deviates(name: str) -> None:
    from orchestrator.catalogue import ROOT

    text = (ROOT / "methods" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80 or "Longer than 80 lines" in text
    assert "Deviation:" in text


@every_method
def test_random_point(name: str, cnn: Toy) -> None:
    checks.check_random_point(METHODS[name], cnn, plugins("methods")[name])


@every_method
def test_every_hyperparameter_matters(name: str, cnn: Toy) -> None:
    checks.check_every_hyperparameter_matters(METHODS[name], cnn, plugins("methods")[name])


@every_method
@pytest.mark.parametrize("net", ["cnn", "vit"])
@pytest.mark.parametrize(
    "check",
    [
        checks.check_weights_change,
        checks.check_same_structure,
        checks.check_seeds,
        checks_data.check_sizes,
        checks_data.check_influence,
    ],
)
def test_on_a_convolutional_net_and_on_a_transformer(
    name: str, net: str, check, both: dict[str, Toy]
) -> None:
    check(METHODS[name], both[net])


@every_method
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_zero_steps(name: str, net: str, both: dict[str, Toy]) -> None:
    checks.check_zero_steps(METHODS[name], both[net], case(name))


@every_method
@pytest.mark.parametrize(
    "check",
    [
        checks.check_no_global_state,
        checks_data.check_needs,
        checks.check_diverged,
        checks_data.check_no_wait_per_step,
    ],
)
def test_conduct(name: str, check, cnn: Toy) -> None:
    check(METHODS[name], cnn)


@every_method
def test_utility(name: str, cnn: Toy) -> None:
    checks.check_utility(METHODS[name], cnn, case(name))


@every_method
def test_nearer_to_retraining(name: str, cnn: Toy) -> None:
    checks.check_nearer_to_retraining(METHODS[name], cnn, case(name))
