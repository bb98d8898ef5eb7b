"""PRMQ: prune, re-initialise, match, quantise.

Fourth place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle (Sebastian Oleszko), benchmarked in
arXiv 2410.01276. Of all weights and biases of convolutions and linear layers together, the fraction ρ of the
smallest is pruned; pruned weights start anew from U(−1/√fan-in, 1/√fan-in), pruned biases from 0. The net is
repaired on D_R, where its entropies are to match those it had, and rounded to half precision:

    min_θ  CE_w(f_θ(x), y) + mean_x (H(p_θ(x)) − H(p_θ₀(x)))²,   w_c = n_c^−0.1 for n_c samples of class c

The number of epochs E is real: ⌊E · batches⌋ steps are taken.

Deviation: the reference takes one step more, and rounds E down where a tuned method is run. Projections of
attention are pruned as linear layers. Batches are augmented as in training, there not.
Longer than 80 lines for its four parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from methods.base import Data, Method, fit, frozen_copy, hp, layers, sgd, smallest


@dataclass(frozen=True)
class PruneReinitialiseMatchQuantise(Method):
    """Small weights drawn anew, SGD on the retain set with matched entropies, weights rounded."""

    name = "prune_reinitialise_match_quantise"
    label = "PRMQ"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain",)
    cost = {"retain": "1 + epochs", "copies": "1"}

    epochs: float = hp(3.2, 1.0, 37.0)
    batch_size: int = hp(64, choices=(64, 128, 256))
    learning_rate: float = hp(5e-4, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    rho: float = hp(0.99, 0.0, 1.0)
    quantise: bool = hp(True, choices=(True, False))

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        teacher = frozen_copy(model)
        prune(model, self.rho, data.rng)
        batches, counts = 0, torch.zeros(data.num_classes, device=data.device)
        for _, labels in data.retain(self.batch_size):
            batches, counts = batches + 1, counts.index_add(0, labels, torch.ones_like(labels).float())
        weights = counts.clamp(min=1) ** -0.1

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images).float()
            gaps = entropy(logits) - entropy(teacher(images).float())
            return cross_entropy(logits, labels, weights) + gaps.square().mean()

        optimizer = sgd(model, self.learning_rate, self.momentum, self.weight_decay)
        whole, steps = int(self.epochs), int(self.epochs * batches)
        rest = steps - whole * batches
        fit(optimizer, lambda: data.retain(self.batch_size), loss, epochs=whole, pure=True)
        fit(optimizer, lambda: islice(data.retain(self.batch_size), rest), loss, epochs=1, pure=True)
        if self.quantise:
            for parameter in model.parameters():
                parameter.data.copy_(parameter.data.half())
        return model


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (b,) in nats of the predictions of logits (b, C)."""
    logs = log_softmax(logits, 1)
    return -(logs.exp() * logs).sum(1)


@torch.no_grad()
def prune(model: nn.Module, fraction: float, rng: torch.Generator) -> None:
    """Draw the smallest weights of convolutions and linear layers anew, and set the smallest biases to 0."""
    found = layers(model, nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    weights = [p for _, layer in found for p in layer.parameters(recurse=False)]
    pruned = smallest(torch.cat([w.flatten() for w in weights]), fraction).split([w.numel() for w in weights])
    for weight, mask in zip(weights, pruned, strict=True):
        bound = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.0
        fresh = torch.empty_like(weight).uniform_(-bound, bound, generator=rng)
        weight.copy_(torch.where(mask.view_as(weight), fresh, weight))
