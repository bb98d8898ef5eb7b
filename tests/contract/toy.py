"""A toy problem on which unlearning can be seen: 4 classes, and labels of which a quarter are wrong.

A wrong label can only be learnt by heart. A model trained on the forget set therefore gives it a higher φ
than the validation set (AUC 0.71–0.78 for the convolutional base), a retrain does not (0.42–0.50).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from attacks.metrics import auc
from workers.data import Arrays, DeviceDataset, UnlearnData, View
from workers.evaluate import evaluate
from workers.run_task import generator
from workers.train import Recipe, train

CPU = torch.device("cpu")
RETAIN, FORGET, VAL, TEST = 256, 96, 96, 300
SETS = {
    "retain": np.arange(RETAIN),
    "forget": np.arange(RETAIN, RETAIN + FORGET),
    "val": np.arange(RETAIN + FORGET, RETAIN + FORGET + VAL),
}
RECIPE = Recipe("adam", 3e-3, 0.9, 0.0, "cosine", 50, 32, True, "auto", 1)


class ToyImages:
    """1×8×8 images of 4 classes: a pattern per class under noise."""

    name = "toy"
    num_classes = 4
    mean, std = (0.5,), (0.25,)
    augment_pad, augment_flip = 0, False


def arrays(seed: int = 0, wrong: float = 0.25) -> Arrays:
    """Pool and test set; a fraction `wrong` of the pool's labels, but no test label, is wrong."""
    rng = np.random.default_rng(seed)
    count = RETAIN + FORGET + VAL + TEST
    labels = rng.integers(0, 4, count)
    patterns = rng.uniform(60, 195, (4, 1, 8, 8))
    images = np.clip(patterns[labels] + rng.normal(0, 35, (count, 1, 8, 8)), 0, 255).astype(np.uint8)
    pool = count - TEST
    wrongly = rng.random(pool) < wrong
    given = np.where(wrongly, (labels[:pool] + rng.integers(1, 4, pool)) % 4, labels[:pool])
    return Arrays(images[:pool], given, images[pool:], labels[pool:])


@dataclass(frozen=True)
class Toy:
    """The toy dataset with a base (trained on retain and forget) and a retrain (on retain alone)."""

    dataset: DeviceDataset
    base: nn.Module
    retrain: nn.Module


def make(architecture: Callable[[], nn.Module], seed: int = 0) -> Toy:
    """Train base and retrain of an architecture, given as a function that builds it."""
    dataset = DeviceDataset(ToyImages, arrays(seed), CPU)
    both = np.concatenate([SETS["retain"], SETS["forget"]])
    models = []
    for number, index in enumerate((both, SETS["retain"])):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed + number)
            model = architecture()
        train(model, View(dataset, index, generator(number, CPU), augment=True), RECIPE)
        model.zero_grad(set_to_none=True)
        models.append(model.eval())
    return Toy(dataset, *models)


def data_for(
    toy: Toy, needs: tuple[str, ...], seed: int = 1, sets: dict[str, np.ndarray] = SETS
) -> UnlearnData:
    """What a method sees of the toy problem."""
    return UnlearnData(toy.dataset, sets, needs, generator(seed, CPU), augment=True)


def memory(toy: Toy, model: nn.Module) -> float:
    """AUC of φ of the forget set against φ of the validation set: ½ for a model that knows neither."""
    phi = evaluate(model, toy.dataset).phi
    return auc(phi[SETS["forget"]], phi[SETS["val"]])


def utility(toy: Toy, model: nn.Module) -> float:
    """Test accuracy."""
    return float(evaluate(model, toy.dataset).correct[toy.dataset.n_pool :].mean())
