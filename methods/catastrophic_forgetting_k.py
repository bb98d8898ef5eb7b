"""CF-k: catastrophic forgetting of the last k stages.

Goel, Prabhu, Kumaraguru 2022, Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv
2201.06640. What training on the retain set alone forgets, with all but the last k stages θ_k frozen:

    min_{θ_k}  E_{(x,y) ∈ D_R} CE(f_θ(x), y)

Stages are those of `methods.base.stages`: the head is the last, before it come the blocks of a ResNet or of
a transformer, or single layers, each with the norms behind it. Frozen stages stay in eval mode, running
statistics included. Rates fall by ρ after 50, 80 and 90 % of the epochs.

Deviation: the reference (arXiv 2410.01276) counts a ResNet's four groups of blocks, without the head, so that
from 4 on every k is the same (its k = 1 is 3 here); trains in eval mode and with an anchor at θ₀, which the
paper has not, but no momentum nor weight decay; lowers the rate an epoch later, hence never if there are two;
and leaves augmentation out. k is searched up to 3, the number of stages of the smallest net.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, fit, hp, sgd, stages
from methods.schedules import step_decay


@dataclass(frozen=True)
class CatastrophicForgettingK(Method):
    """SGD on the retain set that changes the last k stages only."""

    name = "catastrophic_forgetting_k"
    label = "CF-k"
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
        freeze_all_but(model, self.k)
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: data.retain(self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=self.epochs,
            schedule=step_decay(self.rho),
            pure=True,
        )
        return model


def freeze_all_but(model: nn.Module, k: int) -> list[nn.Module]:
    """Freeze all but the modules of the last k stages, and return these. All stages are the whole model."""
    found = stages(model)
    if k >= len(found):
        return [model]
    tail = [module for stage in found[len(found) - k :] for module in stage]
    model.eval().requires_grad_(False)
    for module in tail:
        module.train().requires_grad_(True)
    return tail
