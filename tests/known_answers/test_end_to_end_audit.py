"""Known answers on the real path: a grid becomes tasks, φ goes into the store, the audit finds its worlds.

The models are simulated: sample i has φ ~ N(m_i, s_i²) under models without it, and g_i s_i more under models
with it. What an unlearning method leaves of that is ours to choose, and so are the answers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from attacks import exposed, klom, lira, neurips_score, ulira
from attacks.metrics import auc, clopper_pearson
from attacks.scores import phi_from_logits
from orchestrator import audit
from orchestrator.audit import AuditDesign, Reader
from orchestrator.plan import Cell, Plan, Task
from orchestrator.report_audit import against_base
from orchestrator.store import Store
from tests.known_answers.simulated_cell import audited, fill, plan_of, rng_of, states_of
from tests.test_attacks_exposed import power
from tests.test_attacks_lira import auc_error
from workers import designs
from workers.designs import FORGET, OUT, RETAIN

POOL, PAIRS, SETS = 200, 16, 2
LABELS = np.arange(POOL) % 5
WORLD = np.random.default_rng(0)
MEAN, SPREAD, GAP = WORLD.normal(0, 2, POOL), np.exp(WORLD.normal(0, 0.5, POOL)), WORLD.exponential(0.9, POOL)
PLANTED = np.arange(POOL) % 20 == 7  # 5 %

Phi = Callable[[np.ndarray], np.ndarray]  # of the states (pool,) of one model's design


def trained(task: Task, states: np.ndarray) -> np.ndarray:
    """A base or a retrain: who is retained raises its φ, and in a base whoever is to be forgotten."""
    inside = (states == RETAIN) | ((states == FORGET) & (task.kind == "base"))
    return MEAN + SPREAD * (GAP * inside + rng_of(task).normal(size=POOL))


def identity(task: Task, states: np.ndarray) -> np.ndarray:
    """A method that returns the base as it was."""
    if task.kind == "unlearn":
        base = {"track": "audit", **{k: task.spec["members"][k] for k in ("val_fraction", "pair", "half")}}
        inside = designs.members("digits", LABELS, base) == RETAIN
        of_base = rng_of(task, kind="base", forget="", method="", forget_index=-1)
        return MEAN + SPREAD * (GAP * inside + of_base.normal(size=POOL))
    return trained(task, states)


def leak(task: Task, states: np.ndarray) -> np.ndarray:
    """A perfect method, but for 3.5 spreads left of 5 % of the forgotten samples."""
    phi = trained(task, states)
    return phi + 3.5 * SPREAD * (PLANTED & (states == FORGET)) if task.kind == "unlearn" else phi


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(PAIRS, fraction=0.5, sets=SETS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit.ulira, "compare", functools.partial(ulira.compare, replicates=20))


@pytest.fixture(scope="module")
def no_unlearning(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of a cell whose method is the identity."""
    store = Store.create(str(tmp_path_factory.mktemp("identity")))
    fill(store, plan, LABELS, identity)
    return store


@pytest.fixture(scope="module")
def design(plan: Plan, no_unlearning: Store) -> AuditDesign:
    (cell,) = plan.cells
    return AuditDesign(Reader(no_unlearning), cell, cell.retrains)


# ---- no unlearning -----------------------------------------------------------------------------------------


def test_no_unlearning_is_plain_lira_to_the_last_bit(
    plan: Plan, no_unlearning: Store, design: AuditDesign
) -> None:
    """Each member is forgotten once per base, so forgotten against never is members against others."""
    (cell,), reader = plan.cells, Reader(no_unlearning)
    high, low, _ = (world[0] for world in design.worlds(design.cube(reader, cell.variants[0].tasks)))
    bases = [t for t in audited(plan) if t.kind == "base"]
    phi = np.stack([reader.scores([t.id])[t.id] for t in bases])[:, design.audited]
    member = np.stack([states_of(t, LABELS) == RETAIN for t in bases])[:, design.audited]
    plain = lira.leave_pair_out(phi, member, np.arange(2 * PAIRS) // 2)
    for world, inside in zip(ulira.leave_pair_out(high, low), (member, ~member), strict=True):
        first = inside[0::2]
        np.testing.assert_array_equal(world, np.where(first, plain[0::2], plain[1::2]))
    found = ulira.compare(high, low, replicates=20)
    assert found.auc == auc(plain[member], plain[~member]) > 0.65
    assert found.n_positive == found.n_negative == PAIRS * len(design.audited)


def test_no_unlearning_leaves_all_of_the_leakage(plan: Plan, no_unlearning: Store, quick: None) -> None:
    """λ is exactly 1, and so are the limits of its paired interval."""
    rows = [row for row in audit.current(no_unlearning, plan.cells) if row["attack"] == "ulira"]
    curves = {
        kind: {row["comparison"]: row for row in rows if row["kind"] == kind} for kind in ("base", "unlearn")
    }
    left = against_base(curves["unlearn"], curves["base"])
    assert [left[f"leakage_left{end}"] for end in ("", "_low", "_high")] == [1.0, 1.0, 1.0]
    assert [left[f"retained_delta{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert curves["unlearn"]["forgotten_vs_never"]["missing"] == 0
    high = curves["unlearn"]["forgotten_vs_never"]
    assert (high["auc"], high["tpr_at_1pct"]) == (
        curves["base"]["forgotten_vs_never"]["auc"],
        curves["base"]["forgotten_vs_never"]["tpr_at_1pct"],
    )


def oracle_auc(shift: np.ndarray) -> float:
    return float(ndtr(0.5 * np.hypot(shift[:, None], shift)).mean())


def base_worlds(plan: Plan, store: Store, design: AuditDesign) -> tuple[np.ndarray, ...]:
    (cell,) = plan.cells
    return tuple(world[0] for world in design.worlds(design.cube(Reader(store), cell.bases)))


def test_labels_drawn_at_random_and_scores_with_another_sign(
    plan: Plan, no_unlearning: Store, design: AuditDesign
) -> None:
    forgotten, never, _ = base_worlds(plan, no_unlearning, design)
    high, low = ulira.leave_pair_out(forgotten, never)
    area, error = auc(high.ravel(), low.ravel()), auc_error(0.5, high.size)
    expected = oracle_auc(GAP[design.audited])
    assert expected - 0.03 - 4 * error < area < expected + 4 * error
    assert auc(-high.ravel(), -low.ravel()) == pytest.approx(1 - area, abs=1e-12)
    mirrored = ulira.compare(-forgotten, -never, replicates=20)  # evidence has no sign, a threshold has
    as_is = ulira.compare(forgotten, never, replicates=20)
    assert mirrored.auc == pytest.approx(as_is.auc, abs=1e-9)
    assert mirrored.loss_auc == pytest.approx(1 - as_is.loss_auc, abs=1e-12)
    swap = np.random.default_rng(1).random(forgotten.shape) < 0.5
    mixed = np.where(swap, never, forgotten), np.where(swap, forgotten, never)
    blind = auc(*(world.ravel() for world in ulira.leave_pair_out(*mixed)))
    assert blind == pytest.approx(0.5, abs=4 * error)


# ---- retraining --------------------------------------------------------------------------------------------


def cube_of(
    design: AuditDesign, rng: np.random.Generator, forgotten: float = 0.0, scale: float = 1.0
) -> np.ndarray:
    """φ (1, bases, sets, audited) of a method that leaves `forgotten` of the gap and scales what is left.

    Samples of the other forget sets of their base are retained and have all of their gap.
    """
    m, s, g = MEAN[design.audited], SPREAD[design.audited], GAP[design.audited]
    of = design.forget_set[:, None, design.audited]
    index = np.arange(SETS)[None, :, None]
    gain = np.where(of < 0, 0.0, np.where(of == index, forgotten, 1.0))
    noise = rng.normal(size=gain.shape)
    return (scale * (m + s * (gain * g + noise)))[None].astype(np.float32)


def null_cell(design: AuditDesign, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Worlds of a cell of retrains, compared with other retrains."""
    rng = np.random.default_rng(seed)
    design.retrained = cube_of(design, rng)
    forgotten, never, retrained = design.worlds(cube_of(design, rng))
    return forgotten[0], never[0], retrained[0]


@pytest.mark.parametrize("cells", [3, pytest.param(100, marks=pytest.mark.long)])
def test_retraining_stays_at_one_half(design: AuditDesign, cells: int) -> None:
    """AUC within 2.58 cluster-bootstrap errors of ½ in 99 % of cells, the worlds of which share models."""
    outside, tested = 0, 0
    for seed in range(cells):
        forgotten, never, retrained = null_cell(design, seed)
        for reference in (never, retrained):
            found = ulira.compare(forgotten, reference, replicates=100)
            outside += abs(found.auc - 0.5) > 2.58 * found.auc_replicates.std()
            tested += 1
    assert stats.binomtest(outside, tested, 0.02, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_retraining_is_called_forgotten_as_often_as_alpha(design: AuditDesign, seed: int) -> None:
    """A threshold of one half of the pairs, applied to the other: both rates are α, within 99 % limits."""
    forgotten, _, retrained = null_cell(design, seed)
    half = PAIRS // 2
    llr = [
        ulira.leave_pair_out(forgotten[rows], retrained[rows]) for rows in (slice(half), slice(half, None))
    ]
    n = llr[0][1].size
    cut = np.quantile(llr[0][1], 0.95)
    called = [int((world > cut).sum()) for world in llr[1]]
    # The cut itself is estimated from as many scores, which doubles the variance.
    low, high = clopper_pearson(round(0.05 * n), n, 0.99)
    wide = 0.05 - math.sqrt(2) * (0.05 - low), 0.05 + math.sqrt(2) * (high - 0.05)
    assert all(wide[0] <= count / n <= wide[1] for count in called)


@pytest.mark.parametrize(("cells", "samples"), [(15, 15), pytest.param(200, 40, marks=pytest.mark.long)])
def test_p_values_of_permuted_labels_are_uniform(design: AuditDesign, cells: int, samples: int) -> None:
    """Forgotten and retrained change places in whole pairs: the rank of what was seen, ties at random."""
    rng, ranks = np.random.default_rng(2), []
    for seed in range(cells):
        forgotten, _, retrained = null_cell(design, 1000 + seed)
        x, y = forgotten[:6, :samples], retrained[:6, :samples]
        areas = []
        for draw in range(20):
            swap = np.zeros((6, 1), dtype=bool) if draw == 0 else (rng.random(6) < 0.5)[:, None]
            llr = ulira.leave_pair_out(np.where(swap, y, x), np.where(swap, x, y), strict=False)
            areas.append(auc(*(world.ravel() for world in llr)))
        above, tied = (int(np.sum(relation(areas[1:], areas[0]))) for relation in (np.greater, np.equal))
        ranks.append((above + rng.random() * (1 + tied)) / 20)
    assert stats.kstest(ranks, "uniform").pvalue > 0.01


def test_half_of_the_retrains_against_the_other_half(design: AuditDesign) -> None:
    """KLoM and the challenge score at that number of models are those of Gaussian margins; U-LiRA is ½."""
    rng = np.random.default_rng(3)
    design.retrained = cube_of(design, rng)
    _, first, second = (world[0] for world in design.worlds(design.retrained))
    found = klom.divergences(first.astype(float), second.astype(float))
    gaussian = klom.divergences(rng.normal(size=(PAIRS, 3000)), rng.normal(size=(PAIRS, 3000)))
    n = len(design.audited)
    for name in ("forward", "backward"):
        expected = getattr(gaussian, name).mean
        assert getattr(found, name).mean == pytest.approx(expected, abs=4 * 1.0 / math.sqrt(n))
    score, null = (
        neurips_score.forgetting(neurips_score.epsilons(*sets, intervals=False), PAIRS)
        for sets in ((first, second), rng.normal(size=(2, PAIRS, 1000)))
    )
    assert score == pytest.approx(null, abs=4 * 0.3 / math.sqrt(n))
    assert ulira.compare(first, second, replicates=20).auc == pytest.approx(
        0.5, abs=4 * auc_error(0.5, first.size)
    )


# ---- what is planted is found ------------------------------------------------------------------------------


def test_a_fingerprint_is_no_memory_and_a_half_memory_is_no_fingerprint(design: AuditDesign) -> None:
    """Logits × 0.8 after true forgetting: ½ against never, high against retrained and as a fingerprint."""
    rng = np.random.default_rng(4)
    n = len(design.audited)
    centre = rng.normal(0, 3, (n, 4))

    def logits() -> np.ndarray:
        """(bases · sets · n, 4): without any memory."""
        return (centre + rng.normal(size=(2 * PAIRS, SETS, n, 4))).reshape(-1, 4)

    label = np.tile(LABELS[design.audited] % 4, 2 * PAIRS * SETS)

    def cube(scale: float) -> np.ndarray:
        return phi_from_logits(scale * logits(), label).reshape(1, 2 * PAIRS, SETS, n).astype(np.float32)

    design.retrained = cube(1.0)
    found = ulira.ulira(*design.worlds(cube(0.8)), replicates=20)
    error = 4 * auc_error(0.5, PAIRS * n)
    assert found["forgotten_vs_never"].auc == pytest.approx(0.5, abs=error)
    assert found["fingerprint"].auc > 0.6 and found["forgotten_vs_retrained"].auc > 0.6
    design.retrained = cube_of(design, rng)
    half = ulira.ulira(*design.worlds(cube_of(design, rng, forgotten=0.5)), replicates=20)
    assert half["fingerprint"].auc == pytest.approx(0.5, abs=error)
    expected = oracle_auc(0.5 * GAP[design.audited])
    for comparison in ("forgotten_vs_never", "forgotten_vs_retrained"):
        assert expected - 0.03 - error < half[comparison].auc < expected + error


def test_planted_samples_stand_in_the_table(plan: Plan, tmp_path, quick: None) -> None:
    """5 % of the forgotten samples keep 3.5 spreads: the table audits names these and hardly any other."""
    store = Store.create(str(tmp_path))
    fill(store, plan, LABELS, leak)
    audit.write(store, plan.cells)
    table = Store.open(store.uri).read_table("audits").to_pylist()
    (row,) = [r for r in table if (r["kind"], r["comparison"]) == ("unlearn", "forgotten_vs_retrained")]
    chosen = np.any([states_of(t, LABELS) == FORGET for t in audited(plan)], axis=0)
    truth = set(np.flatnonzero(PLANTED & chosen))
    named = set(row["exposed_ids"])
    assert len(named & truth) >= 0.8 * len(truth) and len(named - truth) <= 1
    shift = 3.5 * PLANTED[chosen]
    assert oracle_auc(shift) - 0.03 < row["auc"] < oracle_auc(shift) + 0.03
    (cell,), reader = plan.cells, Reader(store)
    design = AuditDesign(reader, cell, cell.retrains)
    forgotten, _, retrained = (
        world[0] for world in design.worlds(design.cube(reader, cell.variants[0].tasks))
    )
    found = exposed.exposed(forgotten, retrained)
    assert (row["exposed_found"], row["exposed_auc"]) == (len(found.found), found.mean_found_auc)
    true = PLANTED[design.audited[found.found]]
    assert found.found_auc[true].mean() == pytest.approx(ndtr(3.5 / math.sqrt(2)), abs=0.02)
    assert np.sum(~true) <= 2  # by chance, on one half


@pytest.mark.parametrize("repeats", [20, pytest.param(200, marks=pytest.mark.long)])
def test_planted_samples_are_recovered_at_the_predicted_power(design: AuditDesign, repeats: int) -> None:
    """1.2 spreads in 5 % of samples, 16 pairs: at p ≤ .01 as many as predicted."""
    shift, limit, planted = 1.2, 0.01, PLANTED[design.audited]
    rng = np.random.default_rng(5)
    below, false, named = [], 0, 0
    for _ in range(repeats):
        design.retrained = cube_of(design, rng)
        forgotten, _, retrained = (world[0] for world in design.worlds(cube_of(design, rng)))
        p_values = exposed.exposure_p_values(forgotten + shift * SPREAD[design.audited] * planted, retrained)
        below.append([(p_values[kind] <= limit).mean() for kind in (planted, ~planted)])
        # In a wider margin, so that false discoveries are there to be counted.
        found = exposed.benjamini_hochberg(p_values, 0.2)
        false, named = false + int(found[~planted].sum()), named + int(found.sum())
    power_found, level = np.mean(below, axis=0)
    expected = power(shift, PAIRS, limit)
    error = 4 * math.sqrt(expected * (1 - expected) / (repeats * planted.sum()))
    assert power_found == pytest.approx(expected, abs=error + 0.02)  # .02: the normal approximation
    assert level <= limit + 4 * math.sqrt(limit / (repeats * (~planted).sum()))
    # The rate is a mean over cells; false ones come in clusters, hence half as many independent ones.
    assert false / named <= 0.2 + 4 * math.sqrt(0.16 / (named / 2))


def test_the_states_of_the_simulated_cell_are_those_of_the_plan(plan: Plan, design: AuditDesign) -> None:
    """The simulation would prove nothing if its samples were in other states than the audit believes."""
    cell: Cell = plan.cells[0]
    for (track, base, index), name in cell.variants[0].tasks.items():
        if track == "audit":
            states = states_of(plan.by_id[name], LABELS)
            assert np.array_equal(states == FORGET, design.forget_set[base] == index)
            other = design.forget_set[base ^ 1][states == OUT]
            assert (other >= 0).sum() == (design.forget_set[base ^ 1] >= 0).sum()
