"""IU: influence unlearning, with the inverse of WoodFisher.

Koh and Liang 2017, arXiv 1703.04730; Izzo et al. 2021, arXiv 2002.10077; Singh and Alistarh 2020, WoodFisher,
arXiv 2004.14340; put together by Jia et al. 2023, arXiv 2304.04934. One Newton step towards the optimum
without the forget set, from the influence of its samples on the weights:

    θ ← θ₀ + α F⁻¹ v,   v = n_F/(n_F + n_R) (mean_{D_F} ∇ℓ − mean_{D_R} ∇ℓ),   F = λI + 1/N Σ_{n ≤ N} g_n g_nᵀ

with g_n = ∇ℓ(x_n, y_n) of N random retained samples. WoodFisher's recursion, with A_0 = I/λ,

    A_n = A_{n−1} − (A_{n−1} g_n)(A_{n−1} g_n)ᵀ / (N + g_nᵀ A_{n−1} g_n),   A_N = F⁻¹,

is evaluated in closed form (Woodbury), G the matrix of the g_n in rows: F⁻¹v = (v − Gᵀ(NλI + GGᵀ)⁻¹Gv)/λ.

Deviation: the reference (arXiv 2410.01276) stands A_{n−1} g_n for by a multiple of g_1, hides N = 1000 and
λ = 1 in code, searches epochs and a batch size that do nothing, and loses parameters without a gradient; here
their step is zero. Damping is Koh and Liang's. Batches are augmented as in training.
Longer than 80 lines: GGᵀ is made of blocks, since G of a ResNet has 45 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from methods.base import (
    Batch,
    Data,
    Method,
    accumulate_gradient,
    gradients,
    hp,
    require_finite,
    samples_at_once,
    steady,
)

BATCH = 64  # samples of a forward pass, without effect on the result


@dataclass(frozen=True)
class InfluenceUnlearning(Method):
    """One step along the influence of the forget set, scaled by α."""

    name = "influence_unlearning"
    label = "IU"
    paper = "arXiv:2304.04934"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "1 + min(1, samples / retain_size)", "forget": "1", "copies": "3"}

    alpha: float = hp(0.2, 1e-2, 1e1, log=True)
    damping: float = hp(0.01, 1e-4, 1.0, log=True)
    samples: int = hp(1000, 100, 2000)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        steady(model)
        (kept, n_kept), (gone, n_gone) = total(model, data.retain(BATCH)), total(model, data.forget(BATCH))
        vector = n_gone / (n_gone + n_kept) * (gone / n_gone - kept / n_kept)
        require_finite([vector], "the gradient")
        images, labels = next(iter(data.retain(self.samples)))
        at_once = samples_at_once(model)
        parts = list(zip(images.split(at_once), labels.split(at_once), strict=True))
        step = solve(parts, lambda part: rows(model, *part), vector, self.damping)
        require_finite([step], "the step")
        add(model, self.alpha * step)
        return model.train()


def total(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, int]:
    """The summed gradient of the cross-entropy of all samples, as a vector, and their number."""
    count = 0

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        nonlocal count
        count += len(labels)
        return cross_entropy(model(images), labels, reduction="sum")

    model.zero_grad(set_to_none=True)
    accumulate_gradient(model, batches, loss)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in found]), count


def rows(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each sample as a row (b, parameters)."""
    return torch.cat([g.flatten(1) for g in gradients(model, images, labels).values()], 1)


def solve(parts: Sequence[Any], rows: Callable[[Any], Tensor], vector: Tensor, damping: float) -> Tensor:
    """(λI + GᵀG/N)⁻¹ v. `rows(part)` gives the rows of G of a part; those of two are held at once."""
    products, blocks = [], []
    for i, part in enumerate(parts):
        left = rows(part)
        products.append(left @ vector)
        blocks.append(torch.cat([*(left @ rows(other).T for other in parts[:i]), left @ left.T], 1))
    count = blocks[-1].shape[1]
    # Eigenvalues of GGᵀ differ by many orders of magnitude, for which float32 is too coarse.
    lower = torch.cat([pad(block, (0, count - block.shape[1])) for block in blocks]).double()
    square = lower.tril() + lower.tril(-1).T + count * damping * torch.eye(count).to(lower)
    weights = torch.linalg.solve(square, torch.cat(products).double()).to(vector.dtype)
    split = weights.split([len(product) for product in products])
    return (vector - sum(w @ rows(part) for part, w in zip(parts, split, strict=True))) / damping


@torch.no_grad()
def add(model: nn.Module, step: Tensor) -> None:
    """Add a vector to the parameters, in place."""
    parameters = list(model.parameters())
    for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        parameter.add_(part.view_as(parameter))
