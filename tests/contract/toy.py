"""Toy problems of 4 classes on which unlearning can be seen, for random samples and for a whole class.

Random samples: a quarter of the labels are wrong. A wrong label can only be learnt by heart, so a model
trained on the forget set gives it a higher φ than the validation set (AUC 0.71–0.78 for the convolutional
base), a retrain does not (0.42–0.50). A whole class: all labels are true, and a model that was trained on the
class knows its test samples, a retrain none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.metrics import auc
from methods.base import Method
from workers.architectures.cnn_small import CnnSmall
from workers.architectures.vit_tiny import VitTiny
from workers.data import Arrays, DeviceDataset, UnlearnData, View
from workers.evaluate import evaluate
from workers.mnemonic import MnemonicView, draw_codes
from workers.run_task import generator
from workers.train import Recipe, train

CPU = torch.device("cpu")
T_MIX = 0.3  # of the authors for CIFAR-10
RETAIN, FORGET, VAL, TEST = 256, 96, 96, 300
SETS = {
    "retain": np.arange(RETAIN),
    "forget": np.arange(RETAIN, RETAIN + FORGET),
    "val": np.arange(RETAIN + FORGET, RETAIN + FORGET + VAL),
}
FEW = {"retain": 96, "forget": 72, "val": 48}  # three batches of 32, three, and two
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


@dataclass(frozen=True, eq=False)
class Toy:
    """A toy dataset with a base (trained on retain and forget) and a retrain (on retain alone)."""

    dataset: DeviceDataset
    base: nn.Module
    retrain: nn.Module
    sets: dict[str, np.ndarray]
    classes: tuple[int, ...] = ()  # those that are forgotten as a whole
    codes: Tensor | None = None


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: CnnSmall().build(4, 1, 8),
    "vit": lambda: VitTiny().build(4, 1, 8),
}


@cache
def problem(net: str, scope: str, training: str) -> Toy:
    """The toy problem of a net ('cnn', 'vit'), a scope ('random', 'class') and a training ('plain',
    'mnemonic'), trained at the first call.
    """
    whole = scope == "class"
    dataset = DeviceDataset(ToyImages, arrays(wrong=0.0 if whole else 0.25), CPU)
    sets = class_sets(dataset.host_labels, 0) if whole else SETS
    # Only how well the convolutional net learns random samples by heart is ever measured closely, and of the
    # transformer nothing is.
    recipe = replace(RECIPE, epochs=4 if net == "vit" else 20 if whole else 50)
    codes = draw_codes(4, (1, 8, 8), generator(2, CPU)) if training == "mnemonic" else None
    both = np.concatenate([sets["retain"], sets["forget"]])
    models = []
    for seed, index in enumerate((both, sets["retain"])):
        view: Any = View(dataset, index, generator(seed, CPU), augment=True)
        if codes is not None:
            view = MnemonicView(view, codes, T_MIX, generator(3, CPU))
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = NETS[net]()
        train(model, view, recipe)
        models.append(model.eval())
    return Toy(dataset, *models, sets, (0,) if whole else (), codes)


@cache
def few(toy: Toy) -> Toy:
    """The same models with about a third of the samples, for what does not ask how well a method unlearns."""
    return replace(toy, sets={name: toy.sets[name][:count] for name, count in FEW.items()})


def problem_for(cls: type[Method], net: str) -> Toy:
    """The toy problem that a method is made for; one for any forget set is tested on random samples."""
    return problem(net, "class" if cls.scope == "class" else "random", cls.training)


def class_sets(labels: np.ndarray, gone: int) -> dict[str, np.ndarray]:
    """As SETS, but what is forgotten is every training sample of the class `gone`."""
    members = np.arange(RETAIN + FORGET)
    return SETS | {"retain": members[labels[members] != gone], "forget": members[labels[members] == gone]}


def data_for(
    toy: Toy, needs: tuple[str, ...], seed: int = 1, sets: dict[str, np.ndarray] | None = None
) -> UnlearnData:
    """What a method sees of the toy problem."""
    return UnlearnData(
        toy.dataset, sets or toy.sets, needs, generator(seed, CPU), augment=True, codes=toy.codes
    )


def memory(toy: Toy, model: nn.Module) -> float:
    """What a model knows of the forget set: AUC of its φ against that of the validation set (½ for a model
    that knows neither), or, of a whole class, the accuracy on its test samples.
    """
    scores = evaluate(model, toy.dataset)
    if toy.classes:
        return float(scores.correct[toy.dataset.n_pool :][_gone(toy)].mean())
    return auc(scores.phi[toy.sets["forget"]], scores.phi[toy.sets["val"]])


def utility(toy: Toy, model: nn.Module) -> float:
    """Test accuracy on the classes that are not forgotten."""
    return float(evaluate(model, toy.dataset).correct[toy.dataset.n_pool :][~_gone(toy)].mean())


def _gone(toy: Toy) -> np.ndarray:
    return np.isin(toy.dataset.host_labels[toy.dataset.n_pool :], toy.classes)
