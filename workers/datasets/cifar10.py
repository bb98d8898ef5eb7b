"""CIFAR-10: 50,000 + 10,000 colour images of 32×32 pixels, 10 classes, read by torchvision.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Normalisation, crop with padding,
mirror and 182 epochs as in arXiv 2410.01276.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.data import Arrays


class Cifar10:
    """Pool: the official training set. Test: the official test set."""

    name = "cifar10"
    label = "CIFAR-10"
    paper = "Krizhevsky 2009"
    version = 1
    num_classes = 10
    pool_size = 50000
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)
    augment_pad = 4
    augment_flip = True
    training = {"epochs": 182, "batch_size": 256}

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError when `folder` lacks the verified files."""
        return Arrays(*self._part(folder, train=True), *self._part(folder, train=False))

    def prepare(self, folder: Path) -> str:
        """Download and verify; returns where the files are."""
        self._part(folder, train=True, download=True)
        return str(folder / "cifar-10-batches-py")

    def _part(self, folder: Path, *, train: bool, download: bool = False) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.datasets import CIFAR10

        try:
            data = CIFAR10(str(folder), train=train, download=download)
        except RuntimeError as error:  # torchvision says so for missing and for corrupt files
            raise FileNotFoundError(
                f"cifar10 is not in {folder}, or damaged ({error}). Run `lethe prepare cifar10`."
            ) from error
        return np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, dtype=np.int64)
