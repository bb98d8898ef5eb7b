"""MNIST: 60,000 + 10,000 grey handwritten digits of 28×28 pixels, 10 classes, resized to 32×32.

LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998. Size,
normalisation and 50 epochs as in arXiv 2410.01276, which also mirrors images in training: a mirrored digit is
no digit, so here only the recipe `paper` does so.
"""

from __future__ import annotations

from pathlib import Path

from workers.data import Arrays
from workers.files import load_idx, prepare_idx, resized


class Mnist:
    """Pool: the official training set. Test: the official test set. 1×32×32; nets repeat the grey channel."""

    name = "mnist"
    label = "MNIST"
    paper = "LeCun 1998"
    version = 1
    num_classes = 10
    pool_size = 60000
    test_size = 10000
    size = 32
    mean = (0.1307,)
    std = (0.3081,)
    augment_pad = 0
    augment_flip = False
    training = {"epochs": 50, "batch_size": 256}
    paper_training = {"flip": True}  # of the recipe `paper`

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the files or they are damaged."""
        from torchvision.datasets import MNIST

        pool, pool_labels, test, test_labels = load_idx(self, folder, MNIST)
        return Arrays(resized(pool, 32), pool_labels, resized(test, 32), test_labels)

    def prepare(self, folder: Path) -> str:
        """Download and verify what cannot be read yet; returns where the files are."""
        from torchvision.datasets import MNIST

        return prepare_idx(self, folder, MNIST)
