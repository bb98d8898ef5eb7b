"""The further tables of a cell: other attacks, bounds, and scores that need many models of one forget set."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.report_columns import Column


@dataclass(frozen=True)
class Table:
    """A table under the main one; columns in which no row has a value are left out."""

    title: str
    columns: tuple[Column, ...]


def _range(key: str, head: str, meaning: str, decimals: int = 3) -> Column:
    return Column(key, head, meaning, "range", decimals, optional=True)


def _bare(key: str, head: str, meaning: str, decimals: int = 3) -> Column:
    return Column(key, head, meaning, "bare", decimals, optional=True)


def _beside_retrain(key: str, head: str, meaning: str) -> tuple[Column, Column]:
    """A value per seed, and how far it is from that of retraining, seed by seed."""
    apart = f"{head} minus that of the retrain of the seed; 0 is best"
    return (
        Column(key, head, meaning, optional=True),
        Column(f"{key}_from_retrain", f"{head} − retrain", apart, optional=True),
    )


ON_PAIRS = (
    _range("auc_rmia", "RMIA", "AUC of RMIA, online, forgotten against never; population: the test samples"),
    _range("auc_rmia_retrained", "RMIA, retrained", "the same, forgotten against retrained"),
    _range(
        "auc_lira_joint", "Joint views", "U-LiRA with one joint density of all views, forgotten against never"
    ),
    _range(
        "auc_lira_base",
        "LiRA of bases",
        "likelihood ratio fitted on models before unlearning: an attacker who does not know of it",
    ),
    _range("auc_lira_offline_1s", "Offline, 1-sided", "how high φ is for a model that never saw the sample"),
    _range("auc_lira_offline_2s", "Offline, 2-sided", "how unusual φ is for such a model, high or low"),
    _range("auc_attack_r", "Attack-R", "share of such models that are less sure of the sample"),
    _range("auc_attack_p", "Attack-P", "share of test samples with a larger loss under the same model"),
    _range("auc_entropy", "Entropy", "negative entropy, thresholds per class learnt on the other pairs"),
    _range("auc_modified_entropy", "Modified entropy", "the same of modified entropy"),
    _range(
        "auc_update_leakage",
        "Update leakage",
        "from the model before and the model after together. That a sample was in the first shows even after"
        " retraining: compare with its row",
    ),
)

ON_MODELS = (
    *_beside_retrain(
        "population_loss",
        "Loss, logistic",
        "accuracy of a logistic regression on the loss, forget set against test set",
    ),
    *_beside_retrain(
        "population_matched", "Loss, same classes", "the same on equally many samples of every class (SCRUB)"
    ),
    *_beside_retrain(
        "loss_threshold",
        "Loss threshold",
        "AUC of the loss, forget set against test set; below 0.5 the forgotten have the larger loss, which is"
        " no success",
    ),
    *_beside_retrain(
        "gap", "Gap", "balanced accuracy of “correct means trained on”, forget set against test set"
    ),
    *_beside_retrain(
        "population_svm",
        "MIA efficacy",
        "share of the forget set that an SVM on confidence, trained on retain against test samples of"
        " the same classes, calls non-member; the aim is the value of retraining, not 1",
    ),
    Column(
        "gus_tpr_at_1pct",
        "GUS, TPR",
        "forgotten samples whose own statistic is above 2.326; 0.01 where nothing is remembered",
        optional=True,
    ),
)


def _bounds(of: str) -> tuple[Column, ...]:
    """Thresholds and privacy bounds of one comparison, e.g. forgotten_vs_never."""
    return (
        _range(
            f"auc_by_pair_{of}",
            "AUC by pair",
            "mean over pairs of the AUC within each, with a t-interval over pairs: no threshold is shared",
        ),
        _range(f"balanced_accuracy_{of}", "BA at 0", "balanced accuracy at log-likelihood ratio 0"),
        _bare(
            f"held_out_balanced_accuracy_{of}",
            "BA, held out",
            "balanced accuracy at the threshold that the other pairs chose",
        ),
        _bare(
            f"best_balanced_accuracy_{of}",
            "BA, best",
            "largest over thresholds of the same scores: optimistic, to compare with published tables",
        ),
        *_rates(of),
        _bare(
            f"held_out_tpr_{of}",
            "TPR, held out",
            "TPR at the threshold that the other pairs chose for FPR ≤ 1 %",
        ),
        _bare(f"held_out_fpr_{of}", "FPR, held out", "the FPR reached there", 4),
        *(
            _bare(
                f"precision_{of}_at_prior_{percent}pct",
                f"Precision, {percent} %",
                f"share of right accusations at FPR ≤ 1 % if {percent} % of all samples had been trained on",
            )
            for percent in (50, 10, 1)
        ),
        _bare(
            f"epsilon_split_{of}",
            "ε, split",
            "lower bound on ε at δ = 0, 95 %, threshold chosen on half of the pairs and judged on the other;"
            " the scores of a model are taken as independent",
            2,
        ),
        _bare(f"mu_split_{of}", "μ, split", "lower bound on μ of Gaussian privacy, likewise", 2),
    )


def _rates(of: str) -> tuple[Column, ...]:
    return tuple(
        column
        for alpha, percent in (("1pct", "1"), ("01pct", "0.1"))
        for column in (
            _range(f"tpr_{of}_at_{alpha}", f"TPR at {percent} %", f"largest TPR with FPR ≤ {percent} %", 4),
            _bare(f"fpr_{of}_at_{alpha}", f"FPR at {percent} %", "the FPR really reached", 4),
            Column(
                f"false_positives_{of}_at_{alpha}",
                f"False at {percent} %",
                "false positives behind it; from fewer than 10 allowed no TPR is given",
                "plain",
                optional=True,
            ),
        )
    )


ONE_RUN = _bare(
    "epsilon_one_run",
    "ε, one run",
    "lower bound on ε, 95 %, from one model of each pair, a tenth of whose samples are guessed",
    2,
)

MARKS = (
    _range("balanced_accuracy_fingerprint", "BA at 0", "balanced accuracy at log-likelihood ratio 0"),
    *_rates("fingerprint"),
)

PER_SAMPLE = (
    *(
        column
        for percent in (50, 90, 95, 99)
        for column in (
            _bare(
                f"sample_auc_p{percent}",
                f"AUC, P{percent}",
                f"{percent} % quantile over samples of the AUC of φ of one sample, forgotten against"
                " retrained, over all pairs: noise alone spreads it, so compare with the next column",
            ),
            _bare(
                f"sample_auc_null_p{percent}",
                f"P{percent} by noise",
                "the same if nothing leaked, by the number of pairs",
            ),
        )
    ),
    Column(
        "exposed_found",
        "Found",
        "samples found exposed on half of the pairs, false discoveries ≤ 5 %",
        "plain",
        optional=True,
    ),
    Column(
        "exposed_confirmed", "Confirmed", "of these, found again on the other half", "plain", optional=True
    ),
    _bare("exposed_auc", "AUC of found", "mean AUC of those found, on the other half: free of the choice"),
    _bare(
        "streisand_retrained", "Streisand, retrain", "share of retrained scores below their own 1 % quantile"
    ),
)

ONE_FORGET_SET = (
    Column(
        "models_of_one_set",
        "Models",
        "seeds of the main track: models of one retain and one forget set",
        "plain",
        optional=True,
    ),
    *(
        column
        for of in ("forget", "retain", "val")
        for column in (
            _bare(
                f"klom_{of}_forward",
                f"KLoM, {of}",
                f"mean KL(unlearned ‖ half of the retrained models), 20 bins, {of} samples, nats",
            ),
            _bare(
                f"klom_{of}_forward_null",
                f"KLoM, {of}, null",
                "the same of the other half of the retrained models: what a perfect method gets",
            ),
        )
    ),
    _bare("klom_forget_forward_p95", "KLoM, P95", "95 % quantile of KLoM over forgotten samples"),
    _bare("klom_forget_forward_null_p95", "KLoM, P95, null", "the same of the other half of the retrained"),
    _bare("klom_forget_backward", "KLoM, backward", "mean KL(half of the retrained ‖ unlearned), forget"),
    _bare("klom_forget_backward_null", "KLoM, backward, null", "the same of halves of the retrained"),
    _bare(
        "klom_forget_gaussian_forward", "KLoM, Gaussian", "KL of fitted Gaussians, far less biased, forget"
    ),
    _bare("klom_forget_gaussian_forward_null", "KLoM, Gaussian, null", "the same of halves of the retrained"),
    _bare("neurips_f", "NeurIPS F", "forgetting quality of the 2023 challenge, from different originals"),
    _bare("neurips_f_halved", "F, halves", "F against halves of the retrained models"),
    _bare("neurips_f_null", "F, null", "F of those halves from each other: a perfect method is not at 1"),
    _bare("neurips_final", "Final score", "F times mean retain and test accuracy over those of retraining"),
)

FURTHER = (
    Table("Other attacks on the pairs", ON_PAIRS),
    Table("Attacks on one model, beside retraining", ON_MODELS),
    Table(
        "Thresholds and privacy bounds, forgotten against never", (*_bounds("forgotten_vs_never"), ONE_RUN)
    ),
    Table("Thresholds and privacy bounds, forgotten against retrained", _bounds("forgotten_vs_retrained")),
    Table("Fingerprint: never-seen samples, the method's models against retrained ones", MARKS),
    Table("Sample by sample, forgotten against retrained", PER_SAMPLE),
    Table("Many models of one forget set", ONE_FORGET_SET),
)
