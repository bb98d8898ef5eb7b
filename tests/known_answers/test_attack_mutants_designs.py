"""Known defects of public audits, continued: sets of models compared on one forget set, and designs.

Each is written in our own words and refused by the very check that our function passes. See
test_attack_mutants.py for the evidence of LiRA, U-LiRA and RMIA.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import attacks
from attacks.klom import BINS, FLOOR, binned_kl, gaussian_kl, klom
from attacks.neurips_score import CAP, epsilons, neurips_score
from attacks.population_loss import population_loss
from attacks.population_matched import population_matched
from orchestrator.config import Grid
from orchestrator.plan import make_plan
from tests.conftest import grid_data
from tests.known_answers.mutants import Defects, tell_apart
from workers import designs
from workers.designs import FORGET
from workers.forget.random import Random

DEFECTS = Defects()

# ---- divergences of sets of models -------------------------------------------------------------------------


def goes_from_unlearned_to_retrained(forward):
    """KL(N(0, .3²) ‖ N(0, 1)) = log(1/.3) + .045 − ½ = .749; the other way round it is 3.85."""
    rng = np.random.default_rng(7)
    unlearned, retrained = rng.normal(0, 0.3, (400, 100)), rng.normal(0, 1, (400, 100))
    assert forward(unlearned, retrained) == pytest.approx(math.log(1 / 0.3) + 0.045 - 0.5, rel=0.05)


def klom_forward(unlearned, retrained):
    return klom(unlearned, retrained).full.gaussian_forward.mean


@DEFECTS.of(klom_forward, goes_from_unlearned_to_retrained)
def arguments_swapped(unlearned, retrained):
    return gaussian_kl(retrained, unlearned).mean()


def loses_no_model(divergence):
    """Half of the models at the largest margin against none: ½ log ½ + ½ log(½ / 1e-5)."""
    first, second = np.array([[0.0], [0.0], [1.0], [1.0]]), np.zeros((4, 1))
    expected = 0.5 * math.log(0.5) + 0.5 * math.log(0.5 / FLOOR)
    assert divergence(first, second)[0] == pytest.approx(expected)


@DEFECTS.of(binned_kl, loses_no_model)
def the_largest_margin_past_the_last_bin(first, second):
    found = []
    for a, b in zip(first.T, second.T, strict=True):
        low, width = min(a.min(), b.min()), (np.ptp([*a, *b]) or 1.0) / BINS
        p, q = (
            np.bincount(((side - low) / width).astype(int), minlength=BINS + 1)[:BINS] / len(side)
            for side in (a, b)
        )
        found.append(sum(x * math.log(x / max(y, FLOOR)) for x, y in zip(p, q, strict=True) if x))
    return np.array(found)


def is_what_a_perfect_method_has(floor):
    """KLoM of a method that retrains, at 100 models each: .35 on average."""
    rng = np.random.default_rng(8)
    retrained, perfect = rng.normal(size=(200, 500)), rng.normal(size=(100, 500))
    expected = binned_kl(perfect, retrained[:100]).mean()
    assert expected == pytest.approx(0.35, abs=0.03)
    assert floor(retrained) == pytest.approx(expected, rel=0.1)


def half_against_half(retrained):
    return klom(retrained, retrained).null.forward.mean


@DEFECTS.of(half_against_half, is_what_a_perfect_method_has)
def a_set_against_itself(retrained):
    return binned_kl(retrained, retrained).mean()


def separated_sets_are_told_apart(epsilon):
    """Several thresholds without an error: ε is at its cap."""
    rng = np.random.default_rng(9)
    try:
        found = epsilon(rng.normal(30, 1, (20, 3)), rng.normal(0, 1, (20, 3)))
    except ValueError as error:
        raise AssertionError(error) from error
    assert found.tolist() == [CAP] * 3


@DEFECTS.of(epsilons, separated_sets_are_told_apart)
def assert_on_several_thresholds(first, second):
    for a, b in zip(first.T, second.T, strict=True):
        cuts = np.linspace(b.max(), a.min(), 5)
        errors = (a[:, None] < cuts).sum(axis=0) + (b[:, None] > cuts).sum(axis=0)
        assert errors[errors == 0] == 0  # of an array of several: ambiguous
    return np.full(first.shape[1], CAP)


def a_perfect_method_reads_one(value):
    """ε is maximised on its own scores: F of retraining is .35, and 1 only over that of halves."""
    rng = np.random.default_rng(11)
    assert value(rng.normal(size=(64, 600)), rng.normal(size=(128, 600))) == pytest.approx(1, abs=0.1)


def relative_to_halves(unlearned, retrained):
    return neurips_score(unlearned, retrained, intervals=False).ratio


@DEFECTS.of(relative_to_halves, a_perfect_method_reads_one)
def without_its_attainable_maximum(unlearned, retrained):
    return neurips_score(unlearned, retrained, intervals=False).forgetting


# ---- who is forgotten when, and who is compared with whom --------------------------------------------------

POOL, SETS, PAIRS = 400, 4, 6
LABELS = np.arange(POOL) % 5


def members_of(pair, half):
    return {"track": "audit", "val_fraction": 0.1, "pair": pair, "half": half}


def a_partition(pair, half):
    """Forget sets (sets, pool) of one base."""
    recipe, draws = members_of(pair, half), ({"index": i, "of": SETS} for i in range(SETS))
    return np.array(
        [designs.build("toy", LABELS, recipe, Random(0.25), "key", draw) == FORGET for draw in draws]
    )


def every_sample_is_forgotten_once_in_each_pair(forget_sets):
    times = [sum(forget_sets(pair, half) for half in (0, 1)).sum(axis=0) for pair in range(PAIRS)]
    audited = np.sum(times, axis=0) > 0
    assert audited.sum() == POOL * 0.9
    assert np.all(np.array(times)[:, audited] == 1)  # so k_F = B/2 for all of them


@DEFECTS.of(a_partition, every_sample_is_forgotten_once_in_each_pair)
def independent_draws(pair, half):
    member = designs.members("toy", LABELS, members_of(pair, half)) == designs.RETAIN
    rng, found = np.random.default_rng(2 * pair + half), np.zeros((SETS, POOL), dtype=bool)
    for row in found:
        row[rng.choice(np.flatnonzero(member), member.sum() // SETS, replace=False)] = True
    return found


def sets_of_bases_are_exchangeable(forget_sets):
    """What one base forgets together, another one forgets together as often as any two samples."""
    target = forget_sets(0, 0)[0]
    together = []
    for pair in range(1, 20):
        for half in (0, 1):
            sizes = forget_sets(pair, half)[:, target].sum(axis=1)
            together.append((sizes * (sizes - 1)).sum() / max(1, sizes.sum() * (sizes.sum() - 1)))
    assert np.mean(together) == pytest.approx(1 / SETS, abs=0.03)


@DEFECTS.of(a_partition, sets_of_bases_are_exchangeable)
def the_targets_forget_set_forced_into_the_shadows(pair, half):
    found = a_partition(pair, half)
    forced = a_partition(0, 0)[0] & found.any(axis=0)
    found[:, forced] = False
    found[0] |= forced
    return found


def every_training_run_is_its_own(seeds):
    """No two bases or retrains of the audit share initial weights and order of the data."""
    found = seeds(make_plan(Grid.model_validate(grid_data())).tasks)
    assert len(found) == 8 + 16 and len(set(found)) == len(found)


def seeds_of_trainings(tasks):
    audit = [t for t in tasks if t.columns()["track"] == "audit" and t.kind in ("base", "retrain")]
    return [(t.spec["seeds"]["init"], t.spec["seeds"]["order"]) for t in audit]


@DEFECTS.of(seeds_of_trainings, every_training_run_is_its_own)
def one_seed_for_all_models(tasks):
    return [(0, 0) for _ in seeds_of_trainings(tasks)]


def another_mix_of_classes_is_no_memory(attack):
    """Easy and hard classes, nothing remembered; the forget set is mostly of the easy one."""
    rng = np.random.default_rng(10)
    label = np.repeat([0, 1], [450, 50]), np.repeat([0, 1], [250, 250])
    forget, test = (rng.exponential(1, len(y)) + 3.0 * y for y in label)
    assert attack(forget, label[0], test, label[1]) == pytest.approx(0.5, abs=0.08)


@DEFECTS.of(population_matched, another_mix_of_classes_is_no_memory)
def all_classes_pooled(forget, forget_label, test, test_label):
    return population_loss(forget, test)


def runs_anywhere(sources):
    """An attack names no device, and stops for no debugger."""
    for word in ("cuda", "pdb", "breakpoint"):
        assert not any(word in text for text in sources())


def our_attacks():
    return [file.read_text(encoding="utf-8") for file in Path(attacks.__path__[0]).glob("*.py")]


@DEFECTS.of(our_attacks, runs_anywhere)
def a_trap_left_in():
    return [*our_attacks(), "if np.isnan(kl).any():\n    import pdb; pdb.set_trace()\n"]


@pytest.mark.parametrize(("right", "check", "mutant"), DEFECTS.cases)
def test_the_defect_fails_the_check_that_the_right_function_passes(right, check, mutant):
    tell_apart(right, check, mutant)
