"""The figures of docs/duplicates.md: `python -m tests.measure_duplicates` (rates), `… time` (speed).

Real images: digits, and patches that do not overlap of the two photographs that come with scikit-learn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.test_duplicates import PLANTED, jpeg, moved, natural, resized
from workers import duplicates
from workers.datasets.digits import Digits

Change = Callable[[np.ndarray], np.ndarray]
CHANGES: dict[str, Change] = {
    **{f"brightness {name}": PLANTED[name] for name in ("brighter", "darker")},
    "1 px right": lambda image: moved(image, 0, -1),
    "1 px right and down": lambda image: moved(image, -1, -1),
    **{f"JPEG {quality}": lambda image, quality=quality: jpeg(image, quality) for quality in (90, 75, 50)},
    "resized to 3/4": lambda image: resized(image, image.shape[1] * 3 // 4),
    "resized to 1/2": lambda image: resized(image, image.shape[1] // 2),
    "mirrored": lambda image: image[:, :, ::-1],
}


def patches(side: int, cuts: Iterable[int]) -> np.ndarray:
    """Squares of the photographs, of `cuts` pixels a side, resized to `side`: uint8 (n, 3, side, side)."""
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        for cut in cuts:
            for top in range(0, len(photograph) - cut, cut):
                for left in range(0, photograph.shape[1] - cut, cut):
                    patch = Image.fromarray(photograph[top : top + cut, left : left + cut])
                    found.append(np.asarray(patch.resize((side, side), Image.Resampling.BILINEAR)))
    return np.stack(found).transpose(0, 3, 1, 2)


def rates(name: str, images: np.ndarray) -> None:
    """Print the share of changed copies that are found, and the pairs found among the originals."""
    count = len(images)
    ids, small = duplicates._read([images])
    pairs = {
        (min(pair), max(pair))
        for found in duplicates.near_pairs(small, np.unique(ids), mirrored=True)
        for pair in zip(*found, strict=True)
    }
    contrast = duplicates._contrast(small.grey)
    flat = (contrast < duplicates.FLAT).sum()
    total = count * (count - 1) // 2
    tell(f"{name}: {count:,} images, {flat:,} flat; {len(pairs)} of {total:,} pairs are near")
    tell("    found of changed copies, contrast 4 to 8 and above 8")
    for label, change in CHANGES.items():
        both = np.concatenate([images, np.stack([change(image) for image in images])])
        first, small = duplicates._read([both])
        hit = first[count:] == np.arange(count)
        for i, j in duplicates.near_pairs(small, np.arange(2 * count), mirrored=True):
            hit[np.minimum(i, j)[np.abs(i - j) == count]] = True
        parts = [hit[(contrast >= 4) & (contrast < 8)], hit[contrast >= 8]]
        tell(f"    {label:<22} {'  '.join(f'{part.mean():.3f}' if len(part) else 'none ' for part in parts)}")


def seconds(name: str, images: np.ndarray) -> None:
    """Print how long one call takes, and the memory it needs beside the images."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = memory("VmRSS"), time.process_time()
    found = duplicates.find((images[i : i + 1024] for i in range(0, len(images), 1024)), mirrored=True)
    took, extra = time.process_time() - started, memory("VmHWM") - before
    alike = np.bincount(found.near[found.near >= 0], minlength=1)
    tell(f"{name}: {len(images):,} images, {took:.1f} s of one core, {extra:,} MiB beside the images")
    tell(f"    {(alike > 0).sum():,} clusters of {alike.sum():,} samples, the largest {alike.max():,}")


def memory(line: str) -> int:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) // 1024 for text in lines if text.startswith(line))


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def many(count: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
    """Images of `make(seed)`, one block after the other: float images of all at once would not fit."""
    first = make(0)
    images = np.empty((count, *first.shape[1:]), np.uint8)
    for seed, start in enumerate(range(0, count, len(first))):
        images[start : start + len(first)] = make(seed)[: count - start]
    return images


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    """2,000 of the images drawn with replacement, at 28 pixels, moved by up to two, with noise."""
    generator = np.random.default_rng(seed)
    drawn = [Image.fromarray(images[i, 0]).resize((28, 28)) for i in generator.integers(0, len(images), 2000)]
    shifted = [np.roll(d, generator.integers(-2, 3, 2), (0, 1)) for d in map(np.asarray, drawn)]
    noise = generator.integers(-40, 41, (2000, 28, 28))
    return np.clip(np.stack(shifted) + noise, 0, 255).astype(np.uint8)[:, None]


if __name__ == "__main__":
    digits = Digits().load(Path("data"))
    digits_images = np.concatenate([digits.pool_images, digits.test_images])
    if sys.argv[1:] == ["time"]:
        seconds("224 px, patches", patches(224, (48, 64, 96)))
        seconds("32 px, 1/f noise", many(60_000, lambda seed: natural(2000, seed=seed)))
        seconds("28 px, noisy digits", many(60_000, lambda seed: noisy(digits_images, seed)))
    else:
        rates("patches, 32 px, colour", patches(32, (32, 48, 64, 96)))
        rates("patches, 28 px, grey", patches(28, (28, 40, 64))[:, 1:2])
        rates("patches, 224 px, colour", patches(224, (64, 96)))
        rates("digits, 8 px", digits_images)
