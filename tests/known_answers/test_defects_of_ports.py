"""Known defects of public ports of methods, kept as mutants: a known answer that ours gives tells them apart.

Those of attacks are in test_attack_mutants*.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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
