"""The Parquet tables: every column with its type, unit and meaning. `lethe list columns` prints this file.

Schema version 1. Fractions lie in 0–1, times are seconds (`_s`), memory is MiB (`_mib`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1
CHUNK = 4096  # φ values in one row of `scores`
PHI = "phi = z_y - logsumexp of the logits of the other classes, eval mode, computed in float32"

# Every way a task can end. All but 'done' are failures, each with a reason and, where something ran, a log.
STATUSES = ("done", "oom", "diverged", "timeout", "bug", "lost_worker", "skipped")


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, its unit ('' if it has none) and what it means."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str


_text, _f16, _f32, _f64 = pa.string(), pa.float16(), pa.float32(), pa.float64()
_i8, _i16, _i32, _i64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()

RUNS = (
    Column("task_id", _text, "", "hash of everything that decides the result; the key of the table"),
    Column("kind", _text, "", "base, retrain or unlearn"),
    Column(
        "track", _text, "", "main (fixed split, n seeds), audit (balanced pairs of bases) or tune (trials)"
    ),
    Column("dataset", _text, "", "name of the dataset"),
    Column("architecture", _text, "", "name of the architecture"),
    Column(
        "forget",
        _text,
        "",
        "forget recipe with its parameters; empty for a base, which no forget set made, unless that poisons",
    ),
    Column("method", _text, "", "name of the method; empty for base and retrain"),
    Column(
        "training", _text, "", "training recipe of the model or of the base it was made of: plain or mnemonic"
    ),
    Column("seed", _i32, "", "main track: the seed of the grid; audit track: the number of the base"),
    Column("design", _text, "", "key into the table designs"),
    Column("forget_index", _i16, "", "audit track: which forget set of its base; -1 elsewhere"),
    Column("parents", pa.list_(_text), "", "ids of the tasks whose models this one starts from"),
    Column("spec", _text, "", "canonical JSON of all parameters; its hash is task_id"),
    Column("status", _text, "", "how the task ended: " + ", ".join(STATUSES)),
    Column("reason", _text, "", "why a task that is not done ended so"),
    Column("warnings", _text, "", "what the method warned of, one line each"),
    Column("log", _text, "", "details of a failure, its own or its parent's: a file in the results folder"),
    Column("attempt", _i32, "", "1 for the first row of a task; the highest attempt counts"),
    Column(
        "retries",
        _i32,
        "",
        "how often the task was started again because its worker was lost or out of memory",
    ),
    Column("ra", _f64, "fraction", "accuracy on the retain set"),
    Column("fa", _f64, "fraction", "accuracy on the forget set"),
    Column("fa_new", _f64, "fraction", "of requests in turn: accuracy on what the newest one deletes"),
    Column("va", _f64, "fraction", "accuracy on the validation set"),
    Column("ta", _f64, "fraction", "accuracy on the test set"),
    Column(
        "ef", _f64, "fraction", "E_F: error on the test samples of classes that were forgotten as a whole"
    ),
    Column("ar", _f64, "fraction", "A_R: accuracy on the test samples of the other classes"),
    Column(
        "fa_flipped",
        _f64,
        "fraction",
        "accuracy on the forget set (a base: on all poisoned samples) against the wrong labels trained on",
    ),
    Column(
        "gus",
        _f64,
        "",
        "mean over these samples of −⟨g, noise⟩/(ε‖g‖), g the gradient of the loss at the clean input: positive"
        " if the noise is remembered, N(0, 1/gus_samples) if not",
    ),
    Column("gus_p", _f64, "fraction", "one-sided p-value of no memory of the noise"),
    Column("gus_tpr_at_1pct", _f64, "fraction", "share of single statistics above 2.326; 0.01 is no memory"),
    Column("gus_samples", _i32, "samples", "poisoned samples scored"),
    Column(
        "gus_without_gradient", _i32, "samples", "poisoned samples left out, the gradient being exactly 0"
    ),
    Column("retain_loss", _f64, "nats", "mean cross-entropy on the retain set"),
    Column("forget_loss", _f64, "nats", "mean cross-entropy on the forget set"),
    Column("val_loss", _f64, "nats", "mean cross-entropy on the validation set"),
    Column("test_loss", _f64, "nats", "mean cross-entropy on the test set"),
    Column(
        "val_auc",
        _f64,
        "fraction",
        "tuning: AUC of the losses of forget against validation samples, 0.5 if alike",
    ),
    Column(
        "val_mia", _f64, "fraction", "tuning: accuracy of the population attack, validation as non-members"
    ),
    Column("epoch_values", pa.list_(_f64), "fraction", "tuning: distance to the retrain after each epoch"),
    Column("wall_s", _f64, "s", "training or unlearning alone, device synchronised before and after"),
    Column(
        "prepaid_s",
        _f64,
        "s",
        "paid before the deletion request: training of the base, where a method changes training; else null",
    ),
    Column("evaluate_s", _f64, "s", "the evaluation pass"),
    Column(
        "peak_memory_mib",
        _f64,
        "MiB",
        "peak device memory of the task (CPU: peak resident memory of the process)",
    ),
    Column("device", _text, "", "device the task ran on"),
    Column("host", _text, "", "machine the task ran on"),
    Column("started_at", _f64, "s", "start, seconds since 1970-01-01 UTC"),
    Column("finished_at", _f64, "s", "end, seconds since 1970-01-01 UTC"),
    Column(
        "commit",
        _text,
        "",
        "commit of the code, '+' if the tree had changes; 'tree:' and a hash of the sources without git",
    ),
    Column("versions", _text, "", "JSON: versions of lethe, python, torch, numpy"),
    Column(
        "members_sha256",
        _text,
        "",
        "hash of the real indices the model was trained on before forgetting; less those of earlier requests",
    ),
    Column("dataset_sha256", _text, "", "hash of the dataset's images and labels"),
    Column(
        "weights_sha256", _text, "", "base: hash of its weights; unlearn: hash of the weights it started from"
    ),
    Column("left_sha256", _text, "", "unlearn, if another request follows: hash of the weights it left"),
    Column(
        "part",
        _text,
        "",
        "name of the write this row belongs to; its scores are in the file of the same name",
    ),
)

SCORES = (
    Column("task_id", _text, "", "the model"),
    Column("view", _i8, "", "0: the image as it is; further ones as workers/evaluate.py lists them"),
    Column("chunk", _i16, "", f"samples {CHUNK}·chunk … of the sample ids"),
    Column(
        "phi", pa.list_(_f32), "nats", "φ = z_y − logsumexp over the other classes, in order of sample_id"
    ),
    Column(
        "correct",
        pa.list_(pa.bool_()),
        "",
        "whether the largest logit is the true class, same order; view 0 only",
    ),
    Column(
        "entropy", pa.list_(_f16), "nats", "entropy of the prediction, same order; view 0 of grids that ask"
    ),
    Column("modified_entropy", pa.list_(_f16), "nats", "modified entropy (arXiv:2003.10595), as entropy"),
    Column(
        "part",
        _text,
        "",
        "name of the write the row came in, as in runs; null in the file of that name: no compaction yet",
    ),
)

SAMPLES = (
    Column("sample_id", _i32, "", "position of the sample: the pool first, then the test set"),
    Column("split", _text, "", "pool or test"),
    Column("label", _i16, "", "class"),
    Column("subclass", _i16, "", "part of the class; null where the dataset knows none"),
    Column("sha256", pa.binary(32), "", "hash of the raw pixels and the label"),
    Column(
        "dup_exact",
        _i32,
        "",
        "cluster of samples with equal pixels: its smallest sample id; -1: no other one; null in older results",
    ),
    Column(
        "dup_near",
        _i32,
        "",
        "cluster of near-duplicates, equal ones among them (docs/duplicates.md), likewise",
    ),
)

DESIGNS = (
    Column("design", _text, "", "hash of dataset, membership recipe and forget recipe"),
    Column("dataset", _text, "", "name of the dataset"),
    Column("members", _text, "", "JSON of the recipe that says who is trained on"),
    Column("forget", _text, "", "JSON of the recipe that says who is forgotten; empty for none"),
    Column("forget_classes", pa.list_(_i16), "", "classes of which all members are forgotten"),
    Column("n_pool", _i32, "samples", "size of the pool"),
    Column("n_retain", _i32, "samples", "samples in state retain"),
    Column("n_forget", _i32, "samples", "samples in state forget"),
    Column("n_val", _i32, "samples", "samples in state val"),
    Column(
        "states",
        pa.binary(),
        "",
        "two bits a pool sample, first sample lowest: 0 out, 1 retain, 2 forget, 3 val",
    ),
    Column("sha256", _text, "", "hash of the states"),
)

AUDITS = (
    Column("cell", _text, "", "hash of dataset, architecture, training recipes and forget recipe"),
    Column("dataset", _text, "", "name of the dataset"),
    Column("architecture", _text, "", "name of the architecture"),
    Column("forget", _text, "", "forget recipe with its parameters"),
    Column("kind", _text, "", "base, retrain or unlearn"),
    Column("method", _text, "", "name of the method; empty for base and retrain"),
    Column("training", _text, "", "training recipe of the models: plain, or mnemonic(t_mix=…)"),
    Column("hyperparameters", _text, "", "JSON of the method's hyper-parameters; empty for base and retrain"),
    Column("attack", _text, "", "name of the attack"),
    Column("variant", _text, "", "which form of the attack, e.g. offline_2s of lira; empty for the only one"),
    Column("attack_version", _i16, "", "version of the attack's code"),
    Column(
        "comparison",
        _text,
        "",
        "between worlds: forgotten_vs_retrained, forgotten_vs_never, fingerprint, retained_vs_never; on one"
        " model: forget_vs_test; klom and neurips_score: forget, retain or val, unlearned vs retrained",
    ),
    Column(
        "seed", _i32, "", "seed of the grid for attacks on one model; null for attacks on the audit track"
    ),
    Column("inputs", _text, "", "hash of the ids and parts of all runs this row was computed from"),
    Column("pairs", _i32, "", "k: complementary pairs of bases behind the row"),
    Column("samples", _i32, "", "pool samples scored"),
    Column("n_positive", _i64, "", "scores of the first world of the comparison"),
    Column("n_negative", _i64, "", "scores of the second world"),
    Column("auc", _f64, "fraction", "area under the ROC curve, ties counted half; 0.5 is no leakage"),
    Column("auc_low", _f64, "fraction", "lower end of the 95 % cluster-bootstrap interval"),
    Column("auc_high", _f64, "fraction", "upper end"),
    Column("auc_by_pair", _f64, "fraction", "mean over pairs of the AUC within each: no threshold is shared"),
    Column("auc_by_pair_low", _f64, "fraction", "lower end of its 95 % t-interval over pairs"),
    Column("auc_by_pair_high", _f64, "fraction", "upper end"),
    Column("auc_replicates", pa.list_(_f32), "fraction", "AUC under resampled pairs, paired between rows"),
    Column("loss_auc", _f64, "fraction", "AUC of one threshold on φ, the same for all samples"),
    Column("loss_auc_low", _f64, "fraction", "lower end of its interval"),
    Column("loss_auc_high", _f64, "fraction", "upper end"),
    Column(
        "tpr_at_1pct",
        _f64,
        "fraction",
        "largest TPR with FPR ≤ 1 %; null where fewer than 10 false positives are allowed or no threshold reaches it",
    ),
    Column("tpr_at_1pct_low", _f64, "fraction", "lower end of its interval"),
    Column("tpr_at_1pct_high", _f64, "fraction", "upper end"),
    Column("fpr_at_1pct", _f64, "fraction", "the FPR really reached"),
    Column("false_positives_at_1pct", _i64, "", "negatives behind it"),
    Column("tpr_at_01pct", _f64, "fraction", "largest TPR with FPR ≤ 0.1 %; null as above"),
    Column("tpr_at_01pct_low", _f64, "fraction", "lower end of its interval"),
    Column("tpr_at_01pct_high", _f64, "fraction", "upper end"),
    Column("fpr_at_01pct", _f64, "fraction", "the FPR really reached"),
    Column("false_positives_at_01pct", _i64, "", "negatives behind it"),
    Column("balanced_accuracy", _f64, "fraction", "at log-likelihood ratio 0"),
    Column("balanced_accuracy_low", _f64, "fraction", "lower end of its interval"),
    Column("balanced_accuracy_high", _f64, "fraction", "upper end"),
    Column("accuracy", _f64, "fraction", "accuracy of a population attack; 0.5 is no leakage"),
    Column("nonmember_share", _f64, "fraction", "population_svm: forgotten samples called non-member"),
    Column("indisc", _f64, "fraction", "indiscernibility 1 − |2·accuracy − 1|; 1 is no leakage"),
    Column("held_out_tpr", _f64, "fraction", "TPR at the threshold other pairs chose for FPR ≤ 1 %"),
    Column(
        "held_out_fpr", _f64, "fraction", "the FPR reached there; above 1 % if thresholds do not carry over"
    ),
    Column("held_out_balanced_accuracy", _f64, "fraction", "at the threshold that other pairs chose for it"),
    Column(
        "best_balanced_accuracy", _f64, "fraction", "largest over thresholds of the same scores: optimistic"
    ),
    Column(
        "epsilon_split",
        _f64,
        "nats",
        "lower bound on ε, 95 %, threshold chosen on one half of the pairs and judged on the other; scores are"
        " taken as independent",
    ),
    Column("mu_split", _f64, "", "lower bound on μ of Gaussian privacy, likewise"),
    Column(
        "epsilon_one_run",
        _f64,
        "nats",
        "lower bound on ε, 95 %, from one model of each pair and guesses fixed in number (arXiv:2305.08846)",
    ),
    Column("one_run_correct", _i64, "", "right guesses behind epsilon_one_run"),
    Column("one_run_guesses", _i64, "", "guesses behind epsilon_one_run"),
    Column(
        "models", _i32, "", "unlearned (or retrained) models of one forget set behind klom, neurips_score"
    ),
    *(
        Column(f"klom{of}{direction}{end}", _f64, "nats", f"KLoM {what}, {which}, {how} over samples")
        for of, which in (
            ("", "all models"),
            ("_halved", "against halves of the retrained models"),
            ("_null", "half of the retrained models against the other half"),
        )
        for direction, what in (
            ("_forward", "KL(unlearned ‖ retrained), 20 bins"),
            ("_backward", "KL(retrained ‖ unlearned), 20 bins"),
            ("_gaussian_forward", "KL(unlearned ‖ retrained) of fitted Gaussians"),
            ("_gaussian_backward", "KL(retrained ‖ unlearned) of fitted Gaussians"),
        )
        for end, how in (("", "mean"), ("_p95", "95 % quantile"))
    ),
    Column("neurips_f", _f64, "fraction", "forgetting quality F of the NeurIPS 2023 challenge, all models"),
    Column("neurips_f_halved", _f64, "fraction", "F against halves of the retrained models"),
    Column("neurips_f_null", _f64, "fraction", "F of one half of the retrained models against the other"),
    Column("neurips_final", _f64, "fraction", "F times RA/RA_R times TA/TA_R"),
    Column(
        "nu0_positive", _f64, "", "prior degrees of freedom of the variances, first world (inf: all equal)"
    ),
    Column("nu0_negative", _f64, "", "the same, second world"),
    Column("collapsed", _i64, "", "samples whose variance was at the floor"),
    *(
        Column(f"sample_auc{name}_p{p}", _f64, "fraction", f"{p} % quantile of the per-sample AUC {meaning}")
        for p in (50, 90, 95, 99)
        for name, meaning in (
            ("", "over pairs, forgotten against retrained"),
            ("_null", "if nothing leaked, by noise alone"),
        )
    ),
    Column(
        "sample_auc_quantiles",
        pa.list_(_f32),
        "fraction",
        "0 %, 1 %, … 100 % quantiles of the per-sample AUC over samples; null in rows of older audits",
    ),
    Column(
        "sample_auc_null_quantiles", pa.list_(_f32), "fraction", "the same if nothing leaked, by noise alone"
    ),
    Column(
        "exposed_found",
        _i64,
        "",
        "samples exposed on half of the pairs (Benjamini–Hochberg, 5 %); null if too few pairs to find one",
    ),
    Column("exposed_confirmed", _i64, "", "of these, exposed on the other half too"),
    Column("exposed_auc", _f64, "fraction", "mean AUC, on the other half, of those found; null if none is"),
    Column("exposed_ids", pa.list_(_i32), "", "sample ids of the confirmed"),
    Column(
        "streisand", _f64, "fraction", "forgotten φ below the 1 % quantile of retraining, sample by sample"
    ),
    Column("streisand_retrained", _f64, "fraction", "retrained φ below it, by the same rule"),
    Column("missing", _i64, "", "runs of this row's audit without scores: not done, or lost"),
    Column("roc_fpr", pa.list_(_f64), "fraction", "false-positive rates of the curve, dense at both ends"),
    Column("roc_tpr", pa.list_(_f64), "fraction", "true-positive rates"),
    Column("roc_low", pa.list_(_f64), "fraction", "lower end of the pointwise band"),
    Column("roc_high", pa.list_(_f64), "fraction", "upper end"),
)

SUFFSTATS = (
    Column("cell", _text, "", "as in audits"),
    Column("dataset", _text, "", "name of the dataset"),
    Column("architecture", _text, "", "name of the architecture"),
    Column("forget", _text, "", "forget recipe with its parameters"),
    Column("kind", _text, "", "base, retrain or unlearn"),
    Column("method", _text, "", "name of the method; empty for base and retrain"),
    Column("training", _text, "", "training recipe of the models, as in audits"),
    Column("hyperparameters", _text, "", "JSON of the method's hyper-parameters; empty for base and retrain"),
    Column("world", _text, "", "forgotten, never, retrained or retained: orchestrator/audit.py says which"),
    Column("view", _i8, "", "as in scores"),
    Column("sample_id", _i32, "", "the sample"),
    Column("n", _i32, "", "scores φ of the sample in this world, one a pair of bases at most"),
    Column("mean", _f64, "nats", "their mean; 0 if there are none"),
    Column("m2", _f64, "nats²", "Σ(φ − mean)²; the variance is m2/(n − 1)"),
    Column("m3", _f64, "nats³", "Σ(φ − mean)³"),
    Column("m4", _f64, "nats⁴", "Σ(φ − mean)⁴"),
)

TABLES = {
    "runs": RUNS,
    "scores": SCORES,
    "samples": SAMPLES,
    "designs": DESIGNS,
    "audits": AUDITS,
    "suffstats": SUFFSTATS,
}


def arrow(table: str) -> pa.Schema:
    """The Arrow schema of a table, with unit and meaning of each column and the schema version as metadata."""
    fields = [
        pa.field(column.name, column.type, metadata={"unit": column.unit, "meaning": column.meaning})
        for column in TABLES[table]
    ]
    return pa.schema(fields, metadata={"lethe_table": table, "lethe_schema_version": str(SCHEMA_VERSION)})
