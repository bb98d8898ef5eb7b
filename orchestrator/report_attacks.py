"""What the report says of the attacks beside U-LiRA, of privacy bounds, and of scores on one forget set."""

from __future__ import annotations

import math
from typing import Any

from attacks import (
    attack_p,
    attack_r,
    correctness,
    entropy,
    held_out,
    klom,
    lira,
    loss_threshold,
    neurips_score,
    population_loss,
    population_matched,
    population_svm,
    rmia,
    ulira,
    update_leakage,
)
from orchestrator.report_audit import Values, finite, interval

Found = list[dict[str, Any]]  # the rows of audits of one row of the report

# Name in the report -> attack, variant and comparison in the table audits.
ON_PAIRS = {
    "rmia_retrained": (rmia.name, "online", "forgotten_vs_retrained"),
    "rmia": (rmia.name, "online", "forgotten_vs_never"),
    "lira_joint_retrained": (lira.name, "joint_views", "forgotten_vs_retrained"),
    "lira_joint": (lira.name, "joint_views", "forgotten_vs_never"),
    "lira_base": (lira.name, "base", "forgotten_vs_never"),
    "lira_offline_1s": (lira.name, "offline_1s", "forgotten_vs_never"),
    "lira_offline_2s": (lira.name, "offline_2s", "forgotten_vs_never"),
    "attack_p": (attack_p.name, "", "forgotten_vs_never"),
    "attack_r": (attack_r.name, "", "forgotten_vs_never"),
    "entropy": (entropy.name, "entropy", "forgotten_vs_never"),
    "modified_entropy": (entropy.name, "modified_entropy", "forgotten_vs_never"),
    "update_leakage": (update_leakage.name, "", "forgotten_vs_never"),
}
# Name in the report -> attack and column of the table audits, one value per seed.
ON_MODELS = {
    "population_loss": (population_loss.name, "accuracy"),
    "population_svm": (population_svm.name, "nonmember_share"),
    "population_matched": (population_matched.name, "accuracy"),
    "loss_threshold": (loss_threshold.name, "auc"),
    "gap": (correctness.name, "accuracy"),
}
COMPARISONS = ("forgotten_vs_retrained", "forgotten_vs_never")
DERIVED = (
    *("epsilon_split", "mu_split", "held_out_tpr", "held_out_fpr"),
    *("held_out_balanced_accuracy", "best_balanced_accuracy"),
)
ONE_RUN = ("epsilon_one_run", "one_run_correct", "one_run_guesses")
PRIORS = {"50pct": 0.5, "10pct": 0.1, "1pct": 0.01}
SETS = ("forget", "retain", "val")
KLOM = tuple(
    f"{direction}{null}{end}"
    for direction in ("forward", "backward", "gaussian_forward", "gaussian_backward")
    for null in ("", "_null")
    for end in ("", "_p95")
)
NEURIPS = ("neurips_f", "neurips_f_halved", "neurips_f_null", "neurips_final")


def columns(found: Found) -> dict[str, Any]:
    """The flat columns of a row of the report; null where an attack was not made."""
    return _on_pairs(found) | _derived(found) | _on_models(found) | _fixed_set(found)


def against_retrain(found: Found, retrain: Found) -> Values:
    """How far each attack on single models is from its value on the retrain of the same seed."""
    columns: Values = {}
    for name, (attack, column) in ON_MODELS.items():
        mine, theirs = _by_seed(found, attack, column), _by_seed(retrain, attack, column)
        apart = [value - theirs[seed] for seed, value in mine.items() if seed in theirs]
        columns |= interval(f"{name}_from_retrain", apart)
    return columns


def _on_pairs(found: Found) -> dict[str, Any]:
    rows = {(row["attack"], row.get("variant") or "", row["comparison"]): row for row in found}
    columns: dict[str, Any] = {}
    for name, key in ON_PAIRS.items():
        row = rows.get(key, {})
        for source, target in (("auc", f"auc_{name}"), ("tpr_at_1pct", f"tpr_{name}_at_1pct")):
            for end in ("", "_low", "_high"):
                columns[target + end] = finite(row.get(source + end))
        columns[f"fpr_{name}_at_1pct"] = finite(row.get("fpr_at_1pct"))
    return columns


def _derived(found: Found) -> dict[str, Any]:
    """What follows from U-LiRA's ratios: bounds, thresholds learnt elsewhere, precision at priors."""
    rows = {row["comparison"]: row for row in found if row["attack"] == ulira.name}
    columns: dict[str, Any] = {}
    for comparison in COMPARISONS:
        row = rows.get(comparison, {})
        columns |= {f"{name}_{comparison}": finite(row.get(name)) for name in DERIVED}
        tpr, fpr = row.get("tpr_at_1pct"), row.get("fpr_at_1pct")
        for name, prior in PRIORS.items():
            known = tpr is not None and fpr is not None
            value = held_out.precision(tpr, fpr, prior) if known else math.nan
            columns[f"precision_{comparison}_at_prior_{name}"] = finite(value)
    return columns | {name: finite(rows.get("forgotten_vs_never", {}).get(name)) for name in ONE_RUN}


def _on_models(found: Found) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, (attack, column) in ON_MODELS.items():
        columns |= interval(name, list(_by_seed(found, attack, column).values()))
    return columns


def _by_seed(found: Found, attack: str, column: str) -> dict[int, float]:
    return {
        row["seed"]: row[column] for row in found if row["attack"] == attack and row.get(column) is not None
    }


def _fixed_set(found: Found) -> dict[str, Any]:
    """KLoM against halves of the retrained models, its null beside it, and the NeurIPS score."""
    rows = {row["comparison"]: row for row in found if row["attack"] == klom.name}
    columns: dict[str, Any] = {}
    for name in SETS:
        row = rows.get(name, {})
        for column in KLOM:
            of_null = f"klom_null_{column.replace('_null', '')}"
            source = of_null if "_null" in column else f"klom_halved_{column}"
            columns[f"klom_{name}_{column}"] = finite(row.get(source))
    score = next((row for row in found if row["attack"] == neurips_score.name), {})
    columns |= {name: finite(score.get(name)) for name in NEURIPS}
    return columns | {"models_of_one_set": score.get("models")}
