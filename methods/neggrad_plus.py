"""NG+: negative gradient plus.

Kurmanji, Triantafillou, Hayes, Triantafillou 2023, Towards Unbounded Machine Unlearning, arXiv 2302.09880
(NegGrad+). Down the loss of the retain set and up that of the forget set at once, a batch of each per step:

    min_θ  α · E_{D_R} CE(f_θ(x), y) − (1 − α) · E_{D_F} CE(f_θ(x), y)

BatchNorm stays in eval mode, as in the reference (arXiv 2410.01276): forgotten samples leave no trace in its
statistics, and the loss that ascends is that of the model as used, not one that batch statistics repair.

Deviation: no ‖θ − θ₀‖² anchor, whose weight is always 0 in the reference. α is searched from 0.7: near ½ the
ascent wins and the model is lost; weight decay from 0, its default. Forget batches are reshuffled each round.
Batches are augmented as in training; the reference leaves augmentation out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Data, Method, fit, hp, sgd


@dataclass(frozen=True)
class NegGradPlus(Method):
    """SGD on the weighted difference of the retain and the forget loss at a constant learning rate."""

    name = "neggrad_plus"
    label = "NG+"
    paper = "arXiv:2302.09880"
    version = 1
    needs = ("retain", "forget")
    cost = {
        "retain": "epochs",
        "forget": "epochs * ceil(retain_size / batch_size) / ceil(forget_size / batch_size)",
    }

    epochs: int = hp(10, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.01, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(0.0, 0.0, 5e-3)
    alpha: float = hp(0.95, 0.7, 0.9999)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        model.eval()

        def loss(retained: Tensor, labels: Tensor, forgotten: Tensor, old_labels: Tensor) -> Tensor:
            descent = cross_entropy(model(retained), labels)
            ascent = cross_entropy(model(forgotten), old_labels)
            return self.alpha * descent - (1 - self.alpha) * ascent

        def pairs() -> Iterator[Batch]:
            forget = endless(data, self.batch_size)
            return (kept + gone for kept, gone in zip(data.retain(self.batch_size), forget, strict=False))

        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            pairs,
            loss,
            epochs=self.epochs,
            pure=True,
        )
        return model


def endless(data: Data, batch_size: int) -> Iterator[Batch]:
    """Forget batches, round after round, in a new order each."""
    while True:
        yield from data.forget(batch_size)
