"""Known defects of public ports, kept as mutants: a known answer that ours gives tells each of them apart."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import ulira
from attacks.metrics import auc
from methods.base import accumulate_gradient, smallest

# ---- SalUN: gradients that are never cleared weigh the t-th of n batches n − t + 1 fold --------------------


def batches() -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(12, 20, generator=rng), torch.randint(0, 3, (12,), generator=rng)
    return [(images[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]


def never_cleared(model: nn.Module, loss: nn.Module) -> list[Tensor]:
    """The mutant: after each batch the gradients so far are added, and left where they are."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for images, labels in batches():
        loss(model(images), labels).backward()
        for part, p in zip(total, model.parameters(), strict=True):
            part += p.grad
    return total


def test_each_forget_batch_weighs_once_in_the_saliency() -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(20, 3), nn.CrossEntropyLoss(reduction="sum")
    each = [torch.autograd.grad(loss(model(x), y), tuple(model.parameters())) for x, y in batches()]
    right = [sum(g) for g in zip(*each, strict=True)]
    accumulate_gradient(model, batches(), lambda x, y: cross_entropy(model(x), y, reduction="sum"))
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mutant = never_cleared(model, loss)
    weighted = [3 * a + 2 * b + c for a, b, c in zip(*each, strict=True)]
    for got, expected in (*zip(ours, right, strict=True), *zip(mutant, weighted, strict=True)):
        torch.testing.assert_close(got, expected)
    masks = [smallest(torch.cat([g.flatten() for g in grads]), 0.5) for grads in (ours, mutant)]
    assert (masks[0] != masks[1]).sum() >= 4, "other weights would be called salient"


# ---- U-LiRA: fitting what is scored, and fitting 0/1 correctness -------------------------------------------


def with_itself(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mutant: one Gaussian per world and sample, fitted on all pairs, the scored one included."""
    fits = [(world.mean(axis=0), world.std(axis=0, ddof=1)) for world in (positive, negative)]
    return tuple(  # type: ignore[return-value]
        norm.logpdf(world, *fits[0]) - norm.logpdf(world, *fits[1]) for world in (positive, negative)
    )


def test_a_score_is_never_judged_by_a_fit_that_holds_it() -> None:
    """In a null world 8 pairs that judge themselves find an AUC above .6; left out they find ½."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(2, 8, 4000))
    high, low = with_itself(positive, negative)
    assert auc(high.ravel(), low.ravel()) > 0.6
    ours = ulira.compare(positive, negative, replicates=10)
    assert abs(ours.auc - 0.5) < 0.01, "five standard errors of 32,000 scores that share fits"


def test_correctness_is_no_substitute_for_the_margin() -> None:
    """Where models are nearly always right, 0/1 has no variance for most samples, and so no power: the models
    that φ tells apart at AUC .7 are alike.
    """
    rng = np.random.default_rng(1)
    hard = rng.normal(4, 1, 3000)
    positive, negative = rng.normal(size=(2, 16, 3000)) + hard
    positive = positive + 1
    margin = ulira.compare(positive, negative, replicates=10)
    right = [(world > 0).astype(np.float64) for world in (positive, negative)]
    correctness = ulira.compare(*right, replicates=10)
    assert margin.auc > 0.7 and margin.collapsed == 0
    assert correctness.auc < 0.55 and correctness.collapsed > 0.9 * 3000
