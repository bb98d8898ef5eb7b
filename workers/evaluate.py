"""One pass over the pool and the test set: φ and correctness of every sample, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, softplus

from methods.base import Diverged
from workers.data import DeviceDataset
from workers.designs import FORGET, RETAIN, VAL
from workers.outcome import Scores
from workers.views import View, views_of

BATCH = {"cpu": 256, "cuda": 2048}  # a CPU's caches hold what a net makes of some hundred images


def seen(images: Tensor, view: View) -> Tensor:
    """Images (b, c, h, w) in a view, zeros moving in."""
    mirror, down, right = view
    images = images.flip(-1) if mirror else images
    height, width = images.shape[-2:]
    padded = pad(images, (1, 1, 1, 1)) if down or right else images
    at = 1 if down or right else 0
    return padded[..., at - down : at - down + height, at - right : at - right + width]


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = z_y − logsumexp over the other classes, float32 (b,): the true class's log-odds (LiRA)."""
    logits = logits.float()
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own[:, 0] - torch.logsumexp(others, dim=1)


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """H = −Σ p_c log p_c in nats, float32 (b,), of logits (b, C); the labels (b,) do not matter."""
    log_p, _ = _log_probabilities(logits)
    return _weighted(log_p.exp(), log_p)


def modified_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """M = −(1 − p_y) log p_y − Σ_{c≠y} p_c log(1 − p_c) in nats, float32 (b,), of logits (b, C), labels (b,).

    Song and Mittal 2021, arXiv:2003.10595; attacks/entropy.py is the same in float64.
    """
    log_p, log_rest = _log_probabilities(logits)
    own = labels[:, None]
    weight = log_p.exp().scatter(1, own, log_rest.gather(1, own).exp())
    return _weighted(weight, log_rest.scatter(1, own, log_p.gather(1, own)))


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 − p), float32 (b, C), without cancellation.

    With g = logsumexp of the others − the largest logit: the largest class has log p = −softplus(g) and
    log(1 − p) = logsigmoid(g), both exact at p near 1; p ≤ 1/2 elsewhere, where log1p(−p) is exact.
    """
    z = logits.float()
    largest, top = z.max(dim=1, keepdim=True)
    g = torch.logsumexp(z.scatter(1, top, float("-inf")), dim=1, keepdim=True) - largest
    log_p = z - largest - softplus(g)
    log_rest = torch.log1p(-log_p.exp().scatter(1, top, 0.0)).scatter(1, top, logsigmoid(g))
    return log_p, log_rest


def _weighted(weight: Tensor, log: Tensor) -> Tensor:
    """−Σ_c weight · log, where a weight that underflowed to zero counts as zero."""
    return -torch.where(weight > 0, weight * log, 0.0).sum(dim=1)


COLUMNS = {"entropy": entropy, "modified_entropy": modified_entropy}


def evaluate(
    model: nn.Module,
    dataset: DeviceDataset,
    strong: bool = False,
    columns: Sequence[str] = (),
    flip: bool | None = None,
) -> Scores:
    """Scores of all samples in eval mode, float32, not augmented, in the views of `views_of`, and the named
    COLUMNS; Diverged when some φ is not finite. flip: whether training mirrored, None: as the dataset says.
    """
    model.eval()
    views = views_of(dataset.flip if flip is None else flip, strong)
    found: list[list[Tensor]] = [[] for _ in views]
    correct = []
    further: dict[str, list[Tensor]] = {name: [] for name in columns}
    with torch.inference_mode():
        size = BATCH[dataset.device.type]
        for images, labels in zip(dataset.images.split(size), dataset.labels.split(size), strict=True):
            for view, phi in zip(views, found, strict=True):
                logits = model(dataset.normalised(seen(images, view)))
                phi.append(logit_margin(logits, labels))
                if len(phi) > len(correct):
                    correct.append(logits.argmax(1) == labels)
                    for name, batches in further.items():
                        batches.append(COLUMNS[name](logits, labels))
    first, *others = (torch.cat(phi).cpu().numpy() for phi in found)
    broken = sum(int(np.count_nonzero(~np.isfinite(phi))) for phi in (first, *others))
    if broken:
        raise Diverged(f"φ of {broken} of {len(views) * len(first)} scores is not finite")
    stored = {name: _half(torch.cat(batches)) for name, batches in further.items()}
    return Scores(first, torch.cat(correct).cpu().numpy(), tuple(others), stored)


def _half(values: Tensor) -> np.ndarray:
    """Values as float16; beyond its range the largest float16 instead of infinity."""
    return values.clamp(max=torch.finfo(torch.float16).max).half().cpu().numpy()


def summary(scores: Scores, states: np.ndarray) -> dict[str, float | None]:
    """Accuracies and mean losses per index set, as columns of `runs`; None for an empty set.

    Cross-entropy is softplus(−φ).
    """
    loss = np.logaddexp(0.0, -scores.phi.astype(np.float64))
    pool = np.arange(len(scores.phi)) < len(states)
    of = np.full(len(scores.phi), -1)
    of[pool] = states
    row: dict[str, float | None] = {}
    sets = (
        ("retain", "ra", of == RETAIN),
        ("forget", "fa", of == FORGET),
        ("val", "va", of == VAL),
        ("test", "ta", ~pool),
    )
    for name, accuracy, mask in sets:
        row[accuracy] = float(scores.correct[mask].mean()) if mask.any() else None
        row[f"{name}_loss"] = float(loss[mask].mean()) if mask.any() else None
    return row


def population(scores: Scores, states: np.ndarray) -> dict[str, float]:
    """What tuning knows of membership, of forgotten against validation samples: val_auc, the AUC of −loss;
    val_mia, the accuracy of the population attack of arXiv 2410.01276 (attacks/population_loss.py). A set
    with fewer than ten samples, or none, leaves them out.
    """
    from attacks.metrics import auc
    from attacks.population_loss import MIN_SAMPLES, population_loss

    pool = scores.phi[: len(states)].astype(np.float64)
    forgotten, unseen = pool[states == FORGET], pool[states == VAL]
    if min(len(forgotten), len(unseen)) < MIN_SAMPLES:
        return {}
    losses = [np.logaddexp(0.0, -phi) for phi in (forgotten, unseen)]
    return {"val_auc": float(auc(forgotten, unseen)), "val_mia": population_loss(*losses)}


def class_summary(scores: Scores, test_labels: np.ndarray, classes: tuple[int, ...]) -> dict[str, float]:
    """E_F and A_R (arXiv 2306.05670) as columns of `runs`: error on the test samples of the forgotten classes
    and accuracy on those of the others; empty where no whole class was forgotten.
    """
    correct = scores.correct[len(scores.correct) - len(test_labels) :]
    gone = np.isin(test_labels, classes)
    if not gone.any() or gone.all():
        return {}
    return {"ef": 1 - float(correct[gone].mean()), "ar": float(correct[~gone].mean())}
