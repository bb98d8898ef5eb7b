"""Training recipes by name, and how a model's recipe is put together. docs/recipes.md tells what they reach.

Later beats earlier: RECIPE, what the named recipe and the dataset say, then the grid's keys, the narrowest
selector last. A key of the grid beats a named recipe wherever either stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from orchestrator.catalogue import Plugin

# The recipe of arXiv 2410.01276; epochs and other particulars come from the dataset.
RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "epochs": 50,
    "batch_size": 256,
    "augment": True,
    "precision": "auto",
    "t_mix": 0.3,  # arXiv 2306.05670, CIFAR-10
}

# Of the `fast` recipe: one cycle (Smith 2018, arXiv 1803.09820) over a share of the dataset's epochs, with a
# peak above its learning rate.
FAST_EPOCHS = 0.3
FAST_PEAK = 2.0


def resolve(dataset: Plugin, overrides: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The values of RECIPE's keys for a model of `dataset`; overrides: of the grid, the narrowest last.

    A key `flip` is added where images are mirrored in training, or not, against the dataset's own habit.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        given |= override
    own = dataset.constants.get("training", {})
    recipe = {**RECIPE, **own, **_named(given.pop("recipe", None), dataset, RECIPE | own), **given}
    if recipe.get("flip") == dataset.constants.get("augment_flip", False):
        del recipe["flip"]
    return recipe


def _named(name: str | None, dataset: Plugin, usual: dict[str, Any]) -> dict[str, Any]:
    """What a named recipe changes of the usual values of a dataset.

    paper: full precision, and what the paper does to this dataset in training; on one that it does not have,
    the usual values in full precision.
    """
    if name == "paper":
        return {"precision": "float32", **dataset.constants.get("paper_training", {})}
    if name == "fast":
        return {
            "schedule": "one_cycle",
            "epochs": math.ceil(FAST_EPOCHS * usual["epochs"]),
            "learning_rate": FAST_PEAK * usual["learning_rate"],
        }
    return {}
