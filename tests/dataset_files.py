"""Small files in the true formats of the datasets, and what loading them gives."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as theirs

from methods.base import plugin
from workers.data import Arrays
from workers.files import Damaged
from workers.image_folder import ImageFolder, scan

RNG = np.random.default_rng(0)
POOL, TEST = 20, 5
NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar20", "cifar100", "svhn", "utkface")
GREY = {"mnist": theirs.MNIST, "fashion_mnist": theirs.FashionMNIST}
CIFAR = {"cifar10": theirs.CIFAR10, "cifar20": theirs.CIFAR100, "cifar100": theirs.CIFAR100}


def small(name: str) -> Any:
    """The dataset with a pool of 20 and a test set of 5, and pictures of files made small."""
    sizes = {"pool_size": POOL, "test_size": TEST} | ({"size": 24} if name == "utkface" else {})
    return type(name, (plugin("workers.datasets", name),), sizes)()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def images_and_labels(count: int, *shape: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (count, *shape)).astype(np.uint8), RNG.integers(0, classes, count)


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(struct.pack(">I", length) for length in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, packed: bool = True) -> Any:
    """The four files of MNIST; returns (images, labels) of both parts."""
    raw = folder / GREY[name].__name__ / "raw"
    raw.mkdir(parents=True)
    parts, sums = [], []
    for part, count in (("train", POOL), ("t10k", TEST)):
        parts.append(images_and_labels(count, 28, 28))
        for what, array in zip(("images-idx3", "labels-idx1"), parts[-1], strict=True):
            path = raw / f"{part}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
            sums += [(path.name, md5(path))] * packed  # none is known of extracted files
    monkeypatch.setattr(GREY[name], "resources", sums)
    return parts


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """A CIFAR batch as Python 2 and its NumPy wrote it: protocol 2, all text as byte strings."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def value(item: Any) -> bytes:
        if isinstance(item, np.ndarray):
            dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
            dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
            shape = b"".join(b"J" + struct.pack("<i", n) for n in item.shape) + b"\x86"
            return made + b"(K\x01" + shape + dtype + b"\x89" + text(item.tobytes()) + b"tb"
        if isinstance(item, list):
            return b"](" + b"".join(value(part) for part in item) + b"e"
        return b"J" + struct.pack("<i", item) if isinstance(item, int) else text(item.encode("latin1"))

    pairs = b"".join(text(key.encode()) + value(item) for key, item in batch.items())
    return b"\x80\x02}(" + pairs + b"u."


def write_batches(
    folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Any], bytes] = python2_pickle,
    counts: tuple[int, int] = (POOL, TEST),
) -> Any:
    """The batches of CIFAR: five files of the pool for CIFAR-10, one for CIFAR-100, of whose labels five in
    a row have one coarse label.
    """
    source, found = CIFAR[name], []
    (folder / source.base_folder).mkdir(parents=True)
    for part, count in zip(("train_list", "test_list"), counts, strict=True):
        files = [file for file, _ in getattr(source, part)]
        images, labels = images_and_labels(count, 3, 32, 32, classes=10 if name == "cifar10" else 100)
        found.append((images, labels // 5 if name == "cifar20" else labels))
        for file, rows in zip(files, np.split(np.arange(count), len(files)), strict=True):
            key = "labels" if name == "cifar10" else "fine_labels"
            batch = {"batch_label": "training batch", key: labels[rows].tolist()}
            batch |= {"data": images[rows].reshape(len(rows), -1), "filenames": [f"{i}.png" for i in rows]}
            batch |= {} if name == "cifar10" else {"coarse_labels": (labels[rows] // 5).tolist()}
            (folder / source.base_folder / file).write_bytes(write(batch))
        sums = [[file, md5(folder / source.base_folder / file)] for file in files]
        monkeypatch.setattr(source, part, sums)
    return found


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two .mat files of SVHN: X (height, width, colour, n), y (n, 1) with 10 for the digit 0."""
    folder.mkdir(parents=True, exist_ok=True)
    found, sums = [], {}
    for part, count in (("train", POOL), ("test", TEST)):
        images, labels = images_and_labels(count, 3, 32, 32)
        labels[0] = 0
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        path = folder / f"{part}_32x32.mat"
        savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": y}, do_compression=True)
        found.append((images, labels))
        sums[part] = ["http://no.invalid/" + path.name, path.name, md5(path)]
    monkeypatch.setattr(theirs.SVHN, "split_list", sums)
    return found


def jpeg(seed: int, size: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, "JPEG")
    return file.getvalue()


def write_faces(folder: Path) -> dict[str, bytes]:
    """The folder UTKFace; the files by name. The last lacks the race, as three of the true ones do."""
    names = [
        f"{4 * age + 1}_{age % 2}_{age % 5}_201701{age:02d}.jpg.chip.jpg" for age in range(POOL + TEST - 1)
    ]
    files = {name: jpeg(seed) for seed, name in enumerate([*names, "116_1_20170109142408075.jpg.chip.jpg"])}
    (folder / "UTKFace").mkdir(parents=True)
    for name in sorted(files, key=lambda name: hashlib.md5(name.encode()).digest()):
        (folder / "UTKFace" / name).write_bytes(files[name])
    return files


def write(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if name in GREY:
        return write_idx(folder, name, monkeypatch)
    if name in CIFAR:
        return write_batches(folder, name, monkeypatch)
    return write_svhn(folder, monkeypatch) if name == "svhn" else write_faces(folder)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def the_line(name: str, folder: Path, kind: type[Exception] = Damaged) -> str:
    """The one line that loading ends in; it says what to run."""
    with pytest.raises(FileNotFoundError) as caught:
        small(name).load(folder)
    line = str(caught.value)
    assert type(caught.value) is kind and len(line.splitlines()) == 1 and line.startswith(f"{name}: ")
    assert f"Run `lethe prepare {name} --data " in line and line.endswith("`.")
    return line


def assert_equal(data: Arrays, parts: Any) -> None:
    for images, labels, (expected, expected_labels) in zip(
        (data.pool_images, data.test_images), (data.pool_labels, data.test_labels), parts, strict=True
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
        assert np.array_equal(images, expected) and np.array_equal(labels, expected_labels)


def zipped(files: dict[str, bytes], path: Path, *folders: str) -> None:
    """The files in the first folder of a zip, other pictures of the same names in further ones."""
    with zipfile.ZipFile(path, "w") as archive:
        for place, folder in enumerate(folders):
            for name, data in reversed(files.items()):
                archive.writestr(folder + name, data if place == 0 else jpeg(99))


def write_to(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- folders of pictures ---------------------------------------------------------------------------------


def picture(
    colour: Any = (200, 100, 50), form: str = "PNG", mode: str = "RGB", size: int = 12, **options: Any
) -> bytes:
    """A file of one colour."""
    file = io.BytesIO()
    Image.new(mode, (size, size), colour).save(file, form, **options)
    return file.getvalue()


def write_pictures(
    folder: Path, classes: tuple[str, ...] = ("daisy", "rose"), each: int = 5, parts: tuple[str, ...] = ("",)
) -> dict[str, bytes]:
    """Noise in PNG and JPEG files, FOLDER/[part/]CLASS/number; the files by name."""
    files = {}
    for part in parts:
        for name in classes:
            for number in range(each):
                ending = ("png", "JPG", "jpeg")[number % 3]
                seed = hashlib.md5(f"{part}{name}{number}".encode()).digest()
                noise = np.random.default_rng(list(seed)).integers(0, 256, (6, 9, 3)).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(noise).save(file, "PNG" if ending == "png" else "JPEG")
                files["/".join(filter(None, (part, name, f"{number}.{ending}")))] = file.getvalue()
    for name in reversed(files):
        write_file(folder / name, files[name])
    return files


def write_file(path: Path, data: bytes = b"no picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def image_folder(source: Path, size: int = 8, channels: int = 3, **changes: Any) -> ImageFolder:
    """The dataset that a folder is."""
    found = scan(source, size, channels)
    facts = {
        "name": "image_folder-0123456789",
        "title": "flowers",
        "path": str(source),
        "size": size,
        "channels": channels,
        "num_classes": len(found.classes),
        "pool_size": len(found.arrays.pool_labels),
        "test_size": len(found.arrays.test_labels),
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "sha256": found.sha256,
    }
    return ImageFolder(**(facts | changes))
