"""Training and evaluation of one architecture by the reference's loop and by ours, over the same samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from workers import architectures
from workers import bench_reference as reference
from workers import engine as engines
from workers.bench_machine import Region
from workers.bench_tasks import delivered
from workers.data import DeviceDataset, View
from workers.evaluate import evaluate
from workers.train import Recipe, train
from workers.views import views_of


class Loops:
    """The reference's loop and ours over the same samples."""

    def __init__(self, device: torch.device, name: str, plugin: Any, batch_size: int, engine: str) -> None:
        self.device, self.name, self.plugin = device, name, plugin
        self.batch_size, self.engine = batch_size, engine
        self.arrays = plugin.load(Path())
        self.dataset = DeviceDataset(plugin, self.arrays, device)
        self.ours: dict[str, list[tuple[int, Region]]] = {}  # what was counted
        self.model()  # CannotBuild at once

    def model(self) -> nn.Module:
        """A fresh one, on the host."""
        return architectures.architecture(self.name).build(self.plugin.num_classes, *self.dataset.shape)

    def found(self, what: str, warm: int, repeats: int) -> dict[str, Any]:
        """Medians of both loops, which take turns; first both run over a few samples."""
        ours, theirs = (
            (self.train, self.reference_train)
            if what == "train"
            else (self.evaluate, self.reference_evaluate)
        )
        every, some = len(self.arrays.pool_labels), min(warm, len(self.arrays.pool_labels))
        theirs(some), ours(some)
        turns = [(theirs(every), ours(every)) for _ in range(repeats)]
        self.ours[what] = [turn[1] for turn in turns]
        found: dict[str, Any] = {}
        for prefix, of in (("reference_", 0), ("", 1)):
            images, regions = zip(*(turn[of] for turn in turns), strict=True)
            peaks = [region.peak_memory_mib for region in regions if region.peak_memory_mib is not None]
            found |= {
                f"{prefix}images": images[0],
                f"{prefix}seconds": median(region.seconds for region in regions),
                f"{prefix}peak_memory_mib": median(peaks) if peaks else None,
            }
        if self.device.type == "cuda" and found["reference_peak_memory_mib"]:
            held = self.dataset.bordered.nbytes / 2**20  # which the reference's loop does not need there
            found["reference_peak_memory_mib"] -= held
        return found

    def tasks(self) -> list[dict[str, Any]]:
        """Our passes of training, each with one of evaluation, as entries of `tasks`: bases of one epoch."""
        made = {"kind": "base", "method": "", "training": "plain", "dataset": self.plugin.name}
        made |= {"architecture": self.name, "track": "main", "image": list(self.dataset.shape)}
        both = zip(self.ours["train"], self.ours["evaluate"], strict=True)
        return [
            made
            | {"training_images": float(images), "wall_s": trained.seconds, "evaluate_s": evaluated.seconds}
            | {"evaluated_images": passed, "repeat": repeat}
            for repeat, ((images, trained), (passed, evaluated)) in enumerate(both)
        ]

    def reference_train(self, samples: int) -> tuple[int, Region]:
        return self._reference(samples, reference.train_epoch, train=True)

    def reference_evaluate(self, samples: int) -> tuple[int, Region]:
        return self._reference(samples, reference.evaluate_epoch, train=False)

    def _reference(self, samples: int, epoch: Callable[..., int], train: bool) -> tuple[int, Region]:
        model, batches = self.model().to(self.device), self._loader(samples, train)
        with Region(self.device) as region:
            seen = epoch(model, batches, self.device)
        return seen, region

    def _loader(self, samples: int, train: bool) -> Any:
        images, labels = self.arrays.pool_images[:samples], self.arrays.pool_labels[:samples]
        pictures = reference.Pictures(self.plugin, images, labels, augment=train)
        return reference.loader(pictures, self.device, batch_size=self.batch_size, shuffle=train)

    def train(self, samples: int) -> tuple[int, Region]:
        rng = torch.Generator(self.device).manual_seed(0)
        view = View(self.dataset, np.arange(samples), rng, augment=True)
        rates = (reference.LEARNING_RATE, reference.MOMENTUM, reference.WEIGHT_DECAY)
        recipe = Recipe("sgd", *rates, "cosine", 1, self.batch_size, True, "auto", 1)
        with engines.chosen(self.engine):
            model = engines.placed(self.model(), self.device)
            with delivered() as count, Region(self.device) as region:
                train(model, view, recipe)
        return count[0], region

    def evaluate(self, samples: int) -> tuple[int, Region]:
        """All samples, however few are asked for: evaluation has no subsets."""
        with engines.chosen(self.engine):
            model = engines.placed(self.model(), self.device)
        with Region(self.device) as region:
            evaluate(model, self.dataset)
        return len(self.dataset) * len(views_of(self.dataset.flip)), region
