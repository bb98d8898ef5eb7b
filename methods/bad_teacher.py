"""BT: bad teacher.

Chundawat, Tarun, Mandal, Kankanhalli 2023, Can Bad Teaching Induce Forgetting?, AAAI, arXiv 2205.08096. There
are two teachers: the model as it was on the retain set, and on the forget set a net of the same architecture
that has never been trained.

    min_θ  E_{x ∈ D_R ∪ D_F} KL(softmax(z*(x)/T) ‖ softmax(z_θ(x)/T)),   z* = z_bad on D_F, z_θ₀ on D_R

The mean is over samples, and T² is no factor of it, as in the paper. Both teachers are in eval mode.

Deviation: all of D_R is used, as in the reference (arXiv 2410.01276), not 30 % of it. There the bad teacher
is a ResNet-18 whatever the student is, and KL is divided by the number of classes as well. Batches are
augmented as in training; the reference leaves augmentation out. T is searched from 0.5, there from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.base import Data, Method, adam, divergence, fit, frozen_copy, hp, reinitialise


@dataclass(frozen=True)
class BadTeacher(Method):
    """Adam on the divergence from a good teacher on retained and a bad one on forgotten samples."""

    name = "bad_teacher"
    label = "BT"
    paper = "arXiv:2205.08096"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "epochs", "forget": "epochs", "copies": "2"}

    epochs: int = hp(10, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.01, 1e-5, 1e-1, log=True)
    weight_decay: float = hp(0.0, 0.0, 5e-3)
    temperature: float = hp(1.0, 0.5, 5.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        good, bad = frozen_copy(model), frozen_copy(model)
        reinitialise(bad, data.rng)

        def loss(images: Tensor, labels: Tensor, forgotten: Tensor) -> Tensor:
            teacher = torch.where(forgotten[:, None], bad(images), good(images))
            return divergence(teacher, model(images), self.temperature)

        fit(
            adam(model, self.learning_rate, self.weight_decay),
            lambda: data.union(self.batch_size),
            loss,
            epochs=self.epochs,
            pure=True,
        )
        return model
