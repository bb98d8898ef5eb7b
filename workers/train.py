"""Training of bases and retrains: the recipe, put into the one loop (`methods.base.fit`) that methods use
too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.nn.functional import cross_entropy

from methods.base import PRECISION, adam, fit, sgd
from methods.schedules import BY_STEP, SCHEDULES
from workers.data import Batch

version = 2  # part of the id of every trained model: raise it when training behaves differently


@dataclass(frozen=True)
class Recipe:
    """A training recipe with every value decided; the fields are those of a grid's `training` section."""

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    epochs: int
    batch_size: int
    augment: bool
    precision: str
    version: int
    mnemonic: dict[str, Any] | None = None  # t_mix and version; None for training without codes
    flip: bool | None = None  # whether augmentation mirrors; None as the dataset says


class Batches(Protocol):
    """What is trained on: a View, or a MnemonicView of one."""

    def batches(self, batch_size: int) -> Iterable[Batch]: ...
    def steps(self, batch_size: int) -> int: ...


def train(model: nn.Module, view: Batches, recipe: Recipe) -> None:
    """Minimise the mean cross-entropy over `view`, in place; Diverged when a loss is not finite."""
    model.train()
    if recipe.optimizer == "adam":
        optimizer: Any = adam(model, recipe.learning_rate, recipe.weight_decay)
    else:
        optimizer = sgd(model, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    token = PRECISION.set(recipe.precision)
    try:
        fit(
            optimizer,
            lambda: view.batches(recipe.batch_size),
            lambda images, labels, _: cross_entropy(model(images), labels),
            epochs=recipe.epochs,
            schedule=SCHEDULES[recipe.schedule],
            steps=view.steps(recipe.batch_size) if recipe.schedule in BY_STEP else None,
            pure=True,
        )
    finally:
        PRECISION.reset(token)
    model.zero_grad(set_to_none=True)
