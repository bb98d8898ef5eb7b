"""UTKFace: 23,708 aligned and cropped faces of 200×200 pixels, resized to 224×224; five classes of 20 years.

Zhang, Song, Qi, Age Progression/Regression by Conditional Adversarial Autoencoder, 2017, arXiv 1702.08423.
Size, normalisation, classes and 80/20 split as in arXiv 2410.01276, there over files in the order of their
folder; here they are sorted first, so the split is the same everywhere. The images take 3.6 GB on the device
and, while they are loaded, 3.6 GB of memory.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from workers.data import Arrays
from workers.files import pictures, read_jpeg, reading, what_to_run

AGE = re.compile(r"([0-9]{1,3})_")
SPLIT_SEED = 123  # the paper's
BY_HAND = "Replace it by hand."


class Utkface:
    """Test: the first fifth of a permutation of all images, 4,741; pool: the others, 18,967, in its order."""

    name = "utkface"
    label = "UTKFace"
    paper = "arXiv:1702.08423"
    version = 1
    num_classes = 5
    pool_size = 18967
    test_size = 4741
    size = 224
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    augment_pad = 0
    augment_flip = False
    training = {"epochs": 50, "batch_size": 256}

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the images or one is damaged."""
        return self._read(folder)[0]

    def prepare(self, folder: Path) -> str:
        """Verify what is there, since no program can download it; returns what was found and left out."""
        arrays, found = self._read(folder)
        return f"{len(arrays.pool_labels) + len(arrays.test_labels):,} images in {found}"

    def _read(self, folder: Path) -> tuple[Arrays, str]:
        source = next((path for path in (folder / "UTKFace", folder / "UTKFace.zip") if path.exists()), None)
        if source is None:
            raise FileNotFoundError(
                "utkface: fetch the aligned and cropped images by hand (susanqq.github.io/UTKFace) and put"
                f" the folder UTKFace or UTKFace.zip into {folder}. {what_to_run(self.name, folder)}"
            )
        with reading(self.name, folder, source, BY_HAND), pictures(source) as (every, read):
            names, told = self._aged(every, str(source))
            names = [names[i] for i in np.random.default_rng(SPLIT_SEED).permutation(len(names))]
            images = np.empty((len(names), 3, self.size, self.size), np.uint8)
            for place, name in enumerate(names):
                with reading(self.name, folder, source / name, BY_HAND):
                    images[place] = read_jpeg(read(name), self.size)
        labels = np.clip(np.array([int(Path(name).name.split("_")[0]) for name in names]) // 20, 0, 4)
        test = len(names) // 5
        return Arrays(images[test:], labels[test:], images[:test], labels[:test]), told

    def _aged(self, names: list[str], source: str) -> tuple[list[str], str]:
        """The names that begin with an age, and a text that tells the source and the other names."""
        aged = [name for name in names if AGE.match(Path(name).name)]
        expected = self.pool_size + self.test_size
        if not 0.9 * expected <= len(aged) <= expected <= len(names):
            raise ValueError(f"it holds {len(aged):,} images named by age, not {expected:,}")
        others = ", ".join(sorted({Path(name).name for name in names} - {Path(name).name for name in aged}))
        if not others:
            return aged, source
        logging.getLogger(__name__).warning("utkface: left out, no age in the name: %s", others)
        return aged, f"{source}; left out, no age in the name: {others}"
