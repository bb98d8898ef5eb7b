"""SVHN: 73,257 + 26,032 colour pictures of house-number digits of 32×32 pixels, 10 classes (0 to 9).

Netzer, Wang, Coates, Bissacco, Wu, Ng, Reading Digits in Natural Images with Unsupervised Feature Learning,
NIPS Workshop on Deep Learning, 2011. The cropped digits, format 2, without the set `extra`. Not augmented, as
in arXiv 1605.07146; epochs and batch size are those of MNIST.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.data import Arrays
from workers.files import check_md5, checked, fetch_first, prepare, read_mat, reading


class Svhn:
    """Pool: the official training set. Test: the official test set."""

    name = "svhn"
    label = "SVHN"
    paper = "Netzer 2011"
    version = 1
    num_classes = 10
    pool_size = 73257
    test_size = 26032
    size = 32
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)
    augment_pad = 0
    augment_flip = False
    training = {"epochs": 50, "batch_size": 256}

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the files or they are damaged."""
        return Arrays(
            *self._part(folder, "train", self.pool_size), *self._part(folder, "test", self.test_size)
        )

    def prepare(self, folder: Path) -> str:
        """Download and verify what cannot be read yet; returns where the files are."""
        from torchvision.datasets import SVHN

        def fetch() -> None:
            for url, _, md5 in (SVHN.split_list[part] for part in ("train", "test")):
                fetch_first([url], folder, md5)

        prepare(self, folder, fetch)
        return f"{folder / 'train_32x32.mat'}, {folder / 'test_32x32.mat'}"

    def _part(self, folder: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """X is (height, width, colour, n), y (n, 1) with 10 for the digit 0."""
        from torchvision.datasets import SVHN

        _, name, md5 = SVHN.split_list[part]
        with reading(self.name, folder, folder / name):
            check_md5(folder / name, md5)
            pictures, digits = read_mat(folder / name, "X", "y")
            if digits.dtype.kind not in "iu" or digits.shape != (count, 1) or not digits.all():
                raise ValueError(f"its y is {digits.dtype} {digits.shape}, not digits 1 to 10 ({count}, 1)")
            labels = np.where(digits[:, 0] == 10, 0, digits[:, 0])
            images = pictures.transpose(3, 2, 0, 1) if pictures.ndim == 4 else pictures
            return checked(np.ascontiguousarray(images), labels, (count, 3, 32, 32), self.num_classes)
