"""GA: gradient ascent on the forget set.

Thudi, Deza, Chandrasekaran, Papernot 2022, Unrolling SGD, arXiv 2109.13398. Training is run backwards: steps
*up* the gradient of the loss of the forgotten samples, and of nothing else.

    max_θ  E_{(x,y) ∈ D_F} CE(f_θ(x), y)

The loss has no upper bound: a learning rate or a number of epochs too large destroys the model, so tune both.

Deviation: batches are augmented as in training; the reference (arXiv 2410.01276) leaves augmentation out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, fit, hp, sgd


@dataclass(frozen=True)
class GradientAscent(Method):
    """SGD on the negated loss of the forget set at a constant learning rate."""

    name = "gradient_ascent"
    label = "GA"
    paper = "arXiv:2109.13398"
    version = 1
    needs = ("forget",)
    cost = {"forget": "epochs"}

    epochs: int = hp(10, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.01, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: data.forget(self.batch_size),
            lambda images, labels: -cross_entropy(model(images), labels),
            epochs=self.epochs,
            pure=True,
        )
        return model
