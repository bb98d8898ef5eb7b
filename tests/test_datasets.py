"""Datasets read from small files in their true formats, whole, cut, foreign and hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision import datasets as theirs
from torchvision.transforms import Resize

from methods.base import plugin
from workers.data import Arrays
from workers.files import DECODING, Damaged, read_batch, read_idx, read_jpeg

RNG = np.random.default_rng(0)
POOL, TEST = 20, 5
NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "utkface")
GREY = {"mnist": theirs.MNIST, "fashion_mnist": theirs.FashionMNIST}
CIFAR = {"cifar10": theirs.CIFAR10, "cifar100": theirs.CIFAR100}


def small(name: str) -> Any:
    """The dataset with a pool of 20 and a test set of 5."""
    return type(
        name, (plugin("workers.datasets", name),), {"pool_size": POOL, "test_size": TEST, "size": 24}
    )()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def images_and_labels(count: int, *shape: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (count, *shape)).astype(np.uint8), RNG.integers(0, classes, count)


# ---- files in the true formats ---------------------------------------------------------------------------


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
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any], bytes] = python2_pickle
) -> Any:
    """The batches of CIFAR: five files of the pool for CIFAR-10, one for CIFAR-100."""
    source, found = CIFAR[name], []
    (folder / source.base_folder).mkdir(parents=True)
    for part, count in (("train_list", POOL), ("test_list", TEST)):
        files = [file for file, _ in getattr(source, part)]
        images, labels = images_and_labels(count, 3, 32, 32, classes=100 if name == "cifar100" else 10)
        found.append((images, labels))
        for file, rows in zip(files, np.split(np.arange(count), len(files)), strict=True):
            key = "labels" if name == "cifar10" else "fine_labels"
            batch = {"batch_label": "training batch", key: labels[rows].tolist()}
            batch |= {"data": images[rows].reshape(len(rows), -1), "filenames": [f"{i}.png" for i in rows]}
            batch |= {"coarse_labels": [0] * len(rows)} if name == "cifar100" else {}
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


# ---- what is read ----------------------------------------------------------------------------------------


def assert_equal(data: Arrays, parts: Any) -> None:
    for images, labels, (expected, expected_labels) in zip(
        (data.pool_images, data.test_images), (data.pool_labels, data.test_labels), parts, strict=True
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
        assert np.array_equal(images, expected) and np.array_equal(labels, expected_labels)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", GREY)
def test_mnist_is_resized_as_torchvision_resizes_pil_images(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_idx(tmp_path, name, monkeypatch, packed=packed)
    resize = Resize((32, 32))
    resized = [
        (np.stack([np.asarray(resize(Image.fromarray(image)))[None] for image in images]), labels)
        for images, labels in parts
    ]
    assert_equal(small(name).load(tmp_path), resized)


def test_the_resized_image_is_known() -> None:
    """A bright column 10 of 28: at 28 / 32 per pixel, column c of the result sees (c + ½) · 28 / 32 − ½."""
    from workers.files import resized

    image = np.zeros((1, 28, 28), np.uint8)
    image[0, :, 10] = 200
    row = resized(image, 32)[0, 0, 5].astype(float)
    centres = (np.arange(32) + 0.5) * 28 / 32 - 0.5
    assert np.abs(row - 200 * np.clip(1 - np.abs(centres - 10), 0, 1)).max() <= 1


@pytest.mark.parametrize(
    "writer", [python2_pickle, pickle.dumps, lambda batch: pickle.dumps(batch, protocol=2)]
)
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_what_torchvision_reads(
    name: str, writer: Callable[[Any], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_batches(tmp_path, name, monkeypatch, writer)
    data = small(name).load(tmp_path)
    assert_equal(data, parts)
    monkeypatch.setattr(CIFAR[name], "_load_meta", lambda self: None)
    there = CIFAR[name](str(tmp_path))
    assert_equal(data, [(there.data.transpose(0, 3, 1, 2), there.targets), parts[1]])


def test_svhn_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_svhn(tmp_path, monkeypatch)
    data = small("svhn").load(tmp_path)
    assert_equal(data, parts)
    there = [theirs.SVHN(str(tmp_path), split) for split in ("train", "test")]
    assert_equal(data, [(part.data, part.labels) for part in there])
    assert data.pool_labels[0] == 0 and loadmat(tmp_path / "train_32x32.mat")["y"][0, 0] == 10


def by_name(files: dict[str, bytes], size: int) -> dict[str, bytes]:
    """Resized pixels by name, by torchvision."""
    resize = Resize((size, size))
    return {
        name: np.asarray(resize(Image.open(io.BytesIO(data)).convert("RGB"))).transpose(2, 0, 1).tobytes()
        for name, data in files.items()
    }


def test_utkface_has_ages_by_twenty_years_and_a_split_of_sorted_names(tmp_path: Path) -> None:
    files = write_faces(tmp_path)
    data, pixels = small("utkface").load(tmp_path), by_name(files, 24)
    order = [sorted(files)[i] for i in np.random.default_rng(123).permutation(25)]
    classes = [min(int(name.split("_")[0]) // 20, 4) for name in order]
    assert [image.tobytes() for image in data.test_images] == [pixels[name] for name in order[:5]]
    assert [image.tobytes() for image in data.pool_images] == [pixels[name] for name in order[5:]]
    assert data.test_labels.tolist() == classes[:5] and data.pool_labels.tolist() == classes[5:]
    assert set(classes) == set(range(5)), "0 to 116 years: the last class has all from 80 on"


def zipped(files: dict[str, bytes], path: Path, *folders: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for name, data in reversed(files.items()):
                archive.writestr(folder + name, data)


@pytest.mark.parametrize(
    "folders", [("",), ("UTKFace/",), ("./UTKFace/",), ("a/crop_part1/", "UTKFace/", "a/UTKFace/", "crop/")]
)
def test_a_zip_gives_what_its_folder_gives(folders: tuple[str, ...], tmp_path: Path) -> None:
    files = write_faces(tmp_path / "folder")
    (tmp_path / "zip").mkdir()
    zipped(files, tmp_path / "zip" / "UTKFace.zip", *folders)
    one, other = (small("utkface").load(tmp_path / where) for where in ("folder", "zip"))
    assert_equal(one, [(other.pool_images, other.pool_labels), (other.test_images, other.test_labels)])


def test_names_without_an_age_are_listed_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_faces(tmp_path)
    whole = small("utkface").load(tmp_path)
    for name in ("abc.jpg", "_1_0_2.jpg", "20170109_1.jpg", "-3_1.jpg", "notes.txt"):
        (tmp_path / "UTKFace" / name).write_bytes(b"no picture")
    again = small("utkface").load(tmp_path)
    assert_equal(again, [(whole.pool_images, whole.pool_labels), (whole.test_images, whole.test_labels)])
    line = "left out, no age in the name: -3_1.jpg, 20170109_1.jpg, _1_0_2.jpg, abc.jpg"
    assert line in caplog.text
    assert small("utkface").prepare(tmp_path) == f"25 images in {tmp_path / 'UTKFace'}; {line}"
    one = sorted(files)[3]
    (tmp_path / "UTKFace" / one).rename(tmp_path / "UTKFace" / "nameless.jpg")
    fewer = small("utkface").load(tmp_path)
    assert len(fewer.pool_labels) + len(fewer.test_labels) == 24


# ---- missing, cut, foreign -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_one_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's a földer"
    assert str(folder) in the_line(name, folder, FileNotFoundError)


@pytest.mark.parametrize(
    "change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>"]
)
@pytest.mark.parametrize("name", [*GREY, *CIFAR, "svhn"])
def test_each_file_that_is_not_the_official_one_is_named(
    name: str, change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path, monkeypatch)
    for path in files_of(tmp_path):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        line = the_line(name, tmp_path)
        assert f"{path} cannot be used: its MD5 sum is {md5(path)}" in line
        path.write_bytes(whole)
        path.rename(path.with_suffix(".away"))
        assert str(path.with_suffix("" if path.suffix == ".gz" else path.suffix)) in the_line(
            name, tmp_path, FileNotFoundError
        )
        path.with_suffix(".away").rename(path)
    assert len(small(name).load(tmp_path).pool_labels) == POOL


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("svhn", tmp_path, monkeypatch)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("workers.datasets.svhn.check_md5", refuse)
    assert "train_32x32.mat cannot be used: Permission denied. " in the_line("svhn", tmp_path)


WRONG_IDX = [
    ("train-images-idx3", b"\x00\x00\x0d\x03" + b"\x00" * 40, "starts with the bytes 00 00 0d 03"),
    ("train-images-idx3", b"\x00\x00\x08\x03\x00\x00", "starts with the bytes 00 00 08 03"),
    ("train-images-idx3", idx(np.zeros((POOL, 28, 28)))[:-1], "holds 15,679 values where its header says"),
    ("train-images-idx3", idx(np.zeros((POOL, 28, 28))) + b"\x00", "holds 15,681 values"),
    ("train-images-idx3", idx(np.zeros((POOL - 1, 28, 28))), "images are uint8 (19, 28, 28), not uint8 (20,"),
    ("train-images-idx3", idx(np.zeros((POOL, 32, 32))), "images are uint8 (20, 32, 32)"),
    ("t10k-images-idx3", idx(np.zeros(TEST)), "images are uint8 (5,), not uint8 (5, 28, 28)"),
    ("t10k-labels-idx1", idx(np.zeros(TEST + 1)), "labels are uint8 (6,), not whole numbers (5,)"),
    ("train-labels-idx1", idx(np.full(POOL, 10)), "labels go from 10 to 10, allowed are 0 to 9"),
]


@pytest.mark.parametrize(("file", "data", "reason"), WRONG_IDX)
def test_a_wrong_idx_file_without_a_known_sum_is_told_by_its_content(
    file: str, data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path, "mnist", monkeypatch, packed=False)
    path = tmp_path / "MNIST" / "raw" / f"{file}-ubyte"
    path.write_bytes(data)
    line = the_line("mnist", tmp_path)
    assert f"{path} cannot be used: " in line and reason in line


def test_a_cut_gzip_file_is_told_even_if_its_sum_were_right(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    packed = gzip.compress(idx(np.zeros((9, 28, 28))))
    assert read_idx(write_to(path, packed)).shape == (9, 28, 28)
    for cut in range(len(packed)):
        with pytest.raises(DECODING):
            read_idx(write_to(path, packed[:cut]))


def write_to(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_right_sums(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if whoever changed the files had also found the same MD5 sum."""
    source = CIFAR[name]
    for part in ("train_list", "test_list"):
        sums = [[file, md5(folder / source.base_folder / file)] for file, _ in getattr(source, part)]
        monkeypatch.setattr(source, part, sums)


class Hostile:
    """What a pickle can hold: a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", CIFAR)
def test_a_pickle_that_calls_a_function_is_named_and_not_run(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batches(tmp_path, name, monkeypatch)
    proof = tmp_path / "proof"
    path = tmp_path / CIFAR[name].base_folder / CIFAR[name].train_list[0][0]
    path.write_bytes(pickle.dumps({"data": Hostile(os.system, f"touch '{proof}'")}, protocol=protocol))
    with_right_sums(name, tmp_path, monkeypatch)
    line = the_line(name, tmp_path)
    assert str(path) in line and f"it calls {os.system.__module__}.system" in line and "was not run" in line
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists(), "it would have been run"


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (eval, ("1",), ".eval"),
        (getattr, ({}, "keys"), ".getattr"),
        (np.frombuffer, (b"1",), "numpy"),
        (np.dtype, ("O",), "array of O|without the keys|no attribute|object is not|has no"),
        (__import__, ("os",), "__import__"),
    ],
)
def test_nothing_but_arrays_of_bytes_is_made(
    function: Any, arguments: Any, named: str, tmp_path: Path
) -> None:
    path = write_to(tmp_path / "batch", pickle.dumps({"data": Hostile(function, *arguments), "labels": [1]}))
    with pytest.raises(DECODING, match=named):
        read_batch(path, "labels")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": np.zeros((4, 3072))}, "array of f8, not of bytes"),
        ({"data": np.zeros((4, 3072), np.int8)}, "array of i1, not of bytes"),
        ({"data": np.zeros((3, 3072), np.uint8)}, "images are uint8 (3, 3, 32, 32)"),
        ({"data": np.zeros((4, 3071), np.uint8)}, "cannot reshape"),
        ({"data": [[0] * 3072] * 4}, "'list' object has no attribute"),
        ({"labels": [0, 1, 2, 10]}, "labels go from 0 to 10, allowed are 0 to 9"),
        ({"labels": [0, 1, 2, -1]}, "labels go from -1 to 2"),
        ({"labels": [0, 1, 2]}, "labels are int64 (3,)"),
        ({"labels": [0, 1, 2, 0.5]}, "labels are float64 (4,), not whole numbers"),
        ({"labels": ["0", "1", "2", "3"]}, "not whole numbers"),
    ],
)
def test_a_wrong_batch_is_told_by_its_content(
    changes: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batches(tmp_path, "cifar10", monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]} | changes
    path.write_bytes(pickle.dumps(batch))
    with_right_sums("cifar10", tmp_path, monkeypatch)
    line = the_line("cifar10", tmp_path)
    assert f"{path} cannot be used: " in line and reason in line


def test_a_batch_for_the_other_cifar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batches(tmp_path, "cifar100", monkeypatch)
    batch = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20}
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(batch))
    with_right_sums("cifar100", tmp_path, monkeypatch)
    assert "a pickle without the keys data and fine_labels" in the_line("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"X": np.zeros((32, 32, 3, 19), np.uint8)}, "images are uint8 (19, 3, 32, 32)"),
        ({"X": np.zeros((32, 32, 3, 20))}, "images are float64 (20, 3, 32, 32)"),
        ({"X": np.zeros((32, 32), np.uint8)}, "images are uint8 (32, 32)"),
        ({"y": np.zeros((20, 1), np.uint8)}, "y is uint8 (20, 1), not digits 1 to 10"),
        ({"y": np.full((20, 1), 11, np.uint8)}, "labels go from 11 to 11"),
        ({"y": np.ones((19, 1), np.uint8)}, "y is uint8 (19, 1)"),
        ({"y": np.ones((20, 1))}, "y is float64 (20, 1)"),
        ({"y": None}, "no variable y"),
    ],
)
def test_a_wrong_mat_file_is_told_by_its_content(
    changes: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "train_32x32.mat"
    facts = {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.ones((20, 1), np.uint8)} | changes
    savemat(path, {key: value for key, value in facts.items() if value is not None})
    theirs.SVHN.split_list["train"][2] = md5(path)
    line = the_line("svhn", tmp_path)
    assert f"{path} cannot be used: " in line and reason in line


@pytest.mark.parametrize(
    "data", [b"", b"no mat file", b"\x89HDF\r\n\x1a\n" + b"\x00" * 600, b"MATLAB 7.3 MAT" * 40]
)
def test_what_is_no_mat_file_is_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    path = write_to(tmp_path / "test_32x32.mat", data)
    theirs.SVHN.split_list["test"][2] = md5(path)
    assert f"{path} cannot be used: " in the_line("svhn", tmp_path)


# ---- faces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [jpeg(1)[:400], b"", b"GIF89a", jpeg(1)[:2]])
@pytest.mark.parametrize("packed", [True, False])
def test_a_picture_that_is_cut_or_none_is_named(data: bytes, packed: bool, tmp_path: Path) -> None:
    files = write_faces(tmp_path)
    broken = sorted(files)[7]
    (tmp_path / "UTKFace" / broken).write_bytes(data)
    if packed:
        zipped(files | {broken: data}, tmp_path / "UTKFace.zip", "UTKFace/")
        shutil.rmtree(tmp_path / "UTKFace")
    assert f"{broken} cannot be used: " in the_line("utkface", tmp_path)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    files = write_faces(tmp_path / "folder")
    path = tmp_path / "UTKFace.zip"
    zipped(files, path, "")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert f"{path} cannot be used: File is not a zip file. " in the_line("utkface", tmp_path)
    path.write_bytes(whole.replace(files[sorted(files)[0]], bytes(len(files[sorted(files)[0]]))))
    assert f"{path / sorted(files)[0]} cannot be used: Bad CRC-32" in the_line("utkface", tmp_path)


def test_a_folder_with_too_few_too_many_or_other_pictures_is_refused(tmp_path: Path) -> None:
    files = write_faces(tmp_path)
    folder = tmp_path / "UTKFace"
    (folder / "3_0_0_1.jpg").write_bytes(jpeg(0))
    assert f"{folder} cannot be used: it holds 26 images named by age, not 25" in the_line(
        "utkface", tmp_path
    )
    for name in ("3_0_0_1.jpg", *sorted(files)[:1]):
        (folder / name).unlink()
    assert "it holds 24 images named by age, not 25" in the_line("utkface", tmp_path)
    for path in files_of(folder):
        path.rename(folder / f"img_{path.name}")
    (folder / "img_x.jpg").write_bytes(jpeg(0))
    assert "it holds 0 images named by age, not 25" in the_line("utkface", tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    assert "it holds no JPEG files" in the_line("utkface", tmp_path)


# ---- any bytes at all ------------------------------------------------------------------------------------


def reader(kind: str) -> tuple[Callable[[Path], Any], bytes]:
    """A reader and a file it reads."""
    images, labels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, -1), [1, 2]
    if kind == "idx":
        return read_idx, gzip.compress(idx(images))
    if kind == "batch":
        return lambda path: read_batch(path, "labels"), python2_pickle({"data": images, "labels": labels})
    return lambda path: read_jpeg(path.read_bytes(), 24), jpeg(3)


@pytest.mark.parametrize("kind", ["idx", "batch", "jpeg"])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_an_error_that_is_told_or_harmless(
    kind: str, data: st.DataObject, tmp_path: Path
) -> None:
    """Cut at any place, any few bytes changed: an array, or an exception of those that become a line. Not for
    .mat, since scipy's reader can crash; it sees files with the right sum only.
    """
    read, whole = reader(kind)
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, min(len(damaged), 400) - 1)), max_size=4)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    with suppress(*DECODING, MemoryError):
        assert (
            read(write_to(tmp_path / f"damaged{'.gz' if kind == 'idx' else ''}", bytes(damaged))) is not None
        )


# ---- prepare ---------------------------------------------------------------------------------------------


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What torchvision's downloader gets for each file name; the network is not touched."""
    offered: dict[str, bytes] = {}

    def retrieve(url: str, filename: Any, chunk_size: int = 0) -> None:
        name = url.rsplit("/", 1)[1]
        if name not in offered or "broken" in url:
            raise OSError(f"no {name} there")
        Path(filename).write_bytes(offered[name])

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    return offered


def offer(name: str, folder: Path, offered: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a dataset as they are downloaded."""
    if name not in CIFAR:
        offered |= {path.name: path.read_bytes() for path in files_of(folder)}
        return
    archive = shutil.make_archive(str(folder / "archive"), "gztar", folder, CIFAR[name].base_folder)
    offered[CIFAR[name].filename] = Path(archive).read_bytes()
    monkeypatch.setattr(CIFAR[name], "tgz_md5", md5(Path(archive)))


@pytest.mark.parametrize("name", [*GREY, *CIFAR, "svhn"])
def test_prepare_fetches_what_is_missing_and_replaces_what_is_damaged(
    name: str, tmp_path: Path, downloads: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(name, tmp_path / "there", monkeypatch)
    offer(name, tmp_path / "there", downloads, monkeypatch)
    here = tmp_path / "here"
    assert str(here) in small(name).prepare(here)
    first = small(name).load(here)
    parts = [(first.pool_images, first.pool_labels), (first.test_images, first.test_labels)]
    assert_equal(small(name).load(tmp_path / "there"), parts)
    for path in files_of(here):
        path.write_bytes(path.read_bytes()[:-9])
    the_line(name, here)
    small(name).prepare(here)
    assert_equal(small(name).load(here), parts)
    downloads.clear()
    assert str(here) in small(name).prepare(here), "nothing to fetch, nothing fetched"


def test_prepare_goes_to_the_next_mirror(
    tmp_path: Path, downloads: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "there", "mnist", monkeypatch)
    offer("mnist", tmp_path / "there", downloads, monkeypatch)
    monkeypatch.setattr(theirs.MNIST, "mirrors", ["http://broken.invalid/", "http://good.invalid/"])
    small("mnist").prepare(tmp_path / "here")
    assert len(small("mnist").load(tmp_path / "here").pool_labels) == POOL
    monkeypatch.setattr(theirs.MNIST, "mirrors", ["http://good.invalid/", "http://broken.invalid/"])
    small("mnist").prepare(tmp_path / "elsewhere")


def test_a_download_with_another_sum_is_refused(
    tmp_path: Path, downloads: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_svhn(tmp_path / "there", monkeypatch)
    offer("svhn", tmp_path / "there", downloads, monkeypatch)
    downloads["test_32x32.mat"] += b"more"
    with pytest.raises(RuntimeError, match="corrupted"):
        small("svhn").prepare(tmp_path / "here")
    the_line("svhn", tmp_path / "here")


def test_loading_never_downloads(
    downloads: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)
    for name in NAMES:
        the_line(name, tmp_path, FileNotFoundError)
