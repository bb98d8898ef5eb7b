"""Small learning problems whose models have laws that are known: the audit must say what theory says.

A noisy mean; ridge regression, where deletion is exact; logistic regression on 2-D blobs, two thousand models
of which go through the plan and the store.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, ndtr

from attacks import exposed, ulira
from attacks.epsilon_bounds import fixed_threshold
from attacks.metrics import auc
from orchestrator.audit import AuditDesign, Reader
from orchestrator.store import Store
from tests.known_answers.simulated_cell import audited, fill, plan_of, states_of
from tests.test_attacks_lira import auc_error
from workers.designs import FORGET, RETAIN

# ---- a mean with noise -------------------------------------------------------------------------------------


def released_means(k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of 50 records plus N(0, .05²), with record i and without it: worlds (k, 50), and distances d.

    With the record, the release lies d_i = (x_i − mean of the others) / (50 · .05) deviations from without.
    """
    rng = np.random.default_rng(seed)
    records = rng.standard_t(3, 50)
    without = (records.sum() - records) / 49
    noise = rng.normal(0, 0.05, (2, k, 50))
    return records.mean() + noise[0], without + noise[1], (records.mean() - without) / 0.05


def test_a_released_mean_leaks_each_record_by_its_distance():
    forgotten, retrained, d = released_means(k=200, seed=0)
    found = ulira.compare(forgotten, retrained, replicates=20)
    expected = ndtr(0.5 * np.hypot(d[:, None], d)).mean()
    error = 4 * auc_error(0.5, forgotten.size)
    # Most records are worth nothing, and the attack, unlike the oracle, must learn that: .02 at 199 pairs.
    assert expected - 0.02 - error < found.auc < expected + error
    # One threshold for all: records above and below the mean cancel.
    assert found.loss_auc == pytest.approx(ndtr(d / math.sqrt(2)).mean(), abs=error)
    each = exposed.pair_auc(forgotten, retrained)
    np.testing.assert_allclose(each, ndtr(d / math.sqrt(2)), atol=4 * 0.029)  # SE of 200 against 200: .0289


def test_a_released_mean_is_as_private_as_its_worst_record():
    """μ = max |d_i|, and the bound of that record comes near it."""
    forgotten, retrained, d = released_means(k=20_000, seed=1)
    worst = int(np.argmax(np.abs(d)))
    sign = np.sign(d[worst])
    positive, negative = sign * forgotten[:, worst], sign * retrained[:, worst]
    middle = 0.5 * (np.mean(positive) + np.mean(negative))
    bound = fixed_threshold(positive, negative, middle)
    assert 0.9 * np.abs(d[worst]) < bound.mu < np.abs(d[worst])


# ---- ridge regression --------------------------------------------------------------------------------------

RECORDS, FEATURES, PENALTY = 60, 20, 0.5


def design_matrix() -> np.ndarray:
    """(60, 20) Gaussian rows, the last 20 of them scaled up: leverages from .04 to .9."""
    x = np.random.default_rng(2).normal(size=(RECORDS, FEATURES))
    x[40:] *= np.linspace(1.5, 6, 20)[:, None]
    return x


X = design_matrix()
INVERSE = np.linalg.inv(X.T @ X + PENALTY * np.eye(FEATURES))
LEVERAGE = np.einsum("ia,ab,ib->i", X, INVERSE, X)


def draw_answers(k: int, seed: int) -> np.ndarray:
    """Labels (k, records) of k models: one linear law, fresh noise."""
    rng = np.random.default_rng(seed)
    return X @ np.linspace(-0.5, 0.5, FEATURES) + rng.normal(size=(k, RECORDS))


def retrained_residuals(answers: np.ndarray) -> np.ndarray:
    """Residual of each record under a ridge regression without it, from scratch: (k, records)."""
    found = np.empty_like(answers)
    for i in range(RECORDS):
        rest = np.delete(np.arange(RECORDS), i)
        theta = np.linalg.solve(
            X[rest].T @ X[rest] + PENALTY * np.eye(FEATURES), X[rest].T @ answers[:, rest].T
        )
        found[:, i] = answers[:, i] - X[i] @ theta
    return found


def removed_residuals(answers: np.ndarray) -> np.ndarray:
    """The same by Sherman and Morrison's update of the inverse, model by model as a method would do it."""
    found = np.empty_like(answers)
    for i in range(RECORDS):
        u = INVERSE @ X[i]
        inverse = INVERSE + np.outer(u, u) / (1 - LEVERAGE[i])
        theta = inverse @ (X.T @ answers.T - np.outer(X[i], answers[:, i]))
        found[:, i] = answers[:, i] - X[i] @ theta
    return found


def newton_residuals(answers: np.ndarray) -> np.ndarray:
    """One Newton step with the Hessian of all records: θ − H⁻¹ x_i r_i, so r_i (1 + h_i) is left."""
    theta = INVERSE @ X.T @ answers.T
    residual = answers - (X @ theta).T
    found = np.empty_like(answers)
    for i in range(RECORDS):
        stepped = theta - np.outer(INVERSE @ X[i], residual[:, i])
        found[:, i] = answers[:, i] - X[i] @ stepped
    return found


def test_exact_removal_is_retraining_to_1e_8():
    answers, others = draw_answers(24, seed=3), draw_answers(24, seed=4)
    retrained, removed = retrained_residuals(answers), removed_residuals(answers)
    np.testing.assert_allclose(removed, retrained, rtol=1e-8, atol=1e-8)
    reference = retrained_residuals(others)
    found, expected = (ulira.leave_pair_out(world, reference) for world in (removed, retrained))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert auc(*(world.ravel() for world in found)) == pytest.approx(
        0.5, abs=4 * auc_error(0.5, removed.size)
    )
    # Even with the very same noise in both, which no audit has: differences are rounding.
    same = ulira.leave_pair_out(removed, retrained)
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)


def test_one_newton_step_leaks_by_the_leverage():
    """Of the residual without the record 1 − h² is left: AUC 2/π arctan(1 / (1 − h²)), from .50 to .83."""
    k = 300
    forgotten, retrained = newton_residuals(draw_answers(k, 5)), retrained_residuals(draw_answers(k, 6))
    own = retrained_residuals(draw_answers(k, 5))
    np.testing.assert_allclose(forgotten, (1 - LEVERAGE**2) * own, rtol=1e-6, atol=1e-9)
    expected = 2 / math.pi * np.arctan(1 / (1 - LEVERAGE**2))
    best = exposed.pair_auc(-np.abs(forgotten), -np.abs(retrained))  # the statistic of a spread that is known
    np.testing.assert_allclose(best, expected, atol=4 * 0.024)  # SE of 300 against 300
    high, low = ulira.leave_pair_out(forgotten, retrained)
    groups, rising = np.split(np.argsort(LEVERAGE), [40, 46, 53]), []
    for group in groups:
        area = auc(high[:, group].ravel(), low[:, group].ravel())
        assert area == pytest.approx(expected[group].mean(), abs=0.03)
        rising.append(area)
    assert rising == sorted(rising) and rising[0] < 0.53 and rising[-1] > 0.78


# ---- logistic regression on blobs, from the plan to the evidence -------------------------------------------

POOL = 80
LABELS = np.arange(POOL) % 2
METHODS = ("finetune", "gradient_ascent", "exact_unlearning_k")  # names to stand in for what is simulated


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Points (80, 3) of two overlapping blobs with a constant, and labels of which 15 % are wrong."""
    rng = np.random.default_rng(7)
    points = rng.normal(size=(POOL, 2)) + 2 * LABELS[:, None] - 1
    wrong = rng.random(POOL) < 0.15
    return np.column_stack([points, np.ones(POOL)]), np.where(wrong, 1 - LABELS, LABELS).astype(float)


def fit(
    member: np.ndarray, theta: np.ndarray, steps: int, hessian_of: np.ndarray | None = None
) -> np.ndarray:
    """θ (models, 3) after Newton steps on the members (models, pool), all models at once; ridge of .1."""
    points, answers = blobs()
    counted = member if hessian_of is None else hessian_of
    for _ in range(steps):
        p = expit(theta @ points.T)
        gradient = (member * (p - answers)) @ points + 0.1 * theta
        curvature = np.einsum("mi,ia,ib->mab", counted * p * (1 - p), points, points) + 0.1 * np.eye(3)
        theta = theta - np.linalg.solve(curvature, gradient[..., None])[..., 0]
    return theta


def simulate(plan) -> dict[str, np.ndarray]:
    """φ (pool,) of every task of the audit: bases, retrains, and three methods.

    finetune stands for no unlearning, gradient_ascent for one Newton step with the base's own Hessian,
    exact_unlearning_k for retraining.
    """
    tasks = audited(plan)
    states = np.array([states_of(task, LABELS) for task in tasks])
    before = ((states == RETAIN) | (states == FORGET)).astype(float)
    after = (states == RETAIN).astype(float)
    zero = np.zeros((len(tasks), 3))
    base, retrain = fit(before, zero, 12), fit(after, zero, 12)
    step = fit(after, base, 1, hessian_of=before)
    by_method = {"": base, "finetune": base, "gradient_ascent": step, "exact_unlearning_k": retrain}
    points, answers = blobs()
    phi = {}
    for i, task in enumerate(tasks):
        theta = retrain if task.kind == "retrain" else by_method[task.columns()["method"]]
        phi[task.id] = (2 * answers - 1) * (points @ theta[i])
    return phi


@pytest.mark.parametrize("pairs", [24, pytest.param(112, marks=pytest.mark.long)])
def test_logistic_regression_from_the_plan_to_the_evidence(tmp_path: Path, pairs: int):
    """112 pairs are 2,016 models. Doing nothing leaks most, a Newton step less, retraining nothing."""
    plan = plan_of(pairs, fraction=0.25, methods=METHODS)
    phi = simulate(plan)
    assert len(phi) == 18 * pairs
    store = Store.create(str(tmp_path / "results"))
    fill(store, plan, LABELS, lambda task, states: phi[task.id])
    (cell,), reader = plan.cells, Reader(store)
    design = AuditDesign(reader, cell, cell.retrains)
    found = {}
    for variant in cell.variants:
        worlds = design.worlds(design.cube(reader, variant.tasks))
        forgotten, never, retrained = (world[0] for world in worlds)
        for name, reference in (("never", never), ("retrained", retrained)):
            llr = ulira.leave_pair_out(forgotten, reference)
            found[variant.method, name] = auc(*(world.ravel() for world in llr))
    # Scores of a pair share its two models: the error is that of 2 pairs' worth of models, at worst.
    error = 4 * auc_error(0.5, pairs * len(design.audited) / 4)
    for name in ("never", "retrained"):
        nothing, step, exact = (found[method, name] for method in METHODS)
        assert exact == pytest.approx(0.5, abs=error)
        assert nothing > step > 0.5 and nothing > step + 0.03 and nothing > 0.55
    assert found["exact_unlearning_k", "never"] != found["exact_unlearning_k", "retrained"]
