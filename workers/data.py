"""Datasets as tensors that live on the device, and the batches made of them there.

Images stay uint8 until a batch is gathered; normalisation and augmentation happen on the device. Nothing here
waits for the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workers.designs import whole_classes

Batch = tuple[Tensor, ...]
MOST_BORDERED = 2.0  # times the memory of the images that they may take with a border
AT_ONCE = 2**25  # bytes of images that go to the device at once


@dataclass(frozen=True)
class Arrays:
    """What a dataset's `load` returns: uint8 images (n, channels, height, width) and labels (n,); where it
    knows parts of the classes, these (n,) too.
    """

    pool_images: np.ndarray
    pool_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    pool_subclasses: np.ndarray | None = None
    test_subclasses: np.ndarray | None = None


class DeviceDataset:
    """A dataset on the device: the pool first, then the test set; sample ids are positions."""

    def __init__(self, plugin: Any, arrays: Arrays, device: torch.device) -> None:
        labels = np.concatenate([arrays.pool_labels, arrays.test_labels]).astype(np.int64)
        self.name: str = plugin.name
        self.num_classes: int = plugin.num_classes
        self.n_pool = len(arrays.pool_labels)
        self.host_labels = labels
        fine = (arrays.pool_subclasses, arrays.test_subclasses)
        self.host_subclasses = None if fine[0] is None else np.concatenate(fine).astype(np.int64)
        self.sample_sha256 = _sample_hashes(chain(arrays.pool_images, arrays.test_images), labels)
        self.sha256 = hashlib.sha256(b"".join(self.sample_sha256)).hexdigest()
        self.pad: int = plugin.augment_pad
        self.flip: bool = plugin.augment_flip
        # The border that crops need is there from the start, unless it would more than double the memory;
        # `images` is what lies within it.
        count, channels, height, width = len(labels), *arrays.pool_images.shape[1:]
        room = (height + 2 * self.pad) * (width + 2 * self.pad)
        self.border = self.pad if room <= MOST_BORDERED * height * width else 0
        size = (count, channels, height + 2 * self.border, width + 2 * self.border)
        self.bordered = torch.zeros(size, dtype=torch.uint8, device=device)
        inside = slice(self.border, self.border + height), slice(self.border, self.border + width)
        self.images = self.bordered[:, :, inside[0], inside[1]]
        self._fill(0, arrays.pool_images)
        self._fill(self.n_pool, arrays.test_images)
        self.labels = torch.from_numpy(labels).to(device)
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(plugin.mean).view(shape), torch.tensor(plugin.std).view(shape)
        self.scale, self.shift = (1 / (255 * std)).to(device), (-mean / std).to(device)
        self.device = device

    def _fill(self, start: int, images: np.ndarray) -> None:
        """Put images in their place, some at a time: a copy of all of them would double the memory. A GPU
        takes them from pinned memory while the host waits only to fill that again.
        """
        on_gpu, device = self.bordered.is_cuda, self.bordered.device
        count = max(1, AT_ONCE // int(np.prod(images.shape[1:])))
        size = (min(count, len(images)), *images.shape[1:])
        staged = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        for first in range(0, len(images), count):
            part = images[first : first + count]
            if on_gpu and first:
                torch.cuda.current_stream(device).synchronize()
            staged.numpy()[: len(part)] = part
            place = self.images[start + first : start + first + len(part)]
            place.copy_(staged[: len(part)], non_blocking=on_gpu)

    def __len__(self) -> int:
        return len(self.host_labels)

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, size) of the images."""
        return self.images.shape[1], self.images.shape[-1]

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (b, channels, height, width) and labels (b,) of samples by their ids."""
        return self.images[ids], self.labels[ids]

    def normalised(self, images: Tensor) -> Tensor:
        """float32 images of mean 0 and standard deviation 1 per channel, from pixels 0–255."""
        return torch.addcmul(self.shift, images, self.scale)

    def augmented(self, images: Tensor, rng: torch.Generator, flip: bool | None = None) -> Tensor:
        """Each image cropped at random after zero padding, and mirrored with probability ½ (flip: whether to
        mirror; None: as the dataset says).
        """
        if self.pad:
            images = random_crop(images, self.pad, rng)
        return self._mirrored(images, rng, flip)

    def gather_augmented(
        self, ids: Tensor, rng: torch.Generator, flip: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `gather`, `augmented` and `normalised` give one after the other, bit for bit and with the same
        draws, in fewer passes: each image is read where its crop lies, out of all windows of all images.
        """
        if self.border < self.pad:
            images, labels = self.gather(ids)
            return self.normalised(self.augmented(images, rng, flip)), labels
        if self.pad:
            offsets = torch.randint(0, 2 * self.pad + 1, (2, len(ids)), generator=rng, device=self.device)
            height, width = self.images.shape[2:]
            windows = self.bordered.unfold(2, height, 1).unfold(3, width, 1)  # a view: nothing is copied
            images = windows[ids, :, offsets[0], offsets[1]]
        else:
            images = self.images[ids]
        return self.normalised(self._mirrored(images, rng, flip)), self.labels[ids]

    def _mirrored(self, images: Tensor, rng: torch.Generator, flip: bool | None) -> Tensor:
        if self.flip if flip is None else flip:
            mirror = torch.rand(len(images), 1, 1, 1, generator=rng, device=images.device) < 0.5
            images = torch.where(mirror, images.flip(-1), images)
        return images


def random_crop(images: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Each image (b, c, h, w) shifted by up to `pad` pixels in both directions, zeros moving in."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=rng, device=images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]
    batch = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Start and end of each batch of `count` samples. A last batch of one joins the batch before it."""
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class Dataset(Protocol):
    """What views read: a DeviceDataset, or one of which training sees some samples otherwise."""

    num_classes: int
    device: torch.device
    host_labels: np.ndarray  # clean, also where training sees other labels

    def __len__(self) -> int: ...
    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]: ...
    def augmented(self, images: Tensor, rng: torch.Generator) -> Tensor: ...
    def normalised(self, images: Tensor) -> Tensor: ...


class View:
    """An index set of a dataset as shuffled, augmented batches; each pass draws a new order from `rng`."""

    def __init__(
        self,
        dataset: Dataset,
        index: np.ndarray,
        rng: torch.Generator,
        *,
        augment: bool,
        flip: bool | None = None,
    ) -> None:
        self.dataset, self.rng, self.augment, self.flip = dataset, rng, augment, flip
        # A set of one sample is given twice, since BatchNorm cannot normalise a single one.
        index = np.repeat(index, 2) if len(index) == 1 else index
        self.index = torch.from_numpy(np.asarray(index, dtype=np.int64)).to(dataset.device)

    def __len__(self) -> int:
        return len(self.index)

    def steps(self, batch_size: int) -> int:
        """How many batches a pass has."""
        return len(batch_bounds(len(self.index), max(batch_size, 2)))

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """(images, labels, sample ids) in a random order; of `limit` samples only, if given."""
        order = torch.randperm(len(self.index), generator=self.rng, device=self.dataset.device)[:limit]
        shuffled = self.index[order]
        for start, end in batch_bounds(len(shuffled), max(batch_size, 2)):
            ids = shuffled[start:end]
            yield (*self._gathered(ids), ids)

    def _gathered(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the network takes them, and labels. Where training sees other pixels than the dataset
        has (poison.Poisoned), these are made between gathering and augmenting.
        """
        if self.augment and isinstance(self.dataset, DeviceDataset):
            return self.dataset.gather_augmented(ids, self.rng, self.flip)
        images, labels = self.dataset.gather(ids)
        if self.augment:
            images = self.dataset.augmented(images, self.rng, self.flip)
        return self.dataset.normalised(images), labels


class UnlearnData:
    """What a method sees (methods.base.Data): the index sets it says it needs, and no test set."""

    def __init__(
        self,
        dataset: Dataset,
        sets: dict[str, np.ndarray],
        needs: tuple[str, ...],
        rng: torch.Generator,
        *,
        augment: bool,
        codes: Tensor | None = None,
        flip: bool | None = None,
    ) -> None:
        self.num_classes, self.device, self.rng = dataset.num_classes, dataset.device, rng
        self.forget_classes = whole_classes(dataset.host_labels, sets["retain"], sets["forget"])
        self._needs, self._codes = needs, codes
        joined = {"union": np.concatenate([sets["retain"], sets["forget"]])}
        self._views = {
            name: View(dataset, index, rng, augment=augment, flip=flip)
            for name, index in (sets | joined).items()
        }
        forgotten = np.zeros(len(dataset), dtype=bool)
        forgotten[sets["forget"]] = True
        self._forgotten = torch.from_numpy(forgotten).to(dataset.device)

    def retain(self, batch_size: int) -> Iterator[Batch]:
        return self._pairs("retain", batch_size)

    def forget(self, batch_size: int) -> Iterator[Batch]:
        return self._pairs("forget", batch_size)

    def val(self, batch_size: int) -> Iterator[Batch]:
        return self._pairs("val", batch_size)

    def union(self, batch_size: int) -> Iterator[Batch]:
        """Retain and forget shuffled together: (images, labels, forgotten bool (b,))."""
        self._allow("retain")
        self._allow("forget")
        batches = self._views["union"].batches(batch_size)
        return ((images, labels, self._forgotten[ids]) for images, labels, ids in batches)

    def retain_sample(self, batch_size: int) -> Iterator[Batch]:
        """A random subset of the retain set, as large as the forget set."""
        self._allow("forget")
        return self._pairs("retain", batch_size, limit=len(self._views["forget"]))

    def codes(self) -> Tensor:
        """The mnemonic codes the base was trained with: float32 (C, channels, height, width)."""
        self._allow("codes")
        if self._codes is None:
            raise ValueError("the base was trained without mnemonic codes, and the method reads them")
        return self._codes

    def _pairs(self, name: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        self._allow(name)
        if not len(self._views[name]):
            raise ValueError(f"the {name} set is empty, and the method reads it")
        batches = self._views[name].batches(batch_size, limit)
        return ((images, labels) for images, labels, _ in batches)

    def _allow(self, name: str) -> None:
        if name not in self._needs:
            raise PermissionError(f"the method reads {name} but `needs` is {self._needs}")


def _sample_hashes(images: Iterable[np.ndarray], labels: np.ndarray) -> list[bytes]:
    """SHA-256 of each sample's raw pixels followed by its label (int64, little endian)."""
    ends = labels.astype("<i8")
    return [
        hashlib.sha256(image.tobytes() + end.tobytes()).digest()
        for image, end in zip(images, ends, strict=True)
    ]
