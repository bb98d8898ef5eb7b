"""Any folder of pictures as a dataset: FOLDER/CLASS/…/picture, or that below FOLDER/train and FOLDER/test.

The layout is that of torchvision's ImageFolder. Classes are the sorted names of the folders, samples stand in
the order of classes and names. With train and test the test set is the folder's own, else it is a fifth of
each class, always the same one. Instead of a folder there can be a zip of it.

A picture is turned upright by its EXIF tag, brought to 8 bits, to colour or grey, and resized to size × size
by Pillow's antialiased bilinear filter; transparency is dropped, as torchvision's loader does. Files that are
no pictures, pictures that cannot be read and links that leave the folder are left out and told.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from workers.data import Arrays
from workers.designs import rng
from workers.files import DECODING, Damaged, why

version = 1  # part of the id of every model trained on such a folder: raise it when the arrays change

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
UNREADABLE = (*DECODING, SyntaxError)  # Pillow's word for a broken chunk of a PNG


@dataclass(frozen=True)
class Found:
    """What a folder holds. sha256: of the names and bytes of the pictures that can be read. official: whether
    the test set is the folder's own. unreadable, left_out: a line for each file.
    """

    arrays: Arrays
    classes: tuple[str, ...]
    sha256: str
    official: bool
    unreadable: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ImageFolder:
    """A folder and what it has to hold. name: as in task specifications. title: what its user calls it. path:
    absolute, or below the folder of the datasets.
    """

    name: str
    title: str
    path: str
    size: int
    channels: int
    num_classes: int
    pool_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    augment_pad: int = 0
    augment_flip: bool = False

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when the folder is missing or holds other pictures."""
        source = located(self.path, folder)
        try:
            found = scan(source, self.size, self.channels)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.title}: {source} is missing. Put the pictures there, or correct `path` in the grid: a"
                " relative one is taken below --data."
            ) from None
        except UNREADABLE as error:
            raise Damaged(
                f"{self.title}: {source} cannot be used: {why(error)}. {self._to_do(folder)}"
            ) from error
        if differences := self._differences(found):
            raise Damaged(
                f"{self.title}: {source} is not the folder of the grid: {differences}. {self._to_do(folder)}"
            )
        return found.arrays

    def prepare(self, folder: Path) -> str:
        """Verify the folder, since there is nothing to fetch; returns what is there."""
        arrays = self.load(folder)
        return f"{len(arrays.pool_labels) + len(arrays.test_labels):,} images in {located(self.path, folder)}"

    def _differences(self, found: Found) -> str:
        """What differs from what was declared, as text; empty if nothing does."""
        counts = {
            "classes": (self.num_classes, len(found.classes)),
            "images in the pool": (self.pool_size, len(found.arrays.pool_labels)),
            "images in the test set": (self.test_size, len(found.arrays.test_labels)),
        }
        told = [
            f"{there} {what}, not {declared}"
            for what, (declared, there) in counts.items()
            if declared != there
        ]
        if found.sha256 != self.sha256:
            told.append(f"its sha256 is {found.sha256[:16]}…, not {self.sha256[:16]}…")
        if told and found.unreadable:
            told.append(f"{len(found.unreadable)} cannot be read, first {found.unreadable[0]}")
        return "; ".join(told)

    def _to_do(self, folder: Path) -> str:
        words = [
            "lethe",
            "prepare",
            "image_folder",
            self.path,
            "--size",
            str(self.size),
            "--name",
            self.title,
        ]
        words += [] if self.channels == 3 else ["--channels", str(self.channels)]
        words += [] if Path(self.path).expanduser().is_absolute() else ["--data", str(folder)]
        return f"Restore it, or take it as it is with the entry that `{shlex.join(words)}` prints."


def located(path: str, folder: Path) -> Path:
    """Where a path of a grid is: absolute ones as they are, others below the folder of the datasets."""
    return folder / Path(path).expanduser()


def scan(path: Path, size: int, channels: int) -> Found:
    """Read a folder or a zip: images (n, channels, size, size) uint8 and what else a grid has to say of them.

    FileNotFoundError when it is missing, ValueError or another of UNREADABLE when it cannot be a dataset.
    """
    if not path.exists():
        raise FileNotFoundError(str(path))
    with _opened(path) as (files, folders, read, left_out):
        pictures, official, strays = _arranged(files)
        images = np.empty((len(pictures), channels, size, size), np.uint8)
        digest, kept, unreadable = hashlib.sha256(), [], []
        for parts, name in pictures:
            try:
                data = read(name)
                images[len(kept)] = read_picture(data, size, channels)
            except UNREADABLE as error:
                unreadable.append(f"{shown('/'.join(parts))}: {why(error)}")
                continue
            kept.append(parts)
            named = "/".join(parts).encode("utf-8", "surrogateescape")
            digest.update(hashlib.sha256(named).digest() + hashlib.sha256(data).digest())
    images = images[: len(kept)]
    start = int(official)  # the class stands behind train or test
    classes = sorted({parts[start] for parts in kept})
    number = {name: place for place, name in enumerate(classes)}
    labels = np.array([number[parts[start]] for parts in kept], np.int64)
    test = np.array([parts[0] == "test" for parts in kept]) if official else _fifth(labels)
    _check(classes, labels, test, official, unreadable)
    empty = {parts[start] for parts in folders if len(parts) > start} - set(classes)
    return Found(
        Arrays(images[~test], labels[~test], images[test], labels[test]),
        tuple(map(shown, classes)),
        digest.hexdigest(),
        official,
        tuple(unreadable),
        (*left_out, *strays, *(f"{shown(name)}: a folder without pictures" for name in sorted(empty))),
    )


def _fifth(labels: np.ndarray) -> np.ndarray:
    """A test set: a fifth of each class, at least one sample; a bool mask (n,)."""
    generator, test = rng("image_folder", "test"), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        test[own[: max(1, round(len(own) / 5))]] = True
    return test


def _check(
    classes: list[str], labels: np.ndarray, test: np.ndarray, official: bool, unreadable: list[str]
) -> None:
    """ValueError unless there are two classes, each with samples in the pool and in the test set."""
    if len(classes) < 2:
        what = (
            f"one class of pictures, {shown(classes[0])}" if classes else "no pictures in folders of classes"
        )
        first = f"; {len(unreadable)} cannot be read, first {unreadable[0]}" if unreadable else ""
        raise ValueError(f"it holds {what}{first}; write FOLDER/CLASS/picture.jpg with two classes or more")
    for part, among in (("pool", ~test), ("test set", test)):
        lacking = [
            shown(classes[c]) for c in np.flatnonzero(np.bincount(labels[among], minlength=len(classes)) == 0)
        ]
        if lacking:
            needed = "each class needs pictures below train and below test" if official else "each needs two"
            raise ValueError(f"no picture is left for the {part} of {', '.join(lacking[:5])}; {needed}")


# ---- files -----------------------------------------------------------------------------------------------

Parts = tuple[str, ...]
Tree = tuple[dict[Parts, str], set[Parts], Callable[[str], bytes], list[str]]


@contextmanager
def _opened(path: Path) -> Iterator[Tree]:
    """The files of a folder or a zip by the parts of their normalised names, its folders, a function that
    reads a file by its own name, and lines on what is not looked at. Hidden files are no files here.
    """
    if path.is_dir():
        files, folders, left_out = _walked(path)
        yield files, folders, lambda name: (path / name).read_bytes(), left_out
        return
    with zipfile.ZipFile(path) as archive:
        entries = {parts: info for info in archive.infolist() if (parts := _parts(info.filename))}
        files = {parts: info.filename for parts, info in entries.items() if not info.is_dir()}
        folders = {parts for parts, info in entries.items() if info.is_dir()}
        left_out: list[str] = []
        while (inner := _only_folder(files)) is not None:  # the folder that was packed
            beside = sorted(parts for parts in files if parts[0] != inner)
            left_out += [f"{shown('/'.join(parts))}: beside the folder of the pictures" for parts in beside]
            files = {parts[1:]: name for parts, name in files.items() if parts[0] == inner}
            folders = {parts[1:] for parts in folders if parts[0] == inner}
        yield files, folders, archive.read, left_out


def _walked(root: Path) -> tuple[dict[Parts, str], set[Parts], list[str]]:
    files: dict[Parts, str] = {}
    folders: set[Parts] = set()
    left_out: list[str] = []
    inside = Path(os.path.realpath(root))

    def stop(error: OSError) -> None:
        raise error

    for folder, below, names in os.walk(root, onerror=stop):
        here = Path(folder).relative_to(root)
        links = {name for name in below if (root / here / name).is_symlink()}
        left_out += [f"{shown(str(here / name))}: a link to a folder, not followed" for name in sorted(links)]
        below[:] = [name for name in below if name not in links and not name.startswith(".")]
        folders |= {_parts((here / name).as_posix()) for name in below}
        for name in sorted(names):
            path, text = root / here / name, (here / name).as_posix()
            if not Path(os.path.realpath(path)).is_relative_to(inside):
                left_out.append(f"{shown(text)}: a link that leaves the folder, not followed")
            elif not os.path.exists(os.path.realpath(path)):
                left_out.append(f"{shown(text)}: a link to nothing")
            elif os.path.isfile(path) and (parts := _parts(text)) and files.setdefault(parts, text) != text:
                left_out.append(f"{shown(text)}: the name of another file, spelt in other code points")
    return files, folders, left_out


def _parts(name: str) -> Parts:
    """The parts of a path in Unicode's composed form, which one file system has and another has not; () for a
    hidden one.
    """
    parts = tuple(part for part in PurePosixPath(unicodedata.normalize("NFC", name)).parts if part != "/")
    return () if any(part.startswith((".", "__MACOSX")) for part in parts) else parts


def _is_picture(parts: Parts) -> bool:
    return parts[-1].lower().endswith(ENDINGS)


def _only_folder(files: dict[Parts, str]) -> str | None:
    """The one folder that holds all pictures in folders of its own; None if there is no such."""
    pictures = [parts for parts in files if _is_picture(parts)]
    tops = {parts[0] for parts in pictures}
    return tops.pop() if len(tops) == 1 and all(len(parts) > 2 for parts in pictures) else None


def _arranged(files: dict[Parts, str]) -> tuple[list[tuple[Parts, str]], bool, list[str]]:
    """The pictures in folders of classes, sorted; whether train and test are apart; lines on other files."""
    every = sorted(files.items())
    split = {parts[0] for parts in files if len(parts) > 2 and _is_picture(parts)}
    official = {"train", "test"} <= split
    pictures, strays = [], []
    for parts, name in every:
        if not _is_picture(parts):
            strays.append(f"{shown('/'.join(parts))}: no picture by its name")
        elif official and parts[0] not in ("train", "test"):
            strays.append(f"{shown('/'.join(parts))}: neither in train nor in test")
        elif len(parts) < 2 + official:
            strays.append(f"{shown('/'.join(parts))}: in no folder of a class")
        else:
            pictures.append((parts, name))
    return pictures, official, strays


def shown(name: str) -> str:
    """A name that can be printed on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


# ---- pictures --------------------------------------------------------------------------------------------


def read_picture(data: bytes, size: int, channels: int) -> np.ndarray:
    """A picture as (channels, size, size) uint8; one of UNREADABLE for what is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata and large pictures
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            picture.load()
            plain = _eight_bits(_upright(picture), str(picture.format))
        plain = plain.convert("RGB" if channels == 3 else "L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(size, size, channels).transpose(2, 0, 1)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; as it is where the tag cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except UNREADABLE:
        return picture


def _eight_bits(picture: Image.Image, form: str) -> Image.Image:
    """A picture of 16 bits by its upper 8; Pillow itself would cut all brighter values to white."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and form in ("PNG", "PPM")):
        values = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; 8 and 16 can be read")
    return picture
