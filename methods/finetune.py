"""FT: fine-tuning on the retain set.

Warnecke et al. 2021, arXiv 2108.11577; Golatkar et al. 2020, arXiv 1911.04933. Training goes on without the
forget set and hopes to forget it:

    min_θ  E_{(x,y) ∈ D_R} CE(f_θ(x), y)

Deviation: retain batches are augmented as in training; the reference (arXiv 2410.01276) leaves augmentation
out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Data, Method, fit, hp, sgd
from methods.schedules import cosine


@dataclass(frozen=True)
class Finetune(Method):
    """SGD on the retain set with a learning rate annealed by epoch."""

    name = "finetune"
    label = "FT"
    paper = "arXiv:2108.11577"
    version = 1
    needs = ("retain",)
    cost = {"retain": "epochs"}

    epochs: int = hp(5, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.1, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: data.retain(self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=self.epochs,
            schedule=cosine,
            pure=True,
        )
        return model
