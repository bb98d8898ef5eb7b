"""KDE: knowledge distillation with entropy.

Sixth place of the NeurIPS 2023 Machine Unlearning Challenge on Kaggle (Algorithmic Amnesiacs, Euclid),
benchmarked in arXiv 2410.01276. Stem and head (first convolution, last linear layer) start anew; the net is
fitted to what it was, θ₀, and then to that and the labels of the retain set:

    1.  min_θ  d,   2.  min_θ  CE(f_θ(x), y) + 2 d,    d = mean_x KL(softmax(z_θ₀(x)/T) ‖ softmax(z_θ(x)/T))

T² is no factor, as in the reference. The factor 2 stands for KL and for the cross-entropy with the teacher's
predictions, two terms of the reference whose gradients are the same.

Deviation: the reference warms up on the validation set, which later scores the method. Here an epoch of the
warm-up takes every fifth batch of a pass over D_R, which is about as much and has no sample of D_F either. It
also resets no stem but a ResNet's. One momentum and weight decay serve both phases. T is searched from 0.5,
there from 0. Batches are augmented as in training, there not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods import base
from methods.base import Batch, Data, Method, divergence, fit, frozen_copy, hp, reinitialise, sgd
from methods.schedules import cosine

EVERY = 5  # in the reference the validation set has a fifth of the retain set's size


@dataclass(frozen=True)
class DistillEntropy(Method):
    """Fresh stem and head, SGD towards the teacher, then towards teacher and labels at an annealed rate."""

    name = "distill_entropy"
    label = "KDE"
    paper = "arXiv:2410.01276"
    version = 1
    needs = ("retain",)
    cost = {"retain": "warm_up_epochs + epochs", "copies": "1"}

    warm_up_epochs: int = hp(3, 1, 37)
    epochs: int = hp(3, 1, 37)
    batch_size: int = hp(64, choices=(64, 128, 256))
    warm_up_learning_rate: float = hp(9e-4, 1e-5, 1e-1, log=True)
    learning_rate: float = hp(1e-3, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    temperature: float = hp(5.0, 0.5, 10.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        teacher = frozen_copy(model)
        reinitialise(base.stem(model), data.rng)
        reinitialise(base.head(model), data.rng)

        def distil(images: Tensor, labels: Tensor) -> Tensor:
            return divergence(teacher(images), model(images), self.temperature)

        def repair(images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images)
            return cross_entropy(logits, labels) + 2 * divergence(teacher(images), logits, self.temperature)

        def retained(step: int) -> Iterator[Batch]:
            return islice(data.retain(self.batch_size), 0, None, step)

        warm_up = sgd(model, self.warm_up_learning_rate, self.momentum, self.weight_decay)
        fit(warm_up, lambda: retained(EVERY), distil, epochs=self.warm_up_epochs, pure=True)
        optimizer = sgd(model, self.learning_rate, self.momentum, self.weight_decay)
        fit(optimizer, lambda: retained(1), repair, epochs=self.epochs, schedule=cosine, pure=True)
        return model
