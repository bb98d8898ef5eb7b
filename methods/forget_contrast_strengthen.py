"""FCS: forget, contrast, strengthen.

First place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle (team fanchuan), benchmarked in arXiv
2410.01276. One pass over D_F flattens predictions; then rounds of a contrast, in which each forgotten sample
becomes equally similar to all samples of a retain batch, and of an epoch of repair:

    1.  min_θ  E_{D_F} KL(u ‖ p_θ),   u uniform over the classes
    2.  E times:  min_θ  mean_ij −log softmax_j(Z_F Z_Rᵀ/τ)_ij,   then   min_θ  E_{D_R} CE(f_θ(x), y)

Z_F and Z_R are the logits of a forget and of a retain batch, no gradient passing through Z_R. Each of the
three losses has an SGD of its own; the contrast's is annealed by step, by a cosine down to `floor` times its
rate.

Deviation: the reference gives the floor as a rate of its own, which may lie above the start, and scales the
repair's rate by B/64; the default here is the product at B = 256. One momentum serves all three. τ is
searched from 0.5, there from 0. Batches are augmented as in training, there not.
Longer than 80 lines for three losses with an optimizer each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from methods.base import Batch, Data, Method, divergence, fit, hp, sgd
from methods.schedules import cosine


@dataclass(frozen=True)
class ForgetContrastStrengthen(Method):
    """Flat predictions on the forget set, then contrast and repair in turns."""

    name = "forget_contrast_strengthen"
    label = "FCS"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain", "forget")
    cost = {
        "retain": "epochs * (1 + min(1, ceil(forget_size / batch_size) / ceil(retain_size / batch_size)))",
        "forget": "uniform_epochs + 1"
        " + epochs * min(1, ceil(retain_size / batch_size) / ceil(forget_size / batch_size))",
    }

    uniform_epochs: int = hp(1, 1, 10)
    epochs: int = hp(8, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    uniform_learning_rate: float = hp(0.005, 1e-5, 1e-1, log=True)
    contrast_learning_rate: float = hp(3e-4, 1e-5, 1e-1, log=True)
    learning_rate: float = hp(0.004, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    uniform_weight_decay: float = hp(0.0, 0.0, 0.1)
    contrast_weight_decay: float = hp(0.0, 0.0, 0.1)
    weight_decay: float = hp(0.01, 1e-5, 1e-1, log=True)
    temperature: float = hp(1.15, 0.5, 5.0)
    floor: float = hp(0.0033, 0.0, 1.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        flatten = sgd(model, self.uniform_learning_rate, self.momentum, self.uniform_weight_decay)
        contrast = sgd(model, self.contrast_learning_rate, self.momentum, self.contrast_weight_decay)
        repair = sgd(model, self.learning_rate, self.momentum, self.weight_decay)

        def flatness(images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images)
            return divergence(torch.zeros_like(logits), logits)

        def contrast_loss(forgotten: Tensor, _: Tensor, retained: Tensor, __: Tensor) -> Tensor:
            with torch.no_grad():
                fixed = model(retained)
            return dissimilarity(model(forgotten), fixed, self.temperature)

        def pairs() -> Iterator[Batch]:
            both = zip(data.forget(self.batch_size), data.retain(self.batch_size), strict=False)
            for gone, kept in both:
                contrast.param_groups[0]["lr"] = next(rates)
                yield gone + kept

        def classify(images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(model(images), labels)

        fit(flatten, lambda: data.forget(self.batch_size), flatness, epochs=self.uniform_epochs, pure=True)
        steps = self.epochs * sum(1 for _ in data.forget(self.batch_size))
        rates = annealed(self.contrast_learning_rate, steps, self.floor)
        for _ in range(self.epochs):
            fit(contrast, pairs, contrast_loss, epochs=1, pure=True)
            fit(repair, lambda: data.retain(self.batch_size), classify, epochs=1, pure=True)
        return model


def dissimilarity(forgotten: Tensor, retained: Tensor, temperature: float) -> Tensor:
    """mean_ij −log softmax_j of the inner products of logits (f, C) and (r, C) over the temperature."""
    return -log_softmax(forgotten @ retained.T / temperature, 1).mean()


def annealed(rate: float, steps: int, floor: float) -> Iterator[float]:
    """The rate of each step: it falls by a cosine, down to `floor` times the first after `steps`."""
    return (rate * (floor + (1 - floor) * cosine(step, max(steps, 1))) for step in count())
