"""Folders of pictures: what is read is what torchvision reads, and whatever else lies there is told."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets as theirs
from torchvision.transforms import Resize

from tests.dataset_files import image_folder, picture, write_file, write_pictures
from workers.data import Arrays
from workers.files import Damaged
from workers.image_folder import UNREADABLE, Found, ImageFolder, read_picture, scan, shown
from workers.run_task import TimeLimit
from workers.worker import Worker


def look(folder: Path, size: int = 8, channels: int = 3) -> Found:
    return scan(folder, size, channels)


def same(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def by_torchvision(folder: Path, size: int) -> tuple[list[bytes], list[int], list[str]]:
    there = theirs.ImageFolder(str(folder), transform=Resize((size, size)))
    pixels = [np.asarray(image).transpose(2, 0, 1).tobytes() for image, _ in there]
    return pixels, there.targets, there.classes


# ---- what is read ----------------------------------------------------------------------------------------


def test_train_and_test_are_what_torchvision_reads(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("rose", "Daisy", "a-b", "a"), parts=("test", "train"))
    write_file(tmp_path / "train" / "a" / "deep" / "er" / "x.png", picture())
    found = look(tmp_path)
    for part, images, labels in (
        ("train", found.arrays.pool_images, found.arrays.pool_labels),
        ("test", found.arrays.test_images, found.arrays.test_labels),
    ):
        pixels, targets, classes = by_torchvision(tmp_path / part, 8)
        assert list(found.classes) == classes == ["Daisy", "a", "a-b", "rose"]
        assert labels.tolist() == targets
        assert sorted(zip(targets, [image.tobytes() for image in images], strict=True)) == sorted(
            zip(targets, pixels, strict=True)
        )
    assert found.official and not found.left_out and len(found.arrays.pool_labels) == 21


def test_without_train_and_test_a_fifth_of_each_class_is_the_test_set(tmp_path: Path) -> None:
    for name, count in (("few", 2), ("five", 5), ("twelve", 12), ("forty", 40)):
        write_pictures(tmp_path, (name,), each=count)
    found = look(tmp_path)
    assert found.classes == ("few", "five", "forty", "twelve") and not found.official
    assert np.bincount(found.arrays.test_labels).tolist() == [1, 1, 8, 2]
    assert np.bincount(found.arrays.pool_labels).tolist() == [1, 4, 32, 10]
    pixels, targets, _ = by_torchvision(tmp_path, 8)
    ours = [*found.arrays.pool_images, *found.arrays.test_images]
    labels = [*found.arrays.pool_labels, *found.arrays.test_labels]
    assert sorted((int(y), x.tobytes()) for x, y in zip(ours, labels, strict=True)) == sorted(
        zip(targets, pixels, strict=True)
    ), "nothing lost, nothing twice"
    assert same(found.arrays, look(tmp_path).arrays)
    wholes = [pixels.index(image.tobytes()) for image in found.arrays.test_images]
    assert wholes != list(range(wholes[0], wholes[0] + len(wholes))) and wholes == sorted(wholes)


def test_the_order_of_a_listing_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, ("b", "a", "c"), each=6)
    one, walk = look(tmp_path), os.walk

    def backwards(*arguments: Any, **options: Any) -> Iterator[Any]:
        for folder, below, names in walk(*arguments, **options):
            below.reverse()
            yield folder, below, names[::-1]

    monkeypatch.setattr("os.walk", backwards)
    other = look(tmp_path)
    assert same(one.arrays, other.arrays) and one.sha256 == other.sha256


def test_sha256_is_of_names_and_bytes_of_pictures(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "here")
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(files[name]).digest())
    assert look(tmp_path / "here").sha256 == digest.hexdigest()
    for name in ("notes.txt", "daisy/Thumbs.db", ".hidden/x.png", "daisy/._0.png", "x.png"):
        write_file(tmp_path / "here" / name, picture())
    (tmp_path / "here").rename(tmp_path / "there")
    assert look(tmp_path / "there").sha256 == digest.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "daisy").rename(folder / "lily"),
        lambda folder: (folder / "daisy" / "0.png").rename(folder / "daisy" / "9.png"),
        lambda folder: (folder / "daisy" / "0.png").rename(folder / "rose" / "0 0.png"),
        lambda folder: (folder / "daisy" / "0.png").unlink(),
        lambda folder: (folder / "daisy" / "0.png").write_bytes(picture()),
        lambda folder: (folder / "daisy" / "9.png").write_bytes(picture()),
        lambda folder: (folder / "daisy" / "0.png").write_bytes(b"damaged"),
    ],
)
def test_other_pictures_than_the_grid_says_are_one_line(change: Any, tmp_path: Path) -> None:
    folder = tmp_path / "it's a földer"
    write_pictures(folder)
    dataset = image_folder(folder)
    assert same(dataset.load(Path()), look(folder).arrays)
    change(folder)
    line = the_line(dataset, Damaged)
    assert line.startswith(f"flowers: {folder} is not the folder of the grid: ") and "its sha256 is" in line
    quoted = f"'{tmp_path}/it'\"'\"'s a földer'"
    assert f"`lethe prepare image_folder {quoted} --size 8 --name flowers` prints" in line
    below = dataclasses.replace(dataset, path="it's a földer", channels=1)
    relative = "'it'\"'\"'s a földer' --size 8 --name flowers --channels 1"
    assert f"`lethe prepare image_folder {relative} --data {tmp_path}` prints" in the_line(
        below, Damaged, tmp_path
    )
    if (folder / "daisy" / "0.png").exists() and (folder / "daisy" / "0.png").read_bytes() == b"damaged":
        assert "1 cannot be read, first daisy/0.png: no image format that is known" in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pool_size": 9}, "8 images in the pool, not 9"),
        ({"test_size": 1}, "2 images in the test set, not 1"),
        ({"num_classes": 3}, "2 classes, not 3"),
    ],
)
def test_a_count_that_is_wrong_in_the_grid_is_one_line(
    changes: dict[str, int], told: str, tmp_path: Path
) -> None:
    write_pictures(tmp_path)
    line = the_line(image_folder(tmp_path, channels=1, **changes), Damaged)
    assert told in line and "sha256" not in line and "--channels 1" in line


def the_line(dataset: ImageFolder, kind: type[Exception], folder: Path = Path()) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        dataset.load(folder)
    assert type(caught.value) is kind and len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_relative_path_is_below_the_folder_of_the_datasets(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "flowers")
    dataset = image_folder(tmp_path / "data" / "flowers", path="flowers")
    assert len(dataset.load(tmp_path / "data").pool_labels) == 8
    assert dataset.prepare(tmp_path / "data") == f"10 images in {tmp_path / 'data' / 'flowers'}"
    line = the_line(dataset, FileNotFoundError, tmp_path / "elsewhere")
    assert line.startswith(f"flowers: {tmp_path / 'elsewhere' / 'flowers'} is missing. ") and "--data" in line


# ---- pictures --------------------------------------------------------------------------------------------

RED = (200, 100, 50)
GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def wide(form: str, **options: Any) -> bytes:
    """Left half black, right half white, 8 × 4."""
    file, image = io.BytesIO(), Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (4, 0, 8, 4))
    image.save(file, form, **options)
    return file.getvalue()


def palette(**options: Any) -> bytes:
    file, image = io.BytesIO(), Image.new("P", (12, 12), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(file, "PNG", **options)
    return file.getvalue()


def sixteen(form: str, value: int = 40_000) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((12, 12), value, np.uint16)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (picture(RED), RED),
        (picture(RED, "BMP"), RED),
        (picture(RED, "PPM"), RED),
        (picture(RED, "TIFF"), RED),
        (picture(RED, "WEBP", lossless=True), RED),
        (picture((*RED, 7), mode="RGBA"), RED),
        (picture((90, 7), mode="LA"), (90, 90, 90)),
        (picture(90, mode="L"), (90, 90, 90)),
        (picture(1, mode="1"), (255, 255, 255)),
        (palette(), RED),
        (palette(transparency=1), RED),
        (sixteen("PNG"), (156, 156, 156)),
        (sixteen("TIFF"), (156, 156, 156)),
        (b"P5 2 2 65535\n" + (40_000).to_bytes(2, "big") * 4, (156, 156, 156)),
    ],
)
def test_every_kind_of_picture_has_eight_bits_of_colour_or_grey(data: bytes, colour: tuple[int, ...]) -> None:
    """16 bits: 40,000 / 256 is 156; Pillow alone gives 255."""
    read = read_picture(data, 8, 3)
    assert read.dtype == np.uint8 and read.shape == (3, 8, 8)
    assert np.array_equal(read, np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, 8, 8)))
    grey = read_picture(data, 8, 1)
    assert grey.shape == (1, 8, 8) and set(grey.ravel().tolist()) == {GREY if colour == RED else colour[0]}


def test_cmyk_is_close_to_its_colour() -> None:
    data = picture((0, 128, 255, 0), "JPEG", "CMYK")
    assert np.abs(read_picture(data, 8, 3)[:, 4, 4].astype(int) - [255, 127, 0]).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "bright"),
    [(1, np.s_[:, 4:]), (3, np.s_[:, :4]), (6, np.s_[4:, :]), (8, np.s_[:4, :]), (99, np.s_[:, 4:])],
)
def test_exif_turns_a_picture_upright(orientation: int, bright: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "JPEG", "WEBP"):
        image = read_picture(wide(form, exif=exif.tobytes()), 8, 1)[0]
        there = np.zeros((8, 8), bool)
        there[bright] = True
        # Resizing and JPEG blur the edge between the halves.
        assert image[there].mean() > 240 and image[~there].mean() < 15, form


def test_exif_that_is_broken_turns_nothing() -> None:
    image = read_picture(wide("JPEG", exif=b"Exif\x00\x00garbage"), 8, 1)[0]
    assert image[:, 5:].min() > 240


def test_a_picture_named_as_another_kind_is_read_by_its_content(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_file(tmp_path / "rose" / "x.JPeG", picture(form="PNG"))
    assert len(look(tmp_path).arrays.pool_labels) == 9


def test_unreadable_pictures_are_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_pictures(tmp_path)
    whole = look(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(file, "TIFF")
    broken = {
        "daisy/cut.jpg": files["daisy/1.JPG"][:-60],
        "daisy/cut.png": files["daisy/0.png"][:-60],
        "daisy/empty.png": b"",
        "daisy/page.jpg": b"<html>",
        "daisy/new\nline.jpg": b"<html>",
        "rose/float.tif": file.getvalue(),
        "rose/huge.png": picture(size=150),
        "rose/chunk.png": picture().replace(b"IDAT", b"I\x00\xffT"),
    }
    for name, data in broken.items():
        write_file(tmp_path / name, data)
    found = look(tmp_path)
    assert same(found.arrays, whole.arrays) and found.sha256 == whole.sha256 and not found.left_out
    told = dict(line.split(": ", 1) for line in found.unreadable)
    assert set(told) == {shown(name) for name in broken}
    assert all(len(line.splitlines()) == 1 and " at 0x" not in line for line in found.unreadable)
    assert "truncated" in told["daisy/cut.jpg"] and "32 bits" in told["rose/float.tif"]
    assert told["daisy/page.jpg"] == told["daisy/empty.png"] == "no image format that is known"


def test_a_time_limit_and_too_little_memory_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path)
    dataset = image_folder(tmp_path)
    for error in (TimeLimit("longer than 1 s"), MemoryError()):

        def stop(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("workers.image_folder.read_picture", stop)
        with pytest.raises(type(error)):
            dataset.load(tmp_path)


WHOLE = {form: wide(form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")}


@pytest.mark.parametrize("form", WHOLE)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_an_error_that_is_told_or_harmless(form: str, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[form][: data.draw(st.integers(1, len(WHOLE[form])))])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(*UNREADABLE, MemoryError):
        assert read_picture(bytes(damaged), 8, 3).shape == (3, 8, 8)


# ---- what else lies in a folder --------------------------------------------------------------------------


def test_what_is_no_picture_of_a_class_is_told(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    whole = look(tmp_path)
    for name in ("notes.txt", "rose/list.csv", "stray.png", ".DS_Store", "rose/.hidden.png"):
        write_file(tmp_path / name, picture())
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "inside").mkdir(parents=True)
    found = look(tmp_path)
    assert same(found.arrays, whole.arrays) and found.classes == ("daisy", "rose")
    assert sorted(found.left_out) == [
        "empty: a folder without pictures",
        "notes.txt: no picture by its name",
        "rose/list.csv: no picture by its name",
        "stray.png: in no folder of a class",
        "texts: a folder without pictures",
    ]


def test_beside_train_and_test_nothing_counts(tmp_path: Path) -> None:
    write_pictures(tmp_path, parts=("train", "test", "val"))
    write_file(tmp_path / "train" / "x.png", picture())
    (tmp_path / "train" / "lily").mkdir()
    found = look(tmp_path)
    assert len(found.arrays.pool_labels) == len(found.arrays.test_labels) == 10
    assert "train/x.png: in no folder of a class" in found.left_out
    assert "lily: a folder without pictures" in found.left_out
    assert sum("neither in train nor in test" in line for line in found.left_out) == 10


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("train", "test", "bus"))
    assert look(tmp_path).classes == ("bus", "test", "train")


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "flowers", tmp_path / "outside"
    write_pictures(folder)
    whole = look(folder)
    write_pictures(outside, ("lily",))
    (folder / "rose" / "out.png").symlink_to(outside / "lily" / "0.png")
    (folder / "rose" / "up.png").symlink_to("../../outside/lily/0.png")
    (folder / "lily").symlink_to(outside / "lily")
    (folder / "loop").symlink_to(folder)
    (folder / "rose" / "round.png").symlink_to(folder / "rose" / "round.png")
    (folder / "rose" / "nowhere.png").symlink_to("nothing.png")
    found = look(folder)
    assert same(found.arrays, whole.arrays) and found.sha256 == whole.sha256 and not found.unreadable
    told = dict(line.split(": ", 1) for line in found.left_out)
    assert told == {
        "lily": "a link to a folder, not followed",
        "loop": "a link to a folder, not followed",
        "rose/out.png": "a link that leaves the folder, not followed",
        "rose/up.png": "a link that leaves the folder, not followed",
        "rose/round.png": "a link to nothing",
        "rose/nowhere.png": "a link to nothing",
    }
    (folder / "rose" / "twin.png").symlink_to("0.png")
    assert len(look(folder).arrays.pool_labels) == 9
    (tmp_path / "name").symlink_to(folder)
    assert look(tmp_path / "name").sha256 == look(folder).sha256, "the folder itself may be a link"


def test_names_beyond_ascii_are_the_same_on_every_file_system(tmp_path: Path) -> None:
    composed, apart = "T\u00fclpe", "Tu\u0308lpe"  # as Linux and as a Mac write it
    for folder in ("linux", "mac"):
        write_pictures(tmp_path / folder, (composed, "Tzz", "木"))
    (tmp_path / "mac" / composed).rename(tmp_path / "mac" / apart)
    one, other = look(tmp_path / "linux"), look(tmp_path / "mac")
    assert one.classes == other.classes == ("Tzz", composed, "木")
    assert one.sha256 == other.sha256 and same(one.arrays, other.arrays)
    for name in (composed, apart):
        write_file(tmp_path / "linux" / composed / f"{name}.png", picture())
    twice = look(tmp_path / "linux")
    assert len(twice.arrays.pool_labels) == len(one.arrays.pool_labels) + 1
    assert twice.left_out == (
        f"{composed}/{composed}.png: the name of another file, spelt in other code points",
    )


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "rose").rename(os.fsdecode(os.fsencode(tmp_path) + b"/ro\xffse\n"))
    assert look(tmp_path).classes == ("daisy", "ro\\udcffse\\n")


WRONG = [
    ({}, "no pictures in folders of classes"),
    ({"x.png": picture()}, "no pictures in folders of classes"),
    (
        {"daisy/0.png": picture(), "daisy/1.png": picture()},
        "one class of pictures, daisy; write FOLDER/CLASS/",
    ),
    (
        {"daisy/0.png": picture(), "rose/0.png": b""},
        "one class of pictures, daisy; 1 cannot be read, first rose",
    ),
    (
        {f"{c}/{i}.png": picture() for c, n in (("daisy", 2), ("rose", 1)) for i in range(n)},
        "pool of rose; each",
    ),
    (
        {name: picture() for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png")},
        "test set of b; each class needs pictures below train and below test",
    ),
    (
        {name: picture() for name in ("train/a/0.png", "test/b/0.png", "test/a/0.png")},
        "no picture is left for the pool of b",
    ),
]


@pytest.mark.parametrize(("files", "told"), WRONG)
def test_a_folder_that_is_no_dataset_is_one_line(files: dict[str, bytes], told: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "whole")
    dataset = image_folder(tmp_path / "whole", path=str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    for name, data in files.items():
        write_file(tmp_path / "here" / name, data)
    line = the_line(dataset, Damaged)
    assert (
        line.startswith(f"flowers: {tmp_path / 'here'} cannot be used: it holds ") or "no picture is" in line
    )
    assert told in line and line.endswith("prints.")


# ---- zips ------------------------------------------------------------------------------------------------


def packed(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in reversed(files.items()):
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("parts", [("",), ("train", "test")])
@pytest.mark.parametrize("prefix", ["", "./", "flowers/", "a/b/", "/"])
def test_a_zip_is_the_folder_it_was_made_of(prefix: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "folder", parts=parts)
    archive = packed({prefix + name: data for name, data in files.items()}, tmp_path / "x.zip")
    one, other = look(tmp_path / "folder"), look(archive)
    assert same(one.arrays, other.arrays) and one.sha256 == other.sha256 and one.classes == other.classes
    assert not other.left_out


def test_what_else_is_in_a_zip_is_told_and_never_written(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "folder")
    more = {f"flowers/{name}": data for name, data in files.items()}
    more |= {"__MACOSX/flowers/daisy/._0.png": b"x", "../../evil/x.png": picture(), "readme.md": b"x"}
    more |= {"flowers/rose/bad.png": b"x", "flowers/.git/x.png": picture(), "flowers/lily/": b""}
    found = look(packed(more, tmp_path / "x.zip"))
    assert found.sha256 == look(tmp_path / "folder").sha256
    assert found.left_out == (
        "readme.md: beside the folder of the pictures",
        "lily: a folder without pictures",
    )
    assert found.unreadable == ("rose/bad.png: no image format that is known",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x.zip"]


def test_a_damaged_zip_is_one_line_and_damage_inside_a_line_each(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "folder")
    path = packed(files, tmp_path / "flowers.zip")
    dataset, whole = image_folder(path), path.read_bytes()
    place = whole.index(files["rose/0.png"]) + 40
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    assert look(path).unreadable == ("rose/0.png: Bad CRC-32 for file 'rose/0.png'",)
    path.write_bytes(whole[:-30])
    assert f"{path} cannot be used: File is not a zip file. Restore it" in the_line(dataset, Damaged)


# ---- the worker ------------------------------------------------------------------------------------------


def test_a_worker_needs_the_folders_entry_and_no_orchestrator(tmp_path: Path) -> None:
    write_pictures(tmp_path / "flowers", each=10)
    folder = image_folder(tmp_path / "flowers", path="flowers")
    worker = Worker(str(tmp_path), device="cpu", folders={folder.name: vars(folder)})
    samples = worker.samples(folder.name)
    assert samples["n_pool"] == 16 and np.bincount(samples["labels"]).tolist() == [10, 10]
    with pytest.raises(LookupError, match=f"{folder.name}: no folder was given to this worker for it"):
        Worker(str(tmp_path), device="cpu").samples(folder.name)
