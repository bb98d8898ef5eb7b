"""Datasets read from small files in their true formats are what torchvision reads; prepare fetches them."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from torchvision import datasets as theirs
from torchvision.transforms import Resize

from tests.conftest import Lethe
from tests.dataset_files import (
    CIFAR,
    GREY,
    NAMES,
    POOL,
    TEST,
    assert_equal,
    files_of,
    md5,
    python2_pickle,
    small,
    the_line,
    write,
    write_batches,
    write_faces,
    write_idx,
    write_svhn,
    zipped,
)
from workers.files import resized

# ---- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", GREY)
def test_mnist_is_resized_as_torchvision_resizes_pil_images(
    name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_idx(tmp_path, name, monkeypatch, packed=packed)
    resize = Resize((32, 32))
    expected = [
        (np.stack([np.asarray(resize(Image.fromarray(image)))[None] for image in images]), labels)
        for images, labels in parts
    ]
    assert_equal(small(name).load(tmp_path), expected)


def test_the_resized_image_is_known() -> None:
    """A bright column 10 of 28: at 28 / 32 per pixel, column c of the result sees (c + ½) · 28 / 32 − ½."""
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
    labels = np.asarray(there.targets) // 5 if name == "cifar20" else there.targets
    assert_equal(data, [(there.data.transpose(0, 3, 1, 2), labels), parts[1]])
    if name == "cifar20":
        assert data.pool_subclasses is not None and data.test_subclasses is not None
        assert np.array_equal(data.pool_subclasses, there.targets)
        assert np.array_equal(data.test_subclasses // 5, data.test_labels)
    else:
        assert data.pool_subclasses is None and data.test_subclasses is None


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


@pytest.mark.parametrize(
    "folders",
    [
        ("",),
        ("UTKFace/",),
        ("./UTKFace/",),
        ("a/UTKFace/", "A_part/", "a/crop_part1/", "b/UTKFace/", "a/A/UTKFace/"),
        ("faces/", "a/faces/", "zzz/"),
    ],
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


# ---- the command line ------------------------------------------------------------------------------------


def test_a_grid_runs_on_mnist_and_stops_at_a_damaged_file(
    lethe: Lethe,
    write_grid: Callable[..., Path],
    project_copy: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From files in MNIST's format to rows; the copy of the project expects fewer samples."""
    folder, data = project_copy(), tmp_path / "my data"
    source = folder / "workers" / "datasets" / "mnist.py"
    text = source.read_text(encoding="utf-8").replace("pool_size = 60000", f"pool_size = {POOL}")
    source.write_text(text.replace("test_size = 10000", f"test_size = {TEST}"), encoding="utf-8")
    write_idx(data, "mnist", monkeypatch, packed=False)
    grid = write_grid(datasets=["mnist"], seeds=1, audit=None, training={"all": {"epochs": 1}})
    again = ("run", grid, "--inline", "--data", data, "--results", tmp_path / "results")
    done = lethe(*again, cwd=folder)
    assert done.returncode == 0 and "All 3 tasks are done" in done.stdout, done.stderr
    labels = data / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-2])
    done = lethe(*again[:-1], tmp_path / "others", cwd=folder)
    assert done.returncode == 2 and not (tmp_path / "others").exists()
    [line] = done.stderr.splitlines()
    assert line == (
        f"mnist: {labels} cannot be used: it holds 3 values where its header says (5,)."
        f" Run `lethe prepare mnist --data '{data}'`."
    )


def test_doctor_and_prepare_tell_damaged_from_missing(lethe: Lethe, tmp_path: Path) -> None:
    from orchestrator.doctor import Check, _dataset

    missing = f"not in {tmp_path}. Run `lethe prepare utkface --data {tmp_path}`."
    assert _dataset("utkface", str(tmp_path)) == Check("utkface", "ok", missing)
    (tmp_path / "UTKFace").mkdir()
    check = _dataset("utkface", str(tmp_path))
    told = check.text
    assert check.state == "FAIL"
    assert f"{tmp_path / 'UTKFace'} cannot be used: it holds no JPEG files. Replace it" in told
    done = lethe("prepare", "utkface", "--data", tmp_path)
    assert done.returncode == 2 and done.stderr == f"{told}\n"
