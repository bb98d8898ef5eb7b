"""CIFAR-100: 50,000 + 10,000 colour images of 32×32 pixels, 100 classes (the fine labels).

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Normalisation, crop with padding,
mirror and 182 epochs as in arXiv 2410.01276.
"""

from __future__ import annotations

from pathlib import Path

from workers.data import Arrays
from workers.files import load_batches, prepare_batches


class Cifar100:
    """Pool: the official training set. Test: the official test set."""

    name = "cifar100"
    label = "CIFAR-100"
    paper = "Krizhevsky 2009"
    version = 1
    num_classes = 100
    pool_size = 50000
    test_size = 10000
    size = 32
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    augment_pad = 4
    augment_flip = True
    training = {"epochs": 182, "batch_size": 256}

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the files or they are damaged."""
        from torchvision.datasets import CIFAR100

        return Arrays(*load_batches(self, folder, CIFAR100, "fine_labels"))

    def prepare(self, folder: Path) -> str:
        """Download and verify what cannot be read yet; returns where the files are."""
        from torchvision.datasets import CIFAR100

        return prepare_batches(self, folder, CIFAR100)
