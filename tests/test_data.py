"""Batches: nothing lost, none of one sample, augmentation right on pixels, and sets that are out of reach."""

from __future__ import annotations

from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers import data
from workers.data import Arrays, DeviceDataset, UnlearnData, View, batch_bounds, random_crop
from workers.poison import Poisoned
from workers.run_task import generator

CPU = torch.device("cpu")
ALL = ("retain", "forget", "val")


class Plugin:
    name, num_classes = "unit", 4
    mean, std = (0.2, 0.5), (0.25, 0.5)
    augment_pad, augment_flip = 0, False


class Augmented(Plugin):
    augment_pad, augment_flip = 2, True


def dataset(plugin: type = Plugin, count: int = 60) -> DeviceDataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(1, 256, (count, 2, 6, 6)).astype(np.uint8), rng.integers(0, 4, count)
    return DeviceDataset(plugin, Arrays(images[:50], labels[:50], images[50:], labels[50:]), CPU)


def ids_of(view: View, batch_size: int, limit: int | None = None) -> list[list[int]]:
    return [ids.tolist() for _, _, ids in view.batches(batch_size, limit)]


# ---- batches -------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(2, 70))
def test_batch_bounds_cover_everything_without_a_batch_of_one(count: int, batch_size: int) -> None:
    bounds = batch_bounds(count, batch_size)
    assert bounds[0][0] == 0 and bounds[-1][1] == count
    assert all(end == start for (_, end), (start, _) in pairwise(bounds))
    sizes = [end - start for start, end in bounds]
    assert all(size == batch_size for size in sizes[:-1]) and sizes[-1] <= batch_size + 1
    assert count == 1 or min(sizes) > 1


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [(0, 1)]), (4, [(0, 4)]), (5, [(0, 5)]), (6, [(0, 4), (4, 6)]), (9, [(0, 4), (4, 9)])],
)
def test_batch_bounds_of_four(count: int, expected: list[tuple[int, int]]) -> None:
    assert batch_bounds(count, 4) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 100])
def test_a_view_gives_each_sample_once_in_a_new_order_at_each_pass(batch_size: int) -> None:
    index = np.array([3, 9, 4, 22, 49, 0, 17, 31, 12, 5, 6, 7, 8, 40, 41])
    view = View(dataset(), index, generator(0, CPU), augment=True)
    first, second = (list(chain(*ids_of(view, batch_size))) for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(index.tolist()) and first != second


def test_a_view_is_decided_by_its_seed() -> None:
    def passes(seed: int) -> list[torch.Tensor]:
        view = View(dataset(Augmented), np.arange(20), generator(seed, CPU), augment=True)
        return [images for _ in range(2) for images, _, _ in view.batches(8)]

    assert all(torch.equal(a, b) for a, b in zip(passes(1), passes(1), strict=True))
    assert not torch.equal(passes(1)[0], passes(2)[0])


def test_batches_belong_together_and_are_normalised() -> None:
    data = dataset()
    for images, labels, ids in View(data, np.arange(50), generator(0, CPU), augment=True).batches(16):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(labels, data.labels[ids])
        pixels = data.images[ids].double() / 255
        mean, std = (torch.tensor(v).view(1, 2, 1, 1).double() for v in (Plugin.mean, Plugin.std))
        torch.testing.assert_close(images.double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def test_a_set_of_one_sample_is_given_twice() -> None:
    assert ids_of(View(dataset(), np.array([7]), generator(0, CPU), augment=True), 16) == [[7, 7]]


def test_limit_takes_a_random_subset() -> None:
    view = View(dataset(), np.arange(30), generator(0, CPU), augment=False)
    draws = [list(chain(*ids_of(view, 4, limit=5))) for _ in range(2)]
    assert all(len(set(draw)) == 5 for draw in draws) and set(draws[0]) != set(draws[1])


# ---- augmentation --------------------------------------------------------------------------------


def test_random_crop_is_a_window_of_the_zero_padded_image() -> None:
    images, pad = dataset(count=60).images, 2
    cropped = random_crop(images, pad, generator(3, CPU))
    assert cropped.dtype == torch.uint8 and cropped.shape == images.shape
    rows, columns = torch.randint(0, 2 * pad + 1, (2, 60, 1), generator=generator(3, CPU)).squeeze(2).tolist()
    assert set(rows) == set(columns) == set(range(5)), "all shifts occur, independently"
    assert rows != columns
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        assert np.array_equal(cropped[i].numpy(), padded[i, :, row : row + 6, column : column + 6])


def test_crop_pads_pixels_before_normalisation() -> None:
    data = dataset(Augmented)
    batches = View(data, np.arange(50), generator(0, CPU), augment=True).batches(50)
    black = data.normalised(torch.zeros(1, 2, 1, 1, dtype=torch.uint8))
    images, _, _ = next(iter(batches))
    assert bool((images == black).any(dim=1).any()), "what moves in is black, not the mean colour"
    assert float(images.min()) >= float(black.min()) - 1e-6


class Mirrored(Plugin):
    augment_flip = True


def test_flip_mirrors_about_half_of_the_images_at_the_vertical_axis() -> None:
    data = dataset(Mirrored)
    images = data.images.repeat(10, 1, 1, 1)
    augmented = data.augmented(images, generator(0, CPU))
    same = (augmented == images).flatten(1).all(1)
    mirrored = (augmented == images.flip(3)).flatten(1).all(1)
    assert augmented.dtype == torch.uint8 and bool((same | mirrored).all())
    assert 240 < int(mirrored.sum()) < 360, "600 fair coins, five standard deviations"


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4), st.integers(1, 40),
    st.booleans(), st.sampled_from([None, True, False]), st.integers(0, 2**32),
)  # fmt: skip
def test_gathering_the_augmented_equals_gathering_cropping_mirroring_and_normalising(
    channels: int, height: int, width: int, pad: int, count: int, flips: bool, flip: bool | None, seed: int
) -> None:
    class Drawn(Plugin):
        mean, std = (0.2, 0.5, 0.3)[:channels], (0.25, 0.5, 0.2)[:channels]
        augment_pad, augment_flip = pad, flips

    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (50, channels, height, width)).astype(np.uint8)
    data = DeviceDataset(Drawn, Arrays(images[:40], np.arange(40) % 4, images[40:], np.arange(10) % 4), CPU)
    ids = torch.from_numpy(rng.integers(0, 50, count))
    fused, stepwise = generator(seed, CPU), generator(seed, CPU)
    found, labels = data.gather_augmented(ids, fused, flip)
    pixels, own = data.gather(ids)
    assert torch.equal(pixels, torch.from_numpy(images)[ids])
    assert data.bordered.numel() <= 2 * data.images.numel(), "a border that takes more is not kept"
    expected = data.normalised(data.augmented(pixels, stepwise, flip))
    assert torch.equal(found, expected) and torch.equal(labels, own)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(fused.get_state(), stepwise.get_state()), "what is drawn next is the same, too"


def test_views_gather_in_one_step_only_where_pixels_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data, batch = dataset(Augmented), []
    poisoned = Poisoned(data, np.arange(5), seed=1, noise=0.5, flip_labels=False)
    gather = DeviceDataset.gather_augmented
    monkeypatch.setattr(
        DeviceDataset, "gather_augmented", lambda self, *given: batch.append(1) or gather(self, *given)
    )
    plain = [images for images, _, _ in View(data, np.arange(20), generator(0, CPU), augment=True).batches(8)]
    assert len(batch) == 3
    noisy = View(poisoned, np.arange(20), generator(0, CPU), augment=True).batches(8)
    for (images, _, ids), expected in zip(noisy, plain, strict=True):
        same = (images == expected).flatten(1).all(1)
        assert torch.equal(same, ids >= 5), "the draws are the same, and so are the samples without noise"
    assert len(batch) == 3


def test_no_augmentation_where_it_is_not_wanted() -> None:
    data = dataset(Augmented)
    for images, _, ids in View(data, np.arange(50), generator(0, CPU), augment=False).batches(16):
        assert torch.equal(images, data.normalised(data.images[ids]))


# ---- what a method sees --------------------------------------------------------------------------

SETS = {"retain": np.arange(20), "forget": np.arange(20, 29), "val": np.arange(30, 45)}


def unlearn_data(needs: tuple[str, ...] = ALL, sets: dict[str, np.ndarray] = SETS) -> UnlearnData:
    return UnlearnData(dataset(), sets, needs, generator(0, CPU), augment=False)


def images_of(name: str) -> set[bytes]:
    data = dataset()
    return {image.numpy().tobytes() for image in data.normalised(data.images[SETS[name]])}


@pytest.mark.parametrize("name", ALL)
def test_a_set_holds_its_samples(name: str) -> None:
    seen = [image.numpy().tobytes() for images, _ in getattr(unlearn_data(), name)(8) for image in images]
    assert set(seen) == images_of(name) and len(seen) == len(SETS[name])


def test_union_marks_the_forgotten() -> None:
    forgotten = []
    for images, _, marks in unlearn_data().union(8):
        assert marks.dtype == torch.bool
        for image, mark in zip(images, marks.tolist(), strict=True):
            assert image.numpy().tobytes() in images_of("forget" if mark else "retain")
            forgotten.append(mark)
    assert len(forgotten) == 29 and sum(forgotten) == 9
    assert forgotten != sorted(forgotten), "shuffled together"


def test_retain_sample_is_as_large_as_the_forget_set() -> None:
    seen = [image.numpy().tobytes() for images, _ in unlearn_data().retain_sample(4) for image in images]
    assert len(set(seen)) == 9 and set(seen) <= images_of("retain")


@pytest.mark.parametrize("missing", ALL)
def test_a_set_that_is_not_in_needs_is_out_of_reach_before_the_first_batch(missing: str) -> None:
    data = unlearn_data(tuple(name for name in ALL if name != missing))
    reads = {"retain": ("retain", "union", "retain_sample"), "forget": ("forget", "union", "retain_sample")}
    for reader in reads.get(missing, (missing,)):
        with pytest.raises(PermissionError, match=f"reads {missing} but `needs` is"):
            getattr(data, reader)(8)


def test_there_is_no_test_set_to_read() -> None:
    assert not [name for name in dir(unlearn_data()) if "test" in name]


def test_reading_an_empty_set_says_so() -> None:
    data = unlearn_data(sets=SETS | {"val": np.array([], dtype=np.int64)})
    with pytest.raises(ValueError, match="the val set is empty"):
        data.val(8)


# ---- datasets ------------------------------------------------------------------------------------


def test_dataset_puts_the_pool_first_and_hashes_pixels_and_labels() -> None:
    data = dataset()
    assert len(data) == 60 and data.n_pool == 50 and data.shape == (2, 6)
    assert len(set(data.sample_sha256)) == 60
    other = dataset()
    assert other.sha256 == data.sha256
    rng = np.random.default_rng(0)
    images, labels = rng.integers(1, 256, (60, 2, 6, 6)).astype(np.uint8), rng.integers(0, 4, 60)
    labels[3] = (labels[3] + 1) % 4
    relabelled = DeviceDataset(Plugin, Arrays(images[:50], labels[:50], images[50:], labels[50:]), CPU)
    changed = [i for i in range(60) if relabelled.sample_sha256[i] != data.sample_sha256[i]]
    assert changed == [3] and relabelled.sha256 != data.sha256


class Later:
    """Images on a device whose copies take place when the host waits for them, and not before."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.under_way, self.waits = images, [], 0

    def __getitem__(self, where: slice) -> Later:
        self.where = where
        return self

    def copy_(self, part: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.under_way.append((self.where, part))

    def synchronize(self) -> None:
        self.waits += 1
        for where, part in self.under_way:
            self.images[where] = part
        self.under_way.clear()


@pytest.mark.parametrize("count", [1, 4, 9])
def test_pinned_memory_is_filled_again_when_the_copy_before_is_done(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, empty = [], torch.empty

    def staging(size: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        pinned.append((size, pin_memory))
        return empty(size, dtype=dtype)

    images = np.random.default_rng(0).integers(0, 256, (count, 3, 2, 2), np.uint8)
    device = Later(torch.zeros(count + 2, 3, 2, 2, dtype=torch.uint8))
    monkeypatch.setattr(data, "AT_ONCE", 4 * 12 + 5)
    monkeypatch.setattr(torch, "empty", staging)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda name: {"the GPU": device}[name])
    bordered = SimpleNamespace(is_cuda=True, device="the GPU")
    DeviceDataset._fill(SimpleNamespace(bordered=bordered, images=device), 2, images)  # type: ignore[arg-type]
    waits, left = device.waits, len(device.under_way)
    device.synchronize()
    assert np.array_equal(device.images[2:].numpy(), images) and not device.images[:2].any()
    assert pinned == [((min(4, count), 3, 2, 2), True)] and waits == (count - 1) // 4 and left == 1


@pytest.mark.parametrize("at_once", [1, 700, 2**25])
def test_images_are_the_same_in_parts_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dataset(Augmented).images
    monkeypatch.setattr(data, "AT_ONCE", at_once)
    assert torch.equal(dataset(Augmented).images, expected)
