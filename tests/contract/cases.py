"""What cannot be asked of the defaults of a method on a toy problem, and why."""

from __future__ import annotations

from methods.base import head, stem
from tests.contract.checks import Case

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
        short={"epochs": 6, "learning_rate": 0.04, "forget_batch_size": 32},
        reason="at the defaults, 2 steps per epoch away from a teacher that is the student leave them close; "
        "at θ₀ there is no divergence, hence no gradient of it, and with two epochs no error to choose from",
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
    "mnemonic_code": Case(
        zero={"lambda_1": 0.0},
        toy={"lambda_1": 0.1, "lambda_2": 10.0},
        defaults_lose_the_toy=True,
        deterministic=True,
        reason="one step of length lambda_1, made of the codes and nothing else; the default of lambda_2, "
        "for deeper nets, bounds no weight of so small a one",
    ),
    "distill_entropy": Case(
        zero={"epochs": 0, "warm_up_epochs": 0},
        fresh=lambda model: [stem(model), head(model)],
        reason="stem and head are always re-initialised",
    ),
}
