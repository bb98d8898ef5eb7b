"""FF: Fisher forgetting.

Golatkar, Achille, Soatto 2020, Eternal Sunshine of the Spotless Net, arXiv 1911.04933. Noise hides what is
left of the forget set in weights to which the outputs on the retain set are indifferent; no training:

    θ ← θ₀ + α F^(−1/4) ⊙ ε,   ε ~ N(0, I),   F = diag E_{x ∈ D_R} E_{y ~ p_θ(·|x)} (∇ log p_θ(y|x))²

α is (λ σ_h²)^(1/4) of the paper. F is the model's Fisher information, not the empirical one: exact over all
classes y, hence no labels, and of the gradient of each sample by itself, in eval mode.

Deviation: F gets a floor of 1e-8, where the paper's would be infinite. The reference (arXiv 2410.01276) takes
√(α/F) with squares of batch-mean gradients and mean probabilities, and clamps, averages and scales it by the
shape of the tensor; its α in [0, 1] ruins every model. Here α is searched on a log scale, from what hardly
acts to what destroys. Batches are augmented as in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.base import Data, Method, hp, require_finite, steady
from methods.sample_gradients import SampleGradients

FLOOR = 1e-8
BATCH = 64  # samples gathered at once, without effect on the result


@dataclass(frozen=True)
class FisherForgetting(Method):
    """Gaussian noise on all weights, the less Fisher information the more."""

    name = "fisher_forgetting"
    label = "FF"
    paper = "arXiv:1911.04933"
    version = 1
    needs = ("retain",)
    cost = {"retain": "1", "copies": "1"}

    alpha: float = hp(0.003, 1e-4, 1e-1, log=True)

    @torch.no_grad()
    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        fisher = fisher_diagonal(steady(model), data)
        require_finite(fisher.values(), "the Fisher information")
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=data.rng, device=data.device)
            weight.add_(self.alpha * (fisher[name] + FLOOR) ** -0.25 * noise)
        return model.train()


def fisher_diagonal(model: nn.Module, data: Data) -> dict[str, Tensor]:
    """F, for each parameter, over one pass of the retain set."""
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    gradients, count = SampleGradients(model), 0
    for images, labels in data.retain(BATCH):
        count += len(labels)
        gradients.add_squares(fisher, images, labels, weighted, data.num_classes)
    return {name: total / count for name, total in fisher.items()}


def weighted(logits: Tensor, _: Tensor) -> Tensor:
    """√p_y · log p_y for every class y, p_y held fixed: the squares of its derivatives sum to F."""
    log_p = logits.log_softmax(0)
    return log_p.detach().exp().sqrt() * log_p
