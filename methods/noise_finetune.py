"""CFW: noise on the stem, then class-weighted fine-tuning.

Third place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle, benchmarked in arXiv 2410.01276. The
first weights an image meets are disturbed, strongly at first and a little before the last epoch:

    w_stem ← w_stem + σ ε,   then   min_θ  Σ_{(x,y) ∈ b} w_y CE(f_θ(x), y) / Σ_{(x,y) ∈ b} w_y,   b ⊂ D_R

with ε ~ N(0, I), class weights w_c = n_R / (C n_c) and, as the stem, the first convolution or, in a net
without one, the first linear layer: the patch embedding of a transformer.

Deviation: the reference multiplies a batch's mean loss by its mean weight, which changes the rate only; fails
if a class is absent; disturbs no transformer, as it goes by layer names; does not augment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Data, Method, fit, hp, layers, sgd
from methods.schedules import cosine

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class NoiseFinetune(Method):
    """Noise on the stem, then SGD on the balanced loss of the retain set at a rate annealed by epoch."""

    name = "noise_finetune"
    label = "CFW"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain",)
    cost = {"retain": "1 + epochs"}

    epochs: int = hp(4, 1, 37)
    batch_size: int = hp(64, choices=(64, 128, 256))
    learning_rate: float = hp(7e-4, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    sigma: float = hp(0.6, 0.0, 1.0)
    sigma_last: float = hp(0.005, 0.0, 1.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        stem = next((w for _, w in layers(model, *CONVOLUTIONS)), None) or next(layers(model, nn.Linear))[1]
        add_noise(stem.weight, self.sigma, data.rng)
        weights = class_weights(data, self.batch_size)
        left = iter(range(self.epochs, 0, -1))

        def batches() -> Iterable[Batch]:
            if next(left) == 1:
                add_noise(stem.weight, self.sigma_last, data.rng)
            return data.retain(self.batch_size)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(model(images), labels, weights)

        optimizer = sgd(model, self.learning_rate, self.momentum, self.weight_decay)
        fit(optimizer, batches, loss, epochs=self.epochs, schedule=cosine, pure=True)
        return model


@torch.no_grad()
def add_noise(weight: Tensor, sigma: float, rng: torch.Generator) -> None:
    """Add normal noise of standard deviation `sigma`, in place."""
    weight.add_(sigma * torch.randn(weight.shape, generator=rng, device=weight.device))


def class_weights(data: Data, batch_size: int) -> Tensor:
    """n_R / (C n_c) for each class; an absent one, whose weight is never used, counts as one sample."""
    counts = torch.zeros(data.num_classes, device=data.device)
    for _, labels in data.retain(batch_size):
        counts.index_add_(0, labels, torch.ones(len(labels), device=data.device))
    return counts.sum() / (data.num_classes * counts.clamp(min=1))
