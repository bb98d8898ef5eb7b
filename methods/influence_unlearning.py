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
G, of a ResNet 45 GB, is never made.
Longer than 80 lines: v, GGᵀ, Gv and Gᵀw each have their way to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Data, Method, accumulate_gradient, hp, require_finite, steady
from methods.sample_gradients import SampleGradients

BATCH = 64  # samples of a forward pass, without effect on the result


@dataclass(frozen=True)
class InfluenceUnlearning(Method):
    """One step along the influence of the forget set, scaled by α."""

    name = "influence_unlearning"
    label = "IU"
    paper = "arXiv:2304.04934"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "1 + min(1, samples / retain_size)", "forget": "1", "copies": "2"}

    alpha: float = hp(0.2, 1e-2, 1e1, log=True)
    damping: float = hp(0.01, 1e-4, 1.0, log=True)
    samples: int = hp(1000, 100, 2000)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        steady(model)
        vector = direction(model, data)
        require_finite([vector], "the gradient")
        images, labels = next(iter(data.retain(self.samples)))
        rows = SampleGradients(model)
        square, along = rows.gram(images, labels, named(model, vector))
        combine = partial(rows.combine, images, labels)
        step = solve(square, along, lambda w: flat(combine(w).values()), vector, self.damping)
        require_finite([step], "the step")
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), named(model, step).values(), strict=True):
                parameter.add_(self.alpha * part)
        return model.train()


def direction(model: nn.Module, data: Data) -> Tensor:
    """v."""
    (kept, n_kept), (gone, n_gone) = total(model, data.retain(BATCH)), total(model, data.forget(BATCH))
    return n_gone / (n_gone + n_kept) * (gone / n_gone - kept / n_kept)


def total(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, int]:
    """The summed gradient of the cross-entropy of all samples, as a vector, and their number."""
    count = 0

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        nonlocal count
        count += len(labels)
        return cross_entropy(model(images), labels, reduction="sum")

    model.zero_grad(set_to_none=True)
    accumulate_gradient(model, batches, loss)
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()), count


def solve(
    square: Tensor, along: Tensor, combine: Callable[[Tensor], Tensor], vector: Tensor, damping: float
) -> Tensor:
    """(λI + GᵀG/N)⁻¹ v. square, along: GGᵀ and Gv. combine: w ↦ Gᵀw."""
    # Eigenvalues of GGᵀ differ by many orders of magnitude, for which float32 is too coarse.
    damped = square.double() + len(square) * damping * torch.eye(len(square)).to(square.device)
    weights = torch.linalg.solve(damped, along.double()).to(vector.dtype)
    return (vector - combine(weights)) / damping


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def named(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The parts of a vector by the name and in the shape of the parameters."""
    parameters = dict(model.named_parameters())
    parts = vector.split([parameter.numel() for parameter in parameters.values()])
    return {
        name: part.view(parameter.shape)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }
