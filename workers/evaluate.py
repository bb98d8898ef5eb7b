"""One pass over the pool and the test set: φ and correctness of every sample, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from methods.base import Diverged
from workers.data import DeviceDataset
from workers.designs import FORGET, RETAIN, VAL

BATCH = 2048


View = tuple[bool, int, int]  # mirrored, pixels down, pixels to the right


@dataclass(frozen=True)
class Scores:
    """φ float32 (n,) and correctness bool (n,) of every sample, the pool first; views: φ in further ones."""

    phi: np.ndarray
    correct: np.ndarray
    views: tuple[np.ndarray, ...] = ()


def views_of(flip: bool, strong: bool = False) -> list[View]:
    """The views a sample is scored in, the same for every model: the image as it is; mirrored too, where
    training mirrors (`flip`); strong: each of these also moved by one pixel in the eight directions.
    """
    moves = [(0, 0)]
    if strong:
        moves += [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
    return [(mirror, *move) for move in moves for mirror in ((False, True) if flip else (False,))]


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


def evaluate(model: nn.Module, dataset: DeviceDataset, strong: bool = False) -> Scores:
    """Scores of all samples in eval mode, float32, not augmented, in the views of `views_of`; Diverged when
    some φ is not finite.
    """
    model.eval()
    views = views_of(dataset.flip, strong)
    found: list[list[Tensor]] = [[] for _ in views]
    correct = []
    with torch.inference_mode():
        for start in range(0, len(dataset), BATCH):
            images = dataset.images[start : start + BATCH]
            labels = dataset.labels[start : start + BATCH]
            for view, phi in zip(views, found, strict=True):
                logits = model(dataset.normalised(seen(images, view)))
                phi.append(logit_margin(logits, labels))
                if len(phi) > len(correct):
                    correct.append(logits.argmax(1) == labels)
    first, *others = (torch.cat(phi).cpu().numpy() for phi in found)
    broken = sum(int(np.count_nonzero(~np.isfinite(phi))) for phi in (first, *others))
    if broken:
        raise Diverged(f"φ of {broken} of {len(views) * len(first)} scores is not finite")
    return Scores(first, torch.cat(correct).cpu().numpy(), tuple(others))


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
