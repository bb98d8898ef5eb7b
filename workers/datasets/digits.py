"""The 1,797 handwritten digits that come with scikit-learn: 8×8 pixels, 10 classes, no download.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
There is no official test set in this copy; 360 samples (20 %, stratified by class, always the same) serve as
one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.data import Arrays
from workers.designs import rng, subset


class Digits:
    """Pool of 1,437 and test set of 360 images, 1×8×8."""

    name = "digits"
    label = "Digits"
    paper = "UCI 80"
    version = 1
    num_classes = 10
    pool_size = 1437
    test_size = 360
    size = 8
    mean = (0.288,)
    std = (0.354,)
    augment_pad = 0
    augment_flip = False
    training = {"epochs": 20, "batch_size": 64, "learning_rate": 0.05}

    def load(self, folder: Path) -> Arrays:
        """The arrays; `folder` is not needed. Pixels 0–16 become 0–240."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = (bunch.images * 15).astype(np.uint8)[:, None]
        labels = bunch.target.astype(np.int64)
        test = subset(labels, np.ones(len(labels), dtype=bool), 360, rng("digits", "test"))
        return Arrays(images[~test], labels[~test], images[test], labels[test])

    def prepare(self, folder: Path) -> str:
        """Nothing to fetch."""
        return "embedded in scikit-learn"
