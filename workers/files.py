"""Reading the files of datasets: idx, CIFAR's pickles, .mat, folders and zips of JPEGs.

Nothing in a file is run. What is missing, cut or another file ends in one line that names the file and says
what to do. Only the functions called prepare… and fetch… use the network.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError


class Damaged(FileNotFoundError):
    """A file is there and is not what it should be."""


# What decoders raise for damaged files. Not all exceptions: a time limit may strike in here too.
DECODING = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(pickle.UnpicklingError, zlib.error, struct.error, zipfile.BadZipFile, Image.DecompressionBombError),
)


def what_to_run(name: str, folder: Path) -> str:
    """The command that puts a dataset right."""
    return f"Run `lethe prepare {name} --data {shlex.quote(str(folder))}`."


@contextmanager
def reading(name: str, folder: Path, path: Path, first: str = "") -> Iterator[None]:
    """Whatever goes wrong inside with the file `path` of dataset `name`, as one line: FileNotFoundError when
    it is missing, Damaged when it is cut, foreign or unreadable. first: what to do before the command to run.
    """
    to_do = f"{first} {what_to_run(name, folder)}".strip()
    try:
        yield
    except Damaged:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: {path} is missing. {to_do}") from None
    except DECODING as error:
        raise Damaged(f"{name}: {path} cannot be used: {why(error)}. {to_do}") from error


def why(error: Exception) -> str:
    """What went wrong with a file, as a few words without a full stop."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format that is known"  # Pillow's own words hold an address in memory
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return reason[:200].rstrip(".")


def check_md5(path: Path, md5: str) -> None:
    """ValueError unless the file has this MD5 sum."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise ValueError(f"its MD5 sum is {found}, that of the official file is {md5}")


def checked(
    images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images as they are and the labels as int64; ValueError unless the images are uint8 of `shape` and
    there is a label from 0 to num_classes − 1 for each.
    """
    if images.dtype != np.uint8 or images.shape != shape:
        raise ValueError(f"its images are {images.dtype} {images.shape}, not uint8 {shape}")
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise ValueError(f"its labels are {labels.dtype} {labels.shape}, not whole numbers {shape[:1]}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"its labels go from {low} to {high}, allowed are 0 to {num_classes - 1}")
    return images, labels.astype(np.int64)


def prepare(dataset: Any, folder: Path, fetch: Callable[[], None]) -> None:
    """Fetch a dataset unless it can be read already, and read all of it; FileNotFoundError in one line."""
    try:
        dataset.load(folder)
    except FileNotFoundError:
        fetch()
        dataset.load(folder)


# ---- idx, the format of MNIST ----------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, gzipped if its name ends in .gz; ValueError when it is no such file.

    Two zero bytes, 8 for unsigned bytes, the number of dimensions, each length as a big-endian uint32, data.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    if data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"it starts with the bytes {data[:4].hex(' ')}, an idx file of images with 00 00 08")
    start = 4 + 4 * data[3]
    shape = tuple(int(length) for length in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise ValueError(f"it holds {len(data) - start:,} values where its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_path(path: Path) -> Path:
    """The file as it was downloaded, with a known MD5 sum, or where that is missing the extracted one."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() else path


def load_idx(dataset: Any, folder: Path, source: Any) -> tuple[np.ndarray, ...]:
    """Pool images (n, 28, 28), pool labels, test images and test labels of a dataset in MNIST's files.

    source: torchvision's class, for the folder, names and MD5 sums.
    """
    found: list[np.ndarray] = []
    for part, count in (("train", dataset.pool_size), ("t10k", dataset.test_size)):
        images_path, labels_path = (
            idx_path(folder / source.__name__ / "raw" / f"{part}-{what}-ubyte")
            for what in ("images-idx3", "labels-idx1")
        )
        images, labels = (
            _idx(dataset, folder, path, dict(source.resources)) for path in (images_path, labels_path)
        )
        shape = (count, 28, 28)
        with reading(dataset.name, folder, images_path if images.shape != shape else labels_path):
            found += checked(images, labels, shape, dataset.num_classes)
    return tuple(found)


def _idx(dataset: Any, folder: Path, path: Path, md5s: dict[str, str]) -> np.ndarray:
    with reading(dataset.name, folder, path):
        if path.name in md5s:
            check_md5(path, md5s[path.name])
        return read_idx(path)


def prepare_idx(dataset: Any, folder: Path, source: Any) -> str:
    """Download and verify what cannot be read yet; returns where the files are."""
    raw = folder / source.__name__ / "raw"

    def fetch() -> None:
        for name, md5 in source.resources:
            fetch_first([mirror + name for mirror in source.mirrors], raw, md5)

    prepare(dataset, folder, fetch)
    return str(raw)


def fetch_first(urls: Sequence[str], folder: Path, md5: str) -> None:
    """Download a file from the first address that gives it, unless it is there with this MD5 sum."""
    from torchvision.datasets.utils import download_url

    for url in urls[:-1]:
        try:
            return download_url(url, str(folder), md5=md5)
        except (OSError, RuntimeError, HTTPException):
            continue
    return download_url(urls[-1], str(folder), md5=md5)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Grey images (n, h, w) as (n, 1, size, size), each by Pillow's antialiased bilinear filter, as
    torchvision's Resize treats PIL images.
    """
    found = np.empty((len(images), 1, size, size), np.uint8)
    for place, image in enumerate(images):
        found[place, 0] = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return found


# ---- CIFAR's pickles -------------------------------------------------------------------------------------


class _Dtype:
    """Stands in for numpy.dtype: its name, e.g. 'u1'."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        """Byte order and alignment, which bytes have none of."""


class _Array:
    """Stands in for numpy.ndarray and its constructor; after its state was set, `array` is the data."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, by_columns, data = state
        if dtype.name not in ("u1", "|u1"):
            raise pickle.UnpicklingError(f"it holds an array of {dtype.name}, not of bytes")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_columns else "C")


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes where it imitates Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows what the batches of CIFAR hold, arrays of bytes, and for these only stand-ins without power."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in; UnpicklingError for everything else, before anything of it is imported."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(
                f"it calls {module}.{name}, which no CIFAR file does; it was not run"
            )
        return self.KNOWN[module, name]


def read_batch(path: Path, *labels: str) -> tuple[np.ndarray, ...]:
    """Images (n, 3, 32, 32) and labels of one of CIFAR's pickles, those under each of its keys `labels`."""
    with path.open("rb") as file:
        batch = _Unpickler(file, encoding="latin1").load()
    if not isinstance(batch, dict) or not {"data", *labels} <= batch.keys():
        raise ValueError(f"it is a pickle without the keys data and {' and '.join(labels)}")
    return batch["data"].array.reshape(-1, 3, 32, 32), *(np.asarray(batch[name]) for name in labels)


def load_batches(
    dataset: Any, folder: Path, source: Any, labels: str, subclasses: str | None = None
) -> tuple[np.ndarray, ...]:
    """Pool images and labels, test images and labels, and, where their key is given, the subclasses of both.

    source: torchvision's class, for names and MD5 sums.
    """
    keys = {labels: dataset.num_classes}
    if subclasses is not None:
        keys[subclasses] = dataset.num_subclasses
    found: list[list[np.ndarray]] = []
    for files, size in ((source.train_list, dataset.pool_size), (source.test_list, dataset.test_size)):
        parts = []
        for name, md5 in files:
            path = folder / source.base_folder / name
            with reading(dataset.name, folder, path):
                check_md5(path, md5)
                shape = (size // len(files), 3, 32, 32)
                images, *of_keys = read_batch(path, *keys)
                pairs = zip(of_keys, keys.values(), strict=True)
                parts.append([images, *(checked(images, of, shape, count)[1] for of, count in pairs)])
        found.append([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
    (pool_images, pool_labels, *pool_further), (test_images, test_labels, *test_further) = found
    return pool_images, pool_labels, test_images, test_labels, *pool_further, *test_further


def prepare_batches(dataset: Any, folder: Path, source: Any) -> str:
    """Download and verify what cannot be read yet; returns where the files are."""
    from torchvision.datasets.utils import download_and_extract_archive

    def fetch() -> None:
        download_and_extract_archive(source.url, str(folder), filename=source.filename, md5=source.tgz_md5)

    prepare(dataset, folder, fetch)
    return str(folder / source.base_folder)


# ---- .mat ------------------------------------------------------------------------------------------------


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB 5 file; ValueError when it is none or one is missing.

    Check the file's sum first: scipy's reader was seen to crash the process on files with one byte changed.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(str(path), variable_names=names, appendmat=False)
    except MatReadError as error:
        raise ValueError(str(error)) from None
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it holds no variable {' and '.join(missing)}")
    return [found[name] for name in names]


# ---- folders and zips of pictures ------------------------------------------------------------------------


@contextmanager
def pictures(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The JPEG files of a folder or a zip, sorted by their file names, and a function that reads one.

    Of several folders inside, which may hold copies, the one called like `path` counts, else the outermost.
    """
    if path.is_dir():
        names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        yield _of_one_folder(names, path.stem), lambda name: (path / name).read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        yield _of_one_folder(archive.namelist(), path.stem), archive.read


def _of_one_folder(names: Iterable[str], wanted: str) -> list[str]:
    jpegs = {PurePosixPath(name): name for name in names if name.lower().endswith((".jpg", ".jpeg"))}
    if not jpegs:
        raise ValueError("it holds no JPEG files")
    folder = min({path.parent for path in jpegs}, key=lambda p: (p.name != wanted, len(p.parts), p))
    return [jpegs[path] for path in sorted(jpegs, key=lambda p: p.name) if path.parent == folder]


def read_jpeg(data: bytes, size: int) -> np.ndarray:
    """A JPEG file in colour, (3, size, size) uint8, resized as `resized` does."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
        colour = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(colour).transpose(2, 0, 1)
