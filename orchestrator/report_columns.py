"""The columns of the report's tables: what they hold, what they mean and how their values are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of the tables: its key in a row, its heading, what it means and how a value is shown."""

    key: str
    head: str
    meaning: str
    style: str = (
        "mean"  # mean ± half-width; 'range': value [low, high]; 'bare': no interval; 'plain': as it is
    )
    decimals: int = 3
    optional: bool = False  # left out of a cell in which no row has a value


COLUMNS = (
    Column("rank", "#", "rank within the cell", "plain"),
    Column(
        "label",
        "Method",
        "the method, or Base: before unlearning, or Retrain: without the forget set",
        "plain",
    ),
    Column(
        "pareto",
        "Pareto",
        "yes: no other method loses as little TA against retraining, leaks as little to the audit, takes as"
        " few seconds, and is better in one of them",
        "plain",
        optional=True,
    ),
    Column("notes", "Notes", "flags, failures and tasks not run yet", "plain"),
    Column("n", "Seeds", "seeds with a finished run on the main track", "plain"),
    Column("ra", "RA", "accuracy on the retain set"),
    Column("fa", "FA", "accuracy on the forget set"),
    Column(
        "fa_flipped",
        "FA, flipped",
        "accuracy on the forget set against the wrong labels the base was trained on; best is the value of"
        " retraining. FA is against the right labels, which forgetting brings back",
        optional=True,
    ),
    Column("ta", "TA", "accuracy on the test set"),
    Column(
        "gus",
        "GUS",
        "Gaussian unlearning score (arXiv 2406.17216): how far the loss falls towards the noise that a"
        " forgotten sample was trained with, mean of −⟨g, ξ⟩/(ε‖g‖) at the clean image. 0: the noise is not"
        " remembered, as in retraining; the base has its full memory. A negative value is a mark too",
        optional=True,
    ),
    Column("ef", "E_F", "error on the test samples of the forgotten classes; 1 is best", optional=True),
    Column("ar", "A_R", "accuracy on the test samples of the other classes", optional=True),
    Column(
        "ret_dev",
        "RetDev",
        "|RA/RA_R − 1| + |FA/FA_R − 1| + |TA/TA_R − 1| against the plainly trained retrain R of the seed; 0"
        " is best. Where FA_R is 0, as when a class was forgotten, |FA| stands for its term",
    ),
    Column(
        "ret_dev_own",
        "RetDev, own",
        "the same against a retrain trained as the method's base was, e.g. with mnemonic codes",
        optional=True,
    ),
    Column(
        "indisc",
        "Indisc",
        "1 − |2·accuracy − 1| of a loss threshold that tells forget set from test set (from the test samples"
        " of the same kind, where whole classes or subclasses were forgotten); 1 is best",
    ),
    Column(
        "rte",
        "RTE",
        "seconds of retraining / seconds of the method, same seed; pre-paid seconds not counted",
        decimals=2,
    ),
    Column("wall_s", "Seconds", "training or unlearning alone, mean over seeds", "bare", 2),
    Column(
        "prepaid_s",
        "Pre-paid seconds",
        "paid before the deletion request: training of the base, where the method needs another training",
        "bare",
        2,
        optional=True,
    ),
    Column(
        "auc_forgotten_vs_retrained",
        "AUC forgotten/retrained",
        "U-LiRA AUC, forgotten samples against the same samples in retrained models, trained as the method's"
        " bases were; 0.5 is no leakage",
        "range",
    ),
    Column(
        "tpr_forgotten_vs_retrained_at_1pct",
        "TPR at 1 % FPR",
        "largest true-positive rate of that attack at FPR ≤ 1 %; n/a where the scores cannot resolve it",
        "range",
    ),
    Column(
        "auc_forgotten_vs_never",
        "AUC forgotten/never",
        "forgotten samples against samples the same method's models never saw",
        "range",
    ),
    Column(
        "leakage_left",
        "λ",
        "share of the base's memory that is left: (AUC − ½)/(AUC of its base − ½), forgotten against never,"
        " paired; n/a where the base's AUC is within three standard errors of ½",
        "range",
        2,
        optional=True,
    ),
    Column(
        "retained_delta",
        "ΔAUC retained",
        "by how much retained samples are more exposed than in the base, AUC against never-seen ones, paired",
        "range",
        optional=True,
    ),
    Column(
        "exposed_confirmed",
        "Exposed",
        "samples found exposed on half of the pairs (false discoveries ≤ 5 %) and again on the other half;"
        " left out or n/a where there are too few pairs to single one out",
        "plain",
        optional=True,
    ),
    Column(
        "streisand",
        "Streisand",
        "share of forgotten scores below the 1 % quantile of retraining, sample by sample; 0.01 is right",
        "bare",
        optional=True,
    ),
    Column(
        "auc_fingerprint",
        "AUC fingerprint",
        "never-seen samples under the method against retrained models: what the method leaves on any sample",
        "range",
    ),
)
