"""The contract of datasets, over all of them: built-in ones on small files in their formats, digits, folders.

Of every dataset: what `load` returns is what it declares, the same each time and wherever it is asked; files
that are missing are one line that says what to do; what is there needs no network; the sets of every design
are made of its pool.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.base import plugin
from orchestrator.catalogue import plugins
from tests.dataset_files import NAMES, files_of, image_folder, small, write, write_pictures, zipped
from workers import designs
from workers.data import Arrays, DeviceDataset, View
from workers.image_folder import ImageFolder

FOLDERS = ("folder", "folder_grey", "folder_split", "folder_zip")
ALL = ("digits", *NAMES, *FOLDERS)
CPU = torch.device("cpu")


@dataclass
class Given:
    """A dataset, made anew by each call, whose files lie in a folder."""

    make: Callable[[], Any]
    folder: Path

    def load(self) -> Arrays:
        return self.make().load(self.folder)


def given_folder(name: str, folder: Path) -> Given:
    parts = ("train", "test") if name == "folder_split" else ("",)
    files = write_pictures(folder / "pictures", ("b", "a", "c"), each=7, parts=parts)
    path = "pictures"
    if name == "folder_zip":
        zipped(files, folder / "pictures.zip", "flowers/")
        path = "pictures.zip"
    channels = 1 if name == "folder_grey" else 3
    dataset = image_folder(folder / path, channels=channels, path=path)
    return Given(lambda: dataset, folder)


@pytest.fixture(params=ALL)
def given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    name = request.param
    if name in FOLDERS:
        return given_folder(name, tmp_path)
    if name == "digits":
        return Given(plugin("workers.datasets", name), tmp_path)
    write(name, tmp_path, monkeypatch)
    return Given(lambda: small(name), tmp_path)


def test_no_dataset_is_left_out() -> None:
    assert {*plugins("datasets")} == {"digits", *NAMES}


def test_arrays_are_images_and_labels_as_declared(given: Given) -> None:
    dataset, data = given.make(), given.load()
    shape = data.pool_images.shape[1:]
    assert len(data.pool_labels) == dataset.pool_size, "plans count with it"
    for images, labels in ((data.pool_images, data.pool_labels), (data.test_images, data.test_labels)):
        assert images.dtype == np.uint8 and images.shape == (len(labels), *shape)
        assert labels.dtype == np.int64 and labels.ndim == 1 and len(labels)
        assert labels.min() >= 0 and labels.max() < dataset.num_classes
        assert int(images.max()) - int(images.min()) > 100, "of 0 to 255, not of 0 to 1"
        assert not np.shares_memory(data.pool_images, data.test_images)
    assert len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]
    assert getattr(dataset, "test_size", len(data.test_labels)) == len(data.test_labels)
    assert getattr(dataset, "size", shape[1]) == shape[1], "costs are estimated with it"
    if isinstance(dataset, ImageFolder):
        assert shape == (dataset.channels, dataset.size, dataset.size)


def test_normalisation_is_finite_and_of_each_channel(given: Given) -> None:
    dataset, data = given.make(), given.load()
    assert len(dataset.mean) == len(dataset.std) == data.pool_images.shape[1]
    assert all(0 <= m <= 1 and np.isfinite(m) for m in dataset.mean)
    assert all(0 < s <= 1 and np.isfinite(s) for s in dataset.std)
    on_device = DeviceDataset(dataset, data, CPU)
    images = on_device.normalised(on_device.images)
    expected = (data.test_images[-1] / 255 - np.reshape(dataset.mean, (-1, 1, 1))) / np.reshape(
        dataset.std, (-1, 1, 1)
    )
    assert images.dtype == torch.float32 and bool(torch.isfinite(images).all())
    np.testing.assert_allclose(images[-1].numpy(), expected, atol=1e-5)


def test_augmentation_keeps_the_form_of_images(given: Given) -> None:
    dataset = given.make()
    assert type(dataset.augment_flip) is bool and type(dataset.augment_pad) is int
    on_device = DeviceDataset(dataset, given.load(), CPU)
    assert 0 <= dataset.augment_pad <= on_device.shape[1] // 4
    rng = torch.Generator(CPU).manual_seed(0)
    view = View(on_device, np.arange(on_device.n_pool), rng, augment=True)
    seen = 0
    for images, labels, ids in view.batches(8):
        assert images.shape[1:] == on_device.images.shape[1:] and bool(torch.isfinite(images).all())
        assert torch.equal(labels, on_device.labels[ids])
        seen += len(ids)
    assert seen == dataset.pool_size


def test_loading_again_gives_the_same_and_leaves_the_world_alone(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other global seeds, another working folder: samples keep their ids, as scores are stored by them."""
    one = given.load()
    before = [path.read_bytes() for path in files_of(given.folder)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    monkeypatch.chdir(given.folder)
    states = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    other = given.load()
    assert states == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    for name, array in vars(one).items():
        assert np.array_equal(array, getattr(other, name)), name
    assert before == [path.read_bytes() for path in files_of(given.folder)]
    first, second = (DeviceDataset(given.make(), data, CPU) for data in (one, other))
    assert first.sha256 == second.sha256 and len(first.sample_sha256) == len(first)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(name, fail)


@pytest.mark.usefixtures("offline")
def test_prepare_of_what_is_there_verifies_it_without_a_network(given: Given) -> None:
    before = {path: path.read_bytes() for path in files_of(given.folder)}
    told = given.make().prepare(given.folder)
    assert told and len(told.splitlines()) == 1
    assert {path: path.read_bytes() for path in files_of(given.folder)} == before


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("given", [name for name in ALL if name != "digits"], indirect=True)
def test_missing_files_are_one_line_that_says_what_to_do(given: Given, tmp_path: Path) -> None:
    elsewhere = tmp_path / "no such földer"
    with pytest.raises(FileNotFoundError) as caught:
        given.make().load(elsewhere)
    [line] = str(caught.value).splitlines()
    assert type(caught.value) is FileNotFoundError and str(elsewhere) in line
    assert re.search(r"`lethe prepare \w+ --data .*`|correct `path` in the grid", line)
    assert not elsewhere.exists()


def test_every_design_is_made_of_the_pool(given: Given) -> None:
    """Main track: trained on or held out, nobody left. Audit: each is in one half of a pair or held out."""
    dataset, labels = given.make(), given.load().pool_labels
    main = {"track": "main", "val_fraction": 0.15}
    states = designs.members(dataset.name, labels, main)
    assert len(states) == dataset.pool_size and set(states) == {designs.RETAIN, designs.VAL}
    assert np.sum(states == designs.VAL) == round(0.15 * dataset.pool_size)
    for pair in range(2):
        halves = [
            designs.members(dataset.name, labels, {**main, "track": "audit", "pair": pair, "half": half})
            for half in (0, 1)
        ]
        assert np.array_equal(halves[0] == designs.VAL, states == designs.VAL)
        trained = [half == designs.RETAIN for half in halves]
        assert np.array_equal(trained[0] ^ trained[1], states == designs.RETAIN)
        assert abs(int(trained[0].sum()) - int(trained[1].sum())) <= 1
        again = designs.members(dataset.name, labels, {**main, "track": "audit", "pair": pair, "half": 0})
        assert np.array_equal(again, halves[0])
    others = designs.members("another name", labels, main)
    assert dataset.pool_size < 30 or not np.array_equal(others, states), "splits go by the name"
