"""The attacks beside U-LiRA on the pairs of an audit, and what is derived from log-likelihood ratios.

Each attack gives a score to every (pair, sample) in two worlds, from the other pairs only; all are judged
alike: AUC, TPR at FPR ≤ 1 % and ROC, with a bootstrap over pairs. `audit.py` says what the worlds are.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks import attack_p, attack_r, entropy, epsilon_bounds, held_out, lira, rmia, ulira, update_leakage

if TYPE_CHECKING:
    from orchestrator.audit import AuditDesign

GUESSES = 0.1  # of the one-run bound, as a share of a model's samples: fixed in advance
VIEWS_PER_PAIR = 4  # a joint density of Q views wants this many times Q pairs
ATTACKS = (attack_p, attack_r, entropy, epsilon_bounds, lira, rmia, update_leakage)
COMPARISONS = ("forgotten_vs_retrained", "forgotten_vs_never")

Worlds = tuple[np.ndarray, np.ndarray]  # φ (views, pairs, samples) of the positive and the negative world
Found = tuple[np.ndarray, np.ndarray]  # scores (pairs, samples)


def rows(
    design: AuditDesign, worlds: dict[str, Worlds], test: np.ndarray, before: Worlds | None
) -> Iterator[dict[str, Any]]:
    """A row of audits for each further attack. worlds: the comparisons there are scores for; test: φ (bases,
    forget sets, test samples); before: φ of the bases at what was forgotten and at what was never in.
    """
    for comparison in COMPARISONS:
        if comparison not in worlds:
            continue
        for attack, variant, scores in _attacks(design, worlds[comparison], comparison, test, before):
            if judged := _judged(scores):
                facts = {"attack": attack.name, "variant": variant, "attack_version": attack.version}
                yield facts | {"comparison": comparison} | judged


def _attacks(
    design: AuditDesign, worlds: Worlds, comparison: str, test: np.ndarray, before: Worlds | None
) -> Iterator[tuple[ModuleType, str, Found]]:
    """(attack, variant, its scores) in one comparison."""
    positive, negative = worlds[0][0], worlds[1][0]
    population = test.shape[-1] > 0
    if population:
        yield rmia, "online", _rmia(design, worlds, comparison, test)
    if 1 < len(worlds[0]) <= len(positive) / VIEWS_PER_PAIR:
        yield lira, "joint_views", _joint(worlds)
    if comparison != "forgotten_vs_never":
        return
    for sides in (1, 2):
        found = lira.offline_worlds_leave_pair_out(positive, negative, sides=sides)
        yield lira, f"offline_{sides}s", found
    if population:
        yield attack_p, "", _attack_p(design, positive, negative, test)
    yield attack_r, "", attack_r.worlds_leave_pair_out(positive, negative)
    if before is not None:
        original = before[0][0], before[1][0]
        yield lira, "base", lira.worlds_leave_pair_out(positive, negative, fitted=original)
        yield update_leakage, "", update_leakage.update_leakage(original[0], positive, original[1], negative)


def _judged(scores: Found) -> dict[str, Any]:
    """The columns of an attack's scores; none where too few pairs have one."""
    scored = ~(np.isnan(scores[0]) | np.isnan(scores[1]))
    pairs = int(scored.any(axis=1).sum())
    if pairs < ulira.MIN_PAIRS:
        return {}
    high, low = (np.where(scored, world, np.nan) for world in scores)
    counts = {"pairs": pairs, "samples": int(scored.any(axis=0).sum())}
    counts |= {"n_positive": int(scored.sum()), "n_negative": int(scored.sum())}
    return columns(ulira.judged(high, low) | counts)


def columns(found: dict[str, Any]) -> dict[str, Any]:
    """Fields of `ulira.Comparison` as columns of the table audits."""
    same = (
        *("pairs", "samples", "n_positive", "n_negative", "auc", "auc_low", "auc_high", "auc_replicates"),
        *("auc_by_pair", "auc_by_pair_low", "auc_by_pair_high"),
        *("loss_auc", "loss_auc_low", "loss_auc_high", "nu0_positive", "nu0_negative", "collapsed"),
        *("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"),
        *("roc_fpr", "roc_tpr", "roc_low", "roc_high"),
    )
    row = {name: found[name] for name in same if name in found}
    for alpha, suffix in ((0.01, "1pct"), (0.001, "01pct")):
        tpr = found["tpr"][alpha]
        # Nobody accused at all: the highest score is shared by more than alpha allows.
        known = tpr.supported and (tpr.tpr > 0 or tpr.false_positives > 0)
        row[f"tpr_at_{suffix}"] = tpr.tpr if known else None
        row[f"tpr_at_{suffix}_low"] = tpr.low if known else None
        row[f"tpr_at_{suffix}_high"] = tpr.high if known else None
        row[f"fpr_at_{suffix}"] = tpr.fpr
        row[f"false_positives_at_{suffix}"] = tpr.false_positives
    return row


# ---- the attacks -------------------------------------------------------------------------------------------


def _joint(worlds: Worlds) -> Found:
    high, low = (world.transpose(1, 0, 2) for world in worlds)
    found: Found = lira.worlds_leave_pair_out(high, low, combine="joint")
    return found


def _rmia(design: AuditDesign, worlds: Worlds, comparison: str, test: np.ndarray) -> Found:
    """RMIA with the test samples as population; the models behind the two worlds are one list."""
    forgotten, never, retrained = (base * design.sets + index for base, index in design.places())
    other, population = never, test.reshape(-1, test.shape[-1])
    if comparison == "forgotten_vs_retrained":
        other = retrained + len(population)
        population = np.concatenate([population, design.retrained_test.reshape(len(population), -1)])
    there = np.flatnonzero(~np.isnan(population).any(axis=1))
    place = np.zeros(len(population), dtype=np.intp)
    place[there] = np.arange(len(there))  # an entry whose model is not there has no φ, and is not looked up
    pair = there // design.sets % design.bases // 2
    first, second = (place[np.maximum(world, 0)] for world in (forgotten, other))
    phi = worlds[0][0], worlds[1][0]
    found: Found = rmia.worlds_leave_pair_out(*phi, first, second, population[there], pair)
    return found


def _attack_p(design: AuditDesign, positive: np.ndarray, negative: np.ndarray, test: np.ndarray) -> Found:
    """Attack-P of forgotten and never-in, each model with the test samples as its population."""
    found = []
    for world, (base, index) in zip((positive, negative), design.places()[:2], strict=True):
        scores = np.full(world.shape, np.nan)
        for of in np.unique(base):
            for number in range(design.sets):
                here = (base == of) & (index == number) & ~np.isnan(world)
                if here.any():
                    scores[here] = attack_p.attack_p(world[here], test[of, number])
        found.append(scores)
    return found[0], found[1]


def entropy_rows(design: AuditDesign, column: str, worlds: Worlds) -> Iterator[dict[str, Any]]:
    """A row of audits for the attack on stored entropies: −H or −M against a threshold per class, which the
    other pairs choose.
    """
    if design.labels is None:
        return
    classes = int(design.labels.max()) + 1
    high, low = -worlds[0][0].astype(np.float64), -worlds[1][0].astype(np.float64)
    both = ~(np.isnan(high) | np.isnan(low))
    found = np.full((2, *both.shape), np.nan)
    kinds = np.broadcast_to(design.labels, both.shape)
    for p in range(len(both)):
        others = both.copy()
        others[p] = False
        if not (others.any() and both[p].any()):
            continue
        known = np.concatenate([high[others], low[others]])
        member = np.arange(known.size) < others.sum()
        cut = entropy.class_thresholds(known, np.tile(kinds[others], 2), member, classes)
        for world, scores in zip((high, low), found, strict=True):
            scores[p, both[p]] = entropy.margin(world[p, both[p]], design.labels[both[p]], cut)
    if judged := _judged((found[0], found[1])):
        facts = {"attack": entropy.name, "variant": column, "attack_version": entropy.version}
        yield facts | {"comparison": "forgotten_vs_never"} | judged


# ---- derived from log-likelihood ratios --------------------------------------------------------------------


def thresholds(positive: np.ndarray, negative: np.ndarray) -> dict[str, Any]:
    """Rates at thresholds learnt on other pairs, and ε and μ with thresholds chosen on half of the pairs, of
    LLR (pairs, samples), NaN = none.
    """
    rates = held_out.held_out(positive, negative)
    groups = np.broadcast_to(np.arange(len(positive))[:, None], positive.shape)
    scored = ~np.isnan(positive), ~np.isnan(negative)
    bound = epsilon_bounds.split_threshold(
        positive[scored[0]],
        negative[scored[1]],
        positive_group=groups[scored[0]],
        negative_group=groups[scored[1]],
    )
    return {
        "held_out_tpr": rates.tpr,
        "held_out_fpr": rates.fpr,
        "held_out_balanced_accuracy": rates.balanced_accuracy,
        "best_balanced_accuracy": rates.best_balanced_accuracy,
        "epsilon_split": bound.epsilon,
        "mu_split": bound.mu,
    }


def one_run(design: AuditDesign, positive: np.ndarray, negative: np.ndarray) -> dict[str, Any]:
    """The one-run bound from one model of each pair: the first base's, its first forget set.

    The coin is "in this forget set, or never in": which half of a pair trains on a sample. Models of
    different pairs are independent, so their guesses add up; more models of a pair are not, and do not enter.
    The halves are balanced, so the coins are not quite independent as the theorem wants them.
    """
    correct = guesses = samples = 0
    first, second = 2 * np.arange(len(positive))[:, None], 2 * np.arange(len(positive))[:, None] + 1
    inside = (design.member == first) & (design.index == 0) & ~np.isnan(positive)
    outside = (design.member == second) & (design.index == 0) & ~np.isnan(negative)
    for p in range(len(positive)):
        scores = np.concatenate([positive[p, inside[p]], negative[p, outside[p]]])
        wanted = 2 * round(GUESSES * len(scores) / 2)
        if wanted < 2:
            continue
        included = np.arange(len(scores)) < inside[p].sum()
        bound = epsilon_bounds.one_run_audit(scores, included, wanted, seed=p)
        correct += bound.correct
        guesses += bound.guesses
        samples += bound.samples
    if not guesses:
        return {}
    epsilon = epsilon_bounds.one_run_epsilon(correct, guesses, samples)
    return {"epsilon_one_run": epsilon, "one_run_correct": correct, "one_run_guesses": guesses}
