"""The index sets of one task: its design made from the recipes in its specification."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import nn

from methods.base import plugin
from workers import designs, poison, requests, sample_lists
from workers.data import DeviceDataset
from workers.designs import canonical


class Design:
    """The index sets of a task, made from its recipes; lists: the ids of samples that recipes only name."""

    def __init__(
        self, dataset: DeviceDataset, spec: dict[str, Any], lists: dict[str, list[int]] | None = None
    ) -> None:
        self.dataset, self.recipe, self.forget_recipe = dataset, spec["members"], spec.get("forget")
        self.request: dict[str, int] | None = None
        recipe = sample_lists.in_full(self.recipe, lists, dataset.n_pool)
        labels = dataset.host_labels[: dataset.n_pool]
        forget, draw = None, None
        if self.forget_recipe is not None:
            of_run = ("draw", "request")
            chosen = {key: value for key, value in self.forget_recipe.items() if key not in of_run}
            forget = plugin("workers.forget", chosen["name"])(**chosen["parameters"])
            forget = sample_lists.bound(forget, chosen, lists, dataset)
            draw, self.request = (self.forget_recipe.get(name) for name in of_run)
            made = (dataset.name, labels, recipe, forget, canonical(chosen), draw)
            self.states = designs.build(*made)
        else:
            self.states = designs.build(dataset.name, labels, recipe, None, "", None)
        self.newest = self.states == designs.FORGET
        if self.request is not None:
            fold = requests.fold(self.request["of"], *made)
            self.states, self.newest = requests.after(self.states, fold, self.request["index"])
            if not self.newest.any():
                raise ValueError(f"request {self.request['index'] + 1} of {self.request['of']} is empty")
        self.seen = poison.seen(dataset, spec, recipe)  # what training sees; evaluation sees `dataset`
        self.id = hashlib.sha256(
            canonical([dataset.sha256, self.recipe, self.forget_recipe]).encode()
        ).hexdigest()[:20]

    retain = property(lambda self: np.flatnonzero(self.states == designs.RETAIN))
    forget = property(lambda self: np.flatnonzero(self.newest), doc="What the newest request forgets.")
    gone = property(lambda self: np.flatnonzero(self.states == designs.FORGET), doc="All forgotten so far.")
    val = property(lambda self: np.flatnonzero(self.states == designs.VAL))

    @property
    def forget_classes(self) -> tuple[int, ...]:
        """The classes that are forgotten as a whole."""
        return designs.whole_classes(self.dataset.host_labels, self.retain, self.gone)

    @property
    def members(self) -> np.ndarray:
        """Who a model knows before it forgets: retain and forget. Before the first request: who a base is
        trained on.
        """
        return np.flatnonzero((self.states == designs.RETAIN) | self.newest)

    def remembered(self, model: nn.Module) -> dict[str, float | None]:
        """What a model remembers of the poison of what was forgotten (a base: of all); empty without."""
        if not isinstance(self.seen, poison.Poisoned):
            return {}
        return poison.remembered(
            model, self.seen, self.seen.index if self.forget_recipe is None else self.gone
        )

    def row(self) -> dict[str, Any]:
        """The row of the table designs."""
        counts = np.bincount(self.states, minlength=4)
        return {
            "design": self.id,
            "dataset": self.dataset.name,
            "members": canonical(self.recipe),
            "forget": canonical(self.forget_recipe) if self.forget_recipe else "",
            "forget_classes": list(self.forget_classes),
            "n_pool": len(self.states),
            "n_retain": int(counts[designs.RETAIN]),
            "n_forget": int(counts[designs.FORGET]),
            "n_val": int(counts[designs.VAL]),
            "states": designs.pack(self.states),
            "sha256": designs.sha256(self.states),
        }
