"""Duplicates: planted ones are found with their ids, independent images are not; banding misses none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator import duplicates as listed
from orchestrator.errors import UserError
from workers import duplicates
from workers.datasets.digits import Digits
from workers.duplicates import find, within


def natural(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Independent images with the 1/f spectrum of natural ones: uint8 (count, channels, side, side)."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    noise = np.fft.fft2(generator.standard_normal((count, side, side))) / frequency
    grey = np.fft.ifft2(noise).real
    grey *= 40 / grey.std(axis=(1, 2), keepdims=True)
    tint = generator.normal(0, 15, (count, channels, 1, 1)) if channels > 1 else 0
    return np.clip(120 + grey[:, None] + tint, 0, 255).astype(np.uint8)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def array(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    picture(image).save(file, "JPEG", quality=quality)
    return array(Image.open(file))


def resized(image: np.ndarray, side: int) -> np.ndarray:
    size = image.shape[1:]
    return array(picture(image).resize((side, side), Image.Resampling.BILINEAR).resize(size))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved up and to the left by so many pixels, its edge repeated."""
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = image.shape[1:]
    return padded[:, 2 + down : 2 + down + height, 2 + right : 2 + right + width]


def brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)


PLANTED = {
    "brighter": lambda image: brighter(image, 1.05),
    "darker": lambda image: brighter(image, 0.95),
    "right": lambda image: moved(image, 0, -1),
    "up": lambda image: moved(image, 1, 0),
    "aslant": lambda image: moved(image, -1, 1),
    "jpeg": lambda image: jpeg(image, 75),
    "resized": lambda image: resized(image, 20),
}


@pytest.mark.parametrize("change", PLANTED)
def test_planted_near_duplicates_are_found_with_their_ids(change: str) -> None:
    images = natural(40)
    copies = np.stack([PLANTED[change](image) for image in images[10:20]])
    found = find([images, copies])
    assert (found.exact == -1).all()
    expected = np.full(50, -1)
    expected[10:20] = expected[40:] = np.arange(10, 20)
    assert found.near.tolist() == expected.tolist() and found.near.dtype == np.int32


def test_equal_images_share_the_smallest_id_and_are_near_too() -> None:
    images = natural(6)
    found = find([images, images[[4, 4, 1]], brighter(images[4], 1.05)[None]])
    assert found.exact.tolist() == [-1, 1, -1, -1, 4, -1, 4, 4, 1, -1]
    assert found.near.tolist() == [-1, 1, -1, -1, 4, -1, 4, 4, 1, 4]


def test_independent_images_have_no_duplicates() -> None:
    for images in (natural(1500), natural(800, side=28, channels=1)):
        found = find([images], mirrored=True)
        assert (found.near == -1).all()


def test_another_tint_or_contrast_is_another_image() -> None:
    image = natural(1)[0] // 2 + 60
    red, weak = image.copy(), 120 + (image.astype(int) - 120) // 2
    red[0] = np.clip(red[0].astype(int) + 60, 0, 255)
    for other in (red, weak.astype(np.uint8)):
        assert find([np.stack([image, other])]).near.tolist() == [-1, -1]


def test_mirrored_images_are_near_where_training_mirrors() -> None:
    images = natural(5)
    both = [images, images[2:3, :, :, ::-1]]
    assert find(both).near.tolist() == [-1] * 6
    assert find(both, mirrored=True).near.tolist() == [-1, -1, 2, -1, -1, 2]


def test_images_without_contrast_have_exact_duplicates_alone() -> None:
    generator = np.random.default_rng(0)
    noise = (90 + generator.integers(0, 3, (3, 3, 32, 32))).astype(np.uint8)
    grey = np.full((2, 3, 32, 32), 90, np.uint8)
    found = find([noise, grey])
    assert found.exact.tolist() == found.near.tolist() == [-1, -1, -1, 3, 3]


def test_a_chain_is_one_cluster_though_its_ends_are_far_apart() -> None:
    image = natural(1)[0]
    chain = np.stack([image, moved(image, 0, 1), moved(image, 0, 2)])
    assert find([chain[[0, 2]]]).near.tolist() == [-1, -1]
    assert find([chain]).near.tolist() == [0, 0, 0]


def test_batches_do_not_matter_and_many_copies_are_quick() -> None:
    images = natural(30)
    images[7:12] = [brighter(images[3], factor) for factor in (0.96, 0.98, 1.0, 1.02, 1.04)]
    whole = find([images])
    parts = find(images[i : i + 7] for i in range(0, 30, 7))
    assert whole.near.tolist() == parts.near.tolist() and (whole.near >= 0).sum() == 6
    assert set(find([np.repeat(images[:1], 5000, axis=0)]).near) == {0}


@pytest.mark.parametrize(
    "shape", [(0, 3, 32, 32), (1, 1, 8, 8), (2, 1, 1, 1), (3, 1, 1, 9), (2, 3, 224, 160)]
)
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    found = find([generator.integers(0, 256, shape).astype(np.uint8)])
    assert found.exact.tolist() == found.near.tolist() == [-1] * shape[0]


def test_large_images_are_compared_small() -> None:
    images = natural(12, side=96)
    found = find([images, np.stack([jpeg(images[5], 50), moved(images[8], 1, 1)])])
    assert np.flatnonzero(found.near >= 0).tolist() == [5, 8, 12, 13]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 60), st.integers(0, 2**16), st.booleans()
)
def test_banding_finds_what_brute_force_finds(
    seed: int, radius: int, count: int, common: int, full: bool
) -> None:
    """Hashes around a few centres, so that all distances occur; each pair comes once."""
    radius = min(radius, 13)
    generator = np.random.default_rng(seed)
    words = generator.integers(0, 2**64, 3, dtype=np.uint64)
    hashes = words[generator.integers(0, 3, count)] if full else np.full(count, common, np.uint64)
    for _ in range(int(generator.integers(0, 12))):
        hashes = hashes ^ (np.uint64(1) << generator.integers(0, 64, count).astype(np.uint64))
    others = hashes[generator.permutation(count)[: count // 2 + 1]]
    found = [pair for i, j in within(hashes, others, radius) for pair in zip(i, j, strict=True)]
    distances = np.bitwise_count(hashes[:, None] ^ others)
    expected = set(zip(*np.nonzero(distances <= radius), strict=True))
    assert len(found) == len(set(found)) and set(found) == expected


def test_a_crowded_bucket_is_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PAIRS", 50)
    pieces = list(within(np.zeros(20, np.uint64), np.zeros(30, np.uint64), 3))
    assert len(pieces) > 5 and sum(len(i) for i, _ in pieces) == 600
    assert len({pair for i, j in pieces for pair in zip(i, j, strict=True)}) == 600


# ---- real images -------------------------------------------------------------------------------------------


def test_digits_have_three_pairs_that_hardly_differ() -> None:
    """Real near-duplicates or nearly so: three of 1.6 million pairs."""
    clusters = listed.listing("digits", Path("data"))
    assert [[s["sample_id"] for s in found["samples"]] for found in clusters] == [
        [887, 929],
        [1095, 1576],
        [1193, 1204],
    ]
    assert {found["kind"] for found in clusters} == {"near"}
    assert clusters[1]["samples"][1] == {"sample_id": 1576, "split": "test", "label": 1}
    text = listed.as_text("digits", clusters)
    assert "near   1095 (pool, label 1), 1576 (test, label 1)" in text
    assert text.endswith("digits: 0 exact and 3 near clusters.")


def test_planted_digits_are_found() -> None:
    images = Digits().load(Path("data")).pool_images
    planted = [brighter(images[0], 0.95), moved(images[1], 0, 1), moved(images[2], -1, 0)]
    found = find([images, np.stack(planted)])
    assert found.near[[*range(3), *range(len(images), len(images) + 3)]].tolist() == [0, 1, 2, 0, 1, 2]


def test_an_unknown_dataset_and_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'digit'. Did you mean 'digits'\?"):
        listed.listing("digit", tmp_path)
    with pytest.raises(UserError, match=r"cifar10: .* is missing. Run `lethe prepare cifar10"):
        listed.listing("cifar10", tmp_path)


def test_equal_pixels_are_listed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = Digits().load(tmp_path)
    arrays.test_images[3] = arrays.pool_images[5]
    monkeypatch.setattr(Digits, "load", lambda self, folder: arrays)
    first = listed.listing("digits", tmp_path)[0]
    assert first["kind"] == "exact" and [s["sample_id"] for s in first["samples"]] == [5, 1440]
    assert [found["cluster"] for found in listed.listing("digits", tmp_path)] == [5, 887, 1095, 1193]
