"""SRL: successive random labels.

Golatkar, Achille, Soatto 2020, arXiv 1911.04933; Graves, Nagisetty, Ganesh 2021, Amnesiac Machine Learning,
arXiv 2010.10981. Training goes on with the forgotten samples under wrong labels, drawn anew at every visit:

    min_θ  E_{(x,y) ∈ D_R ∪ D_F} CE(f_θ(x), ỹ),    ỹ = y on D_R,    ỹ ~ U({1 … C} without y) on D_F

Deviation: the wrong label is never the true one, as Graves et al. say; the reference (arXiv 2410.01276) draws
from all C classes and starts the same label stream again in every epoch. The learning rate is constant, as it
is there: its cosine schedule is built and never stepped. Batches are augmented as in training, there not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import Batch, Data, Method, fit, hp, sgd, wrong_labels


@dataclass(frozen=True)
class SuccessiveRandomLabels(Method):
    """SGD on retain and forget samples together, the latter under fresh wrong labels."""

    name = "successive_random_labels"
    label = "SRL"
    paper = "arXiv:2010.10981"
    version = 1
    needs = ("retain", "forget")
    cost = {"retain": "epochs", "forget": "epochs"}

    epochs: int = hp(5, 1, 37)
    batch_size: int = hp(256, choices=(64, 128, 256))
    learning_rate: float = hp(0.1, 1e-5, 1e-1, log=True)
    momentum: float = hp(0.9, 0.0, 0.99)
    weight_decay: float = hp(5e-4, 1e-5, 1e-1, log=True)

    def unlearn(self, model: nn.Module, data: Data) -> nn.Module:
        fit(
            sgd(model, self.learning_rate, self.momentum, self.weight_decay),
            lambda: mislabelled(data, self.batch_size),
            lambda images, labels: cross_entropy(model(images), labels),
            epochs=self.epochs,
            pure=True,
        )
        return model


def mislabelled(data: Data, batch_size: int) -> Iterator[Batch]:
    """Images of D_R and D_F, and labels, which are fresh wrong ones on D_F."""
    for images, labels, forgotten in data.union(batch_size):
        yield images, torch.where(forgotten, wrong_labels(labels, data), labels)
