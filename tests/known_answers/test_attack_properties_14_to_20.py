"""Twenty properties of the audit, numbered as in its specification: 14 to 20. The first 13 stand beside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from attacks.bootstrap import cluster_bootstrap
from attacks.epsilon_bounds import epsilon_of_rates, exploratory_bound, mu_of_rates
from attacks.gaussian_poisoning import gaussian_poisoning
from attacks.klom import binned_kl, gaussian_kl
from attacks.metrics import auc, balanced_accuracy, tpr_at_fpr
from attacks.neurips_score import epsilons, forgetting, neurips_score
from attacks.scores import phi_from_logits
from orchestrator.config import Grid
from orchestrator.plan import make_plan
from tests.conftest import grid_data
from tests.known_answers.test_attack_properties import ATTACKS, SEEDS, TIED, few, many, worlds
from workers import designs
from workers.designs import FORGET, OUT, RETAIN, VAL
from workers.evaluate import logit_margin
from workers.forget.random import Random


@many
@given(
    st.floats(0.001, 0.999),
    st.floats(0.001, 0.999),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e-3]),
    TIED,
    TIED,
)
def test_14_epsilon_rises_with_tpr_and_merging_thresholds_gains_nothing(tpr, fpr, share, delta, x, y):
    more_tpr, more_fpr = tpr + share * (1 - tpr), fpr + share * (1 - fpr)
    for bound in (lambda t, f: epsilon_of_rates(t, f, delta), mu_of_rates):
        assert bound(tpr, more_fpr) <= bound(tpr, fpr) <= bound(more_tpr, fpr)
        assert bound(min(tpr, fpr), fpr) == 0
    merged = exploratory_bound(np.floor(x / 3), np.floor(y / 3))
    fine = exploratory_bound(x, y)
    assert merged.epsilon <= fine.epsilon + 1e-12 and merged.mu <= fine.mu + 1e-12


@many
@given(SEEDS, st.integers(4, 40), st.integers(-20, 20))
def test_15_klom_is_a_divergence_that_loses_nobody(seed, n, shift):
    rng = np.random.default_rng(seed)
    p, q = (rng.integers(-300, 300, (n, 4)) / 16 for _ in range(2))
    for kl in (binned_kl, gaussian_kl):
        np.testing.assert_allclose(kl(p, p), 0, atol=1e-12)
        assert (kl(p, q) >= 0).all()
        np.testing.assert_allclose(kl(p + shift, q + shift), kl(p, q), rtol=1e-9, atol=1e-12)
    k = int(rng.integers(1, n))
    edge, none = np.repeat([1.0, 0.0], [k, n - k])[:, None], np.repeat([1.0, 0.0], [1, n - 1])[:, None]
    expected = sum(a * math.log(a / b) for a, b in ((k / n, 1 / n), (1 - k / n, 1 - 1 / n)))
    assert binned_kl(edge, none)[0] == pytest.approx(expected, abs=1e-12)


@few
@given(SEEDS, st.integers(6, 30), st.integers(6, 30), st.sampled_from([0, 1, 8]), st.booleans())
def test_16_the_challenge_score_is_symmetric_and_within_its_range(seed, n, m, digits, constant):
    """Also where all values tie, where one set is constant, and where no rule is usable."""
    rng = np.random.default_rng(seed)
    a, b = np.round(rng.normal(size=(n, 3)), digits), np.round(rng.normal(0, 2, (m, 3)), digits)
    if constant:
        a[:, 0] = b[:, 0] = a[:, 1] = 1.0
    there, back = epsilons(a, b), epsilons(b, a)
    np.testing.assert_allclose(there, back, rtol=1e-12)
    assert ((there >= 0) & (there <= 50)).all()
    assert 0 <= forgetting(there, min(n, m)) <= 1
    found = neurips_score(a, b)
    assert 0 <= found.forgetting_halved <= 1 and 0 <= found.null <= 1


@few
@given(st.integers(40, 150), st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_17_every_member_is_forgotten_once(pool, pairs, sets, seed):
    labels = np.random.default_rng(seed).integers(0, 4, pool)
    recipe, fraction = {"track": "audit", "val_fraction": 0.1}, 1 / sets if sets > 1 else 0.5
    forgotten, members = np.zeros((2 * pairs, pool), dtype=int), np.zeros((2 * pairs, pool), dtype=bool)
    for base in range(2 * pairs):
        place = recipe | {"pair": base // 2, "half": base % 2}
        alone = designs.members("toy", labels, place)
        members[base] = alone == RETAIN
        for index in range(sets):
            states = designs.build(
                "toy", labels, place, Random(fraction), "key", {"index": index, "of": sets}
            )
            assert np.isin(states, (OUT, RETAIN, FORGET, VAL)).all()
            assert np.array_equal((states == RETAIN) | (states == FORGET), alone == RETAIN)
            forgotten[base] += states == FORGET
    val = designs.members("toy", labels, recipe | {"track": "main"}) == VAL
    assert np.array_equal(members[0::2], ~members[1::2] & ~val)
    audited = forgotten.any(axis=0)
    assert np.array_equal(forgotten[:, audited], members[:, audited])
    assert (forgotten[:, audited].sum(axis=0) == pairs).all()  # B/2
    if sets > 1:
        assert np.array_equal(audited, ~val)


@given(st.integers(1, 5), st.integers(1, 6))
@few
def test_17_no_audited_base_is_a_base_of_the_main_track(seeds, pairs):
    """What methods are tuned on is never what they are audited on: other tasks, members and seeds."""
    audit = {"pairs": max(pairs, 4), "forget_sets": 2}
    tasks = make_plan(Grid.model_validate(grid_data(seeds=seeds, audit=audit))).tasks
    by_track = {
        track: [t for t in tasks if t.columns()["track"] == track and t.kind != "unlearn"]
        for track in ("main", "audit")
    }
    for fact in (lambda t: t.id, lambda t: t.spec["seeds"]["init"], lambda t: t.spec["seeds"]["order"]):
        assert {fact(t) for t in by_track["main"]}.isdisjoint({fact(t) for t in by_track["audit"]})


@few
@given(SEEDS, st.integers(3, 9), st.sampled_from([0, 8]))
def test_18_weights_of_one_are_the_estimate(seed, k, digits):
    x, y = (np.round(world, digits) for world in worlds(seed, k, 40))
    found = cluster_bootstrap(x, y, np.ones((1, k)), (0.01, 0.1))
    high, low = x.ravel(), y.ravel()
    assert found.auc[0] == pytest.approx(auc(high, low), abs=1e-12)
    assert found.balanced_accuracy[0] == pytest.approx(balanced_accuracy(high, low), abs=1e-12)
    expected = [tpr_at_fpr(high, low, alpha).tpr for alpha in (0.01, 0.1)]
    assert found.tpr[0] == pytest.approx(expected, abs=1e-12)


@few
@given(SEEDS, st.floats(1e-3, 10), st.sampled_from(["dense", "sparse", "heavy", "equal", "tiny"]))
def test_19_noise_nobody_saw_gives_a_standard_normal(seed, noise_std, kind):
    """Any field of gradients, dependent across samples or not: mean 0 and spread 1, within 5 errors."""
    rng = np.random.default_rng(seed)
    gradients = rng.standard_cauchy((3000, 6)) if kind == "heavy" else rng.normal(size=(3000, 6))
    if kind == "sparse":
        gradients *= np.eye(6)[rng.integers(0, 6, 3000)]
    if kind == "equal":
        gradients[:] = gradients[0]
    if kind == "tiny":
        gradients *= 1e-200
    found = gaussian_poisoning(gradients, noise_std * rng.normal(size=(3000, 6)), noise_std)
    assert abs(found.z) < 5
    assert found.statistic.std() == pytest.approx(1, abs=5 / math.sqrt(6000))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_20_threads_and_devices_agree(device):
    """Evidence at one thread and at two; φ of torch, in float32, and of NumPy, in float64."""
    x, y = worlds(20, 8, 2000)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append([ATTACKS[name](x, y) for name in ATTACKS])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)
    logits = np.random.default_rng(20).normal(0, 10, (500, 10)).astype(np.float32)
    labels = np.arange(500) % 10
    phi = logit_margin(torch.from_numpy(logits).to(device), torch.from_numpy(labels).to(device))
    np.testing.assert_allclose(phi.cpu().numpy(), phi_from_logits(logits.astype(float), labels), atol=1e-4)
