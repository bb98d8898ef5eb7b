"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes of 28×28 pixels, 10 classes, resized to 32×32.

Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747. Size, normalisation and 50 epochs as in arXiv 2410.01276, which
also mirrors images in training; here only the recipe `paper` does it,
as for MNIST.
"""

from __future__ import annotations

from pathlib import Path

from workers.data import Arrays
from workers.files import load_idx, prepare_idx, resized


class FashionMnist:
    """Pool: the official training set. Test: the official test set. 1×32×32; nets repeat the grey channel."""

    name = "fashion_mnist"
    label = "FashionMNIST"
    paper = "arXiv:1708.07747"
    version = 1
    num_classes = 10
    pool_size = 60000
    test_size = 10000
    size = 32
    mean = (0.2860,)
    std = (0.3530,)
    augment_pad = 0
    augment_flip = False
    training = {"epochs": 50, "batch_size": 256}
    paper_training = {"flip": True}  # of the recipe `paper`

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the files or they are damaged."""
        from torchvision.datasets import FashionMNIST

        pool, pool_labels, test, test_labels = load_idx(self, folder, FashionMNIST)
        return Arrays(resized(pool, 32), pool_labels, resized(test, 32), test_labels)

    def prepare(self, folder: Path) -> str:
        """Download and verify what cannot be read yet; returns where the files are."""
        from torchvision.datasets import FashionMNIST

        return prepare_idx(self, folder, FashionMNIST)
