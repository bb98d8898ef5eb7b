"""EU-k: exact unlearning of the last k stages.

Goel, Prabhu, Kumaraguru 2022, Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv
2201.06640. The last k stages θ_k are drawn anew and trained on the retain set, all others frozen, so that θ_k
itself has never seen the forget set:

    θ_k ~ initialisation,   then   min_{θ_k}  E_{(x,y) ∈ D_R} CE(f_θ(x), y)

Stages, their freezing and the rates are those of CF-k. Fresh norm layers start with fresh statistics, in
training mode, and thus meet the activations of their own fresh weights. k = 0 leaves the model as it is.

Deviation: the reference (arXiv 2410.01276) trains fresh weights in eval mode against the statistics of the
old net, pulls them towards their random start, and searches an epoch factor without effect. Initialisers are
those of the layers themselves. The rest is as in CF-k. Batches are augmented as in training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, fit, hp, reinitialise, sgd
from methods.catastrophic_forgetting_k import freeze_all_but
from methods.schedules import step_decay


@dataclass(frozen=True)
class ExactUnlearningK(Method):
    """Fresh last k stages, then SGD on the retain set that changes them only."""

    name = "exact_unlearning_k"
    label = "EU-k"
    paper = "arXiv:2201.06640"
    version = 1
    needs = ("retain",)
    cost = {"retain": "epochs"}

    epochs: int = hp(10, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.01, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)
    rho: float = hp(0.1, 0.01, 1.0, log=True)
    k: int = hp(2, 1, 3)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        if self.k == 0:
            return model
        for module in freeze_all_but(model, self.k):
            reinitialise(module, data.rng)
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: data.retain(self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=self.epochs,
            schedule=step_decay(self.rho),
            pure=True,
        )
        return model
