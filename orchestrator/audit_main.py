"""What is computed from the main track: attacks on single models, and the scores that need many models of one
retain and one forget set, which the seeds of the main track are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks import (
    correctness,
    klom,
    loss_threshold,
    neurips_score,
    population_loss,
    population_matched,
    population_svm,
)
from attacks.scores import confidence_from_phi, loss_from_phi
from workers.designs import FORGET, RETAIN, VAL

if TYPE_CHECKING:
    from orchestrator.audit import Reader, Row

ATTACKS = (
    *(correctness, klom, loss_threshold, neurips_score),
    *(population_loss, population_matched, population_svm),
)
MIN_SEEDS = 8  # below, half of the retrained models against the other half says little


def rows(reader: Reader, row: Row) -> Iterator[dict[str, Any]]:
    """The rows of audits of one row of the report that come from its main track."""
    phi = reader.scores(task for key, task in row.tasks.items() if key[0] == "main")
    yield from (row.columns | found for found in _population_rows(reader, row, phi))
    yield from (row.columns | found for found in _fixed_set_rows(reader, row, phi))


# ---- attacks on one model ----------------------------------------------------------------------------------


def _population_rows(reader: Reader, row: Row, phi: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The population attacks, one row per attack and seed: forget set against test set (spec: benchmark §5.3,
    attacks §3.8). Where whole classes or subclasses were forgotten, against the test samples of these; but
    the SVM sets the other test samples against the retain set: else it would tell classes apart.
    """
    correct = reader.scores(phi, "correct")
    for (track, seed, index), task in row.tasks.items():
        retrain = row.cell.retrains.get((track, seed, index), "")
        states = reader.states(retrain)
        if track != "main" or task not in phi or states is None:
            continue
        forget, test = np.flatnonzero(states == FORGET), np.arange(len(states), len(phi[task]))
        gone = reader.forgotten_kinds(retrain)
        outside = test
        if gone is not None:
            test = test[np.flatnonzero(gone)]
            outside = np.setdiff1d(outside, test)
        if min(len(forget), len(test)) < population_loss.MIN_SAMPLES:
            continue  # too few to attack: indiscernibility stays unknown
        retain = np.flatnonzero(states == RETAIN)
        labels = np.concatenate(reader.labels(task))
        found = _attacks(phi[task], correct[task], retain, forget, test, outside, labels)
        common = {"comparison": "forget_vs_test", "seed": seed, "variant": ""}
        common |= {"samples": len(forget) + len(test), "n_positive": len(forget), "n_negative": len(test)}
        yield from (common | columns for columns in found)


def _attacks(
    phi: np.ndarray,
    correct: np.ndarray,
    retain: np.ndarray,
    forget: np.ndarray,
    test: np.ndarray,
    outside: np.ndarray,
    labels: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Each attack on one model: φ, correctness and labels (samples,), and indices of the sets; outside:
    the test samples of the classes of the retain set.
    """
    loss = loss_from_phi(phi)
    accuracy = population_loss.population_loss(loss[forget], loss[test])
    yield _named(population_loss) | {
        "accuracy": accuracy,
        "indisc": population_loss.indiscernibility(accuracy),
    }
    yield _named(loss_threshold) | {"auc": loss_threshold.loss_threshold(phi[forget], phi[test])}
    gap = correctness.correctness(correct[forget].astype(float), correct[test].astype(float))
    yield _named(correctness) | {"accuracy": gap}
    if len(labels) == len(phi):
        try:
            matched = population_matched.population_matched(
                loss[forget], labels[forget], loss[test], labels[test]
            )
        except ValueError:
            pass  # a class without a test sample, or too few samples of the same classes
        else:
            yield _named(population_matched) | {"accuracy": matched}
    if min(len(retain), len(outside)) >= population_svm.MIN_SAMPLES:
        confidence = confidence_from_phi(phi)
        share = population_svm.population_svm(confidence[retain], confidence[outside], confidence[forget])
        yield _named(population_svm) | {"nonmember_share": share}


def _named(attack: Any) -> dict[str, Any]:
    return {"attack": attack.name, "attack_version": attack.version}


# ---- many models of one forget set -------------------------------------------------------------------------


def _fixed_set_rows(reader: Reader, row: Row, phi: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """KLoM and the NeurIPS score of the seeds of the main track, whose retain and forget sets are the same;
    of retraining itself, the null only: half of its models against the other half.
    """
    retrains = [task for key, task in row.references.retrains.items() if key[0] == "main"]
    others = reader.scores(retrains)
    if min(len(phi), len(others)) < MIN_SEEDS:
        return
    designs = {reader.runs[task]["design"] for task in others}
    states = reader.states(next(iter(others)))
    if len(designs) > 1 or states is None:
        return  # not one forget set
    sets = {"forget": states == FORGET, "retain": states == RETAIN, "val": states == VAL}
    ours, theirs = np.stack(list(phi.values())), np.stack(list(others.values()))
    common = {"models": min(len(ours), len(theirs)), "variant": ""}
    for name, mask in sets.items():
        if not mask.any():
            continue
        unlearned, retrained = (side[:, : len(states)][:, mask] for side in (ours, theirs))
        facts = common | {"comparison": name, "samples": int(mask.sum())}
        yield facts | _named(klom) | _klom(unlearned, retrained, row.kind == "retrain")
        if name == "forget":
            score = neurips_score.neurips_score(unlearned, retrained)
            yield facts | _named(neurips_score) | _neurips(reader, score, row, phi, others)


def _klom(unlearned: np.ndarray, retrained: np.ndarray, itself: bool) -> dict[str, Any]:
    found = asdict(klom.klom(unlearned, retrained))
    ends = {"": "mean", "_p95": "percentile_95"}
    return {
        f"klom{'' if of == 'full' else '_' + of}_{estimate}{end}": divergence[stat]
        for of, estimates in found.items()
        if of == "null" or not itself
        for estimate, divergence in estimates.items()
        if estimate != "models"
        for end, stat in ends.items()
    }


def _neurips(
    reader: Reader,
    score: neurips_score.NeuripsScore,
    row: Row,
    unlearned: dict[str, np.ndarray],
    retrained: dict[str, np.ndarray],
) -> dict[str, Any]:
    if row.kind == "retrain":
        return {"neurips_f_null": score.null}
    accuracies = [_mean(reader, tasks, name) for name in ("ra", "ta") for tasks in (unlearned, retrained)]
    known = None not in accuracies and min(accuracies[1::2]) > 0
    return {
        "neurips_f": score.forgetting,
        "neurips_f_halved": score.forgetting_halved,
        "neurips_f_null": score.null,
        "neurips_final": neurips_score.final_score(score.forgetting, *accuracies) if known else None,
    }


def _mean(reader: Reader, tasks: Iterable[str], name: str) -> Any:
    values = [reader.runs[task][name] for task in tasks]
    return None if None in values else float(np.mean(values))
