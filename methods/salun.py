"""SalUN: saliency unlearning.

Fan, Liu, Zhang, Wong, Wei, Liu 2024, SalUn, ICLR, arXiv 2310.12508. Successive random labels, but only the
weights move that matter to the forget set: the fraction τ of all weights with the largest gradient there.

    G = ∇_θ Σ_{(x,y) ∈ D_F} CE(f_θ₀(x), y),    m = the fraction τ of largest |G|, over all layers at once
    min_{θ_m}  E_{(x,y) ∈ D_R ∪ D_F} CE(f_θ(x), ỹ),    ỹ = y on D_R,    ỹ ~ U({1 … C} without y) on D_F

G is taken in eval mode. Weight decay is masked too: the others keep their value bit for bit. BatchNorm's
running statistics, which are no weights, follow the data.

Deviation: the reference (arXiv 2410.01276) weighs the t-th of n forget batches n − t + 1 fold in G, lets the
masked weights decay, draws labels that may be the true ones, and searches over an optimizer of the mask that
has no effect. Batches are augmented as in training, there not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, accumulate_gradient, fit, hp, sgd, smallest
from methods.successive_random_labels import mislabelled


@dataclass(frozen=True)
class SalUN(Method):
    """SGD on retain samples and randomly labelled forget samples, on salient weights alone."""

    name = "salun"
    label = "SalUN"
    paper = "arXiv:2310.12508"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "epochs", "forget": "1 + epochs", "copies": "1"}

    epochs: int = hp(10, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.01, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.0, 0.0, 0.99)
    weight_decay: float = hp(0.0, 0.0, 5e-3)
    tau: float = hp(0.5, 0.05, 1.0)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        masks = salient(model, data, self.batch_size, self.tau)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(model(images), labels)

        def mask_step(*_: object) -> None:
            for weight, mask in masks:
                weight.grad.add_(weight.detach(), alpha=self.weight_decay).mul_(mask)

        optimizer = sgd(model, self.learning_rate, self.momentum)
        optimizer.register_step_pre_hook(mask_step)
        fit(optimizer, lambda: mislabelled(data, self.batch_size), loss, epochs=self.epochs, pure=True)
        return model


def salient(model: nn.Module, data: Data, batch_size: int, tau: float) -> list[tuple[Tensor, Tensor]]:
    """Each weight tensor with a mask of what in it is among the fraction tau of largest |G|."""
    model.eval()
    forget = data.forget(batch_size)
    accumulate_gradient(model, forget, lambda x, y: cross_entropy(model(x), y, reduction="sum"))
    model.train()
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    kept = ~smallest(torch.cat([weight.grad.flatten() for weight in weights]), 1 - tau)
    parts = kept.split([weight.numel() for weight in weights])
    return [(weight, mask.view_as(weight)) for weight, mask in zip(weights, parts, strict=True)]
