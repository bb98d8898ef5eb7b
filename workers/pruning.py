"""What tuning sees of a method after each of its epochs, and the end of a run that is worse than most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.data import DeviceDataset
from workers.distance import ACCURACIES, gaps, root_mean_square
from workers.evaluate import logit_margin

SAMPLES = 512  # of each set: enough to see a run that goes wrong


class Pruned(Exception):
    """The run was stopped, as after the same epoch most others were nearer to retraining."""

    def __init__(self, values: Sequence[float], limit: float) -> None:
        super().__init__(f"pruned after epoch {len(values)}: {values[-1]:.4f}, the median is {limit:.4f}")
        self.values = list(values)


class EpochWatch:
    """Called after each epoch (methods.base.AFTER_EPOCH): notes the distance of the model to the retrain.

    sets: indices of retain, forget and val. retrain: ra, fa, va and val_auc of the retrain. limits: after
    epoch e a distance above limits[e] ends the run; epochs beyond the list have no limit. Draws nothing at
    random and leaves the model as it was; `seconds` is what it took, which is no time of the method.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: DeviceDataset,
        sets: Mapping[str, np.ndarray],
        retrain: Mapping[str, float],
        limits: Sequence[float],
    ) -> None:
        self.model, self.dataset, self.retrain, self.limits = model, dataset, retrain, list(limits)
        self.index = {
            name: torch.from_numpy(spread(sets[of]).astype(np.int64)).to(dataset.device)
            for name, of in zip(ACCURACIES, ("retain", "forget", "val"), strict=True)
        }
        self.values: list[float] = []
        self.seconds = 0.0

    def __call__(self) -> None:
        """Note the value; Pruned if it is above the limit of the epoch."""
        started = time.perf_counter()
        value = self._value()
        self.values.append(value)
        self.seconds += time.perf_counter() - started
        epoch = len(self.values) - 1
        if epoch < len(self.limits) and not value <= self.limits[epoch]:
            raise Pruned(self.values, self.limits[epoch])

    def _value(self) -> float:
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.inference_mode():
                found = {name: self._scores(index) for name, index in self.index.items()}
        finally:
            for module, mode in training.items():
                module.training = mode
        row: dict[str, Any] = {name: float(correct.mean()) for name, (_, correct) in found.items()}
        row["val_auc"] = _auc(found["fa"][0], found["va"][0])
        return root_mean_square(gaps(row, self.retrain))

    def _scores(self, index: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """φ and correctness of samples."""
        logits = self.model(self.dataset.normalised(self.dataset.images[index]))
        labels = self.dataset.labels[index]
        return logit_margin(logits, labels).cpu().numpy(), (logits.argmax(1) == labels).cpu().numpy()


def spread(index: np.ndarray) -> np.ndarray:
    """At most SAMPLES of the indices, evenly spaced: a folder of pictures has its classes one after the
    other.
    """
    return index[np.arange(min(SAMPLES, len(index))) * len(index) // min(SAMPLES, max(1, len(index)))]


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(positive > negative), ties counted half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))
