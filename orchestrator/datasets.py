"""The datasets of a grid: built-in ones by their names, folders of pictures by entries with all a plan needs.

datasets:
- digits
- image_folder: {name: flowers, path: flowers, size: 64, …}   # `lethe prepare image_folder` prints it

What decides results stands in the specification of every task, so a plan opens no folder and a report needs
neither the folder nor the grid. The path does not, nor the name: a folder may move or be called otherwise.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from orchestrator import catalogue
from orchestrator.grid_errors import inside
from orchestrator.keys import digest, present
from orchestrator.strict import Strict

NAME = "image_folder"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def plain_name(name: str) -> str:
    """A name that can be a folder's and that means nothing else in a grid."""
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name. Allowed are up to 64 letters, digits, _ and -, the first no _ or -."
        )
    if name in ("all", NAME, *catalogue.plugins("datasets"), *catalogue.plugins("architectures")):
        raise ValueError(f"{name!r} means something else in a grid already. Choose another name.")
    return name


def _several(classes: list[str]) -> list[str]:
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} is too few, at least 2.")
    return classes


def _sum(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{text!r} is no SHA-256 sum, 64 hexadecimal digits.")
    return text


class ImageFolder(Strict):
    """A folder of pictures, FOLDER/CLASS/picture, or a zip of it. path: absolute, or below --data.

    classes: their names in order, so that a class of a forget recipe has its number. pool_size, test_size:
    images. mean, std: of each channel of the pool. sha256: of the pictures' names and bytes. epochs,
    batch_size: what training takes where the grid's `training` says nothing.
    """

    name: Annotated[str, AfterValidator(plain_name)]
    path: str = Field(min_length=1)
    size: int = Field(ge=8, le=1024)
    channels: Literal[1, 3] = 3
    classes: Annotated[list[str], AfterValidator(_several)]
    pool_size: int = Field(ge=2)
    test_size: int = Field(ge=2)
    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(gt=0, le=1)]]
    sha256: Annotated[str, AfterValidator(_sum)]
    augment_pad: int = Field(0, ge=0, le=64)
    augment_flip: bool = False
    epochs: int | None = Field(None, ge=1, le=100_000)
    batch_size: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> ImageFolder:
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{what} has {len(values)} values for channels: {self.channels}.")
        return self


@dataclass(frozen=True)
class Dataset:
    """A dataset of a grid. given: what the grid calls it. name: in results; two folders never share one.

    spec: what task specifications say of it; its `name` is what seeds and designs are derived from.
    """

    given: str
    name: str
    spec: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.spec["name"])


class Folder(str):
    """The name that a grid gives a folder of pictures, with its entry."""

    entry: ImageFolder

    def __new__(cls, entry: ImageFolder) -> Folder:
        made = super().__new__(cls, entry.name)
        made.entry = entry
        return made


def of(dataset: str) -> Dataset:
    """What a name in a grid's `datasets` means."""
    if isinstance(dataset, Folder):
        return _of_folder(dataset.entry)
    return Dataset(dataset, dataset, {"name": dataset, "version": plugin(dataset).version})


def plugin(dataset: str) -> catalogue.Plugin:
    """What a dataset of a grid declares: its plug-in's constants, or those that a folder's entry says."""
    if not isinstance(dataset, Folder):
        return catalogue.plugins("datasets")[dataset]
    entry = dataset.entry
    training = present({"epochs": entry.epochs, "batch_size": entry.batch_size})
    kept = entry.model_dump(include={"pool_size", "test_size", "augment_pad", "augment_flip"})
    facts = {"version": of(dataset).spec["version"], "num_classes": len(entry.classes), "training": training}
    return catalogue.Plugin(dataset, "datasets", "", kept | facts)


def _of_folder(entry: ImageFolder) -> Dataset:
    decides = {
        "version": catalogue.file_version("image_folder.py"),
        "sha256": entry.sha256,
        "size": entry.size,
        "channels": entry.channels,
        "num_classes": len(entry.classes),
        "pool_size": entry.pool_size,
        "mean": entry.mean,
        "std": entry.std,
    } | present({"augment_pad": entry.augment_pad or None, "augment_flip": entry.augment_flip or None})
    hashed = digest(decides)
    return Dataset(entry.name, f"{entry.name}-{hashed[:8]}", {"name": f"{NAME}-{hashed}", **decides})


def constants(spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """num_classes, pool_size and augment_flip of the dataset of a task specification; None for a built-in one
    that is there no more.
    """
    if "sha256" in spec:
        return {"augment_flip": False, **spec}
    known = catalogue.plugins("datasets").get(str(spec["name"]))
    return None if known is None else known.constants


def folders(named: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What workers need of the folders of a grid, by the names in task specifications."""
    found = {}
    for dataset in named:
        if isinstance(dataset, Folder):
            entry, key = dataset.entry, of(dataset).key
            values = entry.model_dump(exclude={"name", "classes", "epochs", "batch_size"})
            found[key] = values | {"name": key, "title": entry.name, "num_classes": len(entry.classes)}
    return found


def different(named: list[str]) -> list[str]:
    """The names; ValueError when two names mean the same pictures in the same form."""
    found: dict[str, str] = {}
    for dataset in map(of, named):
        other = found.setdefault(dataset.key, dataset.given)
        if other != dataset.given:
            raise ValueError(f"{other} and {dataset.given} are the same pictures in the same form. Name one.")
    return named


# ---- entries ---------------------------------------------------------------------------------------------


def folder(value: Any) -> Folder:
    """The folder that {image_folder: {…}} says; ValueError with a line per mistake."""
    if isinstance(value, Folder):
        return value
    values = {} if value == NAME else value.get(NAME) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(values, dict):
        raise ValueError(f"write a name or {{{NAME}: {{name: …, path: …, …}}}}, not {value!r}.")
    try:
        return Folder(ImageFolder.model_validate(values))
    except ValidationError as error:
        lacking = missing(values)
        raise ValueError(
            "\n".join([*inside(NAME, ImageFolder, error), *([lacking] if lacking else [])])
        ) from None


def missing(values: Mapping[str, Any]) -> str | None:
    """What an entry lacks and the command that prints it whole; None if it lacks nothing."""
    needed = [name for name, f in ImageFolder.model_fields.items() if f.is_required() and name not in values]
    if not needed:
        return None
    size = values.get("size")
    options = [str(values.get("path", "PATH")), "--size", str(size) if isinstance(size, int) else "N"]
    options += ["--channels", "1"] if values.get("channels") == 1 else []
    options += ["--name", str(values["name"])] if "name" in values else []
    command = shlex.join(["lethe", "prepare", NAME, *options])
    return f"{NAME}: {', '.join(needed)} missing. `{command}` prints the whole entry."


def as_entry(dataset: str) -> Any:
    """A dataset as a grid writes it."""
    if not isinstance(dataset, Folder):
        return dataset
    return {NAME: dataset.entry.model_dump(mode="json", exclude_defaults=True)}
