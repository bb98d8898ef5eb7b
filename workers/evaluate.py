"""One pass over the pool and the test set: φ and correctness of every sample, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from methods.base import Diverged
from workers.data import DeviceDataset
from workers.designs import FORGET, RETAIN, VAL

BATCH = 2048


@dataclass(frozen=True)
class Scores:
    """φ float32 (n,) and correctness bool (n,) of every sample, the pool first."""

    phi: np.ndarray
    correct: np.ndarray


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = z_y − logsumexp over the other classes, float32 (b,): the true class's log-odds (LiRA)."""
    logits = logits.float()
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return own[:, 0] - torch.logsumexp(others, dim=1)


def evaluate(model: nn.Module, dataset: DeviceDataset) -> Scores:
    """Scores of all samples in eval mode, float32, not augmented; Diverged when some φ is not finite."""
    model.eval()
    phi, correct = [], []
    with torch.inference_mode():
        for start in range(0, len(dataset), BATCH):
            images = dataset.normalised(dataset.images[start : start + BATCH])
            labels = dataset.labels[start : start + BATCH]
            logits = model(images)
            phi.append(logit_margin(logits, labels))
            correct.append(logits.argmax(1) == labels)
    scores = Scores(torch.cat(phi).cpu().numpy(), torch.cat(correct).cpu().numpy())
    broken = int(np.count_nonzero(~np.isfinite(scores.phi)))
    if broken:
        raise Diverged(f"φ of {broken} of {len(scores.phi)} samples is not finite")
    return scores


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


def class_summary(scores: Scores, test_labels: np.ndarray, classes: tuple[int, ...]) -> dict[str, float]:
    """E_F and A_R (arXiv 2306.05670) as columns of `runs`: error on the test samples of the forgotten classes
    and accuracy on those of the others; empty where no whole class was forgotten.
    """
    correct = scores.correct[len(scores.correct) - len(test_labels) :]
    gone = np.isin(test_labels, classes)
    if not gone.any() or gone.all():
        return {}
    return {"ef": 1 - float(correct[gone].mean()), "ar": float(correct[~gone].mean())}
