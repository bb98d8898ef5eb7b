"""Files of datasets that are missing, cut, foreign or hostile end in one line, and nothing in them is run."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from torchvision import datasets as theirs

from tests.dataset_files import (
    CIFAR,
    GREY,
    NAMES,
    POOL,
    TEST,
    files_of,
    idx,
    jpeg,
    md5,
    python2_pickle,
    small,
    the_line,
    write,
    write_batches,
    write_faces,
    write_idx,
    write_svhn,
    write_to,
    zipped,
)
from workers.files import DECODING, read_batch, read_idx, read_jpeg, reading
from workers.run_task import TimeLimit

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


def test_a_time_limit_or_too_little_memory_is_no_damage(tmp_path: Path) -> None:
    """What strikes while a file is read keeps its own kind of failure."""
    for error in (TimeLimit("longer than 1 s"), MemoryError()):
        with pytest.raises(type(error)), reading("mnist", tmp_path, tmp_path / "x"):
            raise error


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
    assert "the keys data and coarse_labels and fine_labels" in the_line("cifar20", tmp_path)


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
    line = the_line("utkface", tmp_path)
    assert f"{broken} cannot be used: " in line and ". Replace it by hand. Run `lethe" in line


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
