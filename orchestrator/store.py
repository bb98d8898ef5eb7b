"""The results folder: owns every path, writes atomically, keeps the ledger.

A write of finished tasks is one *part*: scores first, then rows in `runs`, both in files of the part's name.
A task is done when its row is durable; scores whose part has no rows belong to a write that was cut off and
are ignored. Compaction (compact.py) merges parts into one file that names them, and files so named are left
out from then on. Works on a local folder and, through pyarrow.fs, on s3:// and gs:// (remote.py).
"""

from __future__ import annotations

import bisect
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from orchestrator import atomic, parquet, remote, schema
from orchestrator.errors import UserError
from orchestrator.remote import patient

MARKER = "lethe.json"
ASIDE = "aside"


def new_part() -> str:
    """A name for one write that sorts by time and is never used twice."""
    return f"{time.time_ns() // 1_000_000:014d}-{uuid.uuid4().hex[:8]}"


class Store:
    """One results folder. `open` reads one that exists, `create` makes it where there is none."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if "://" in uri:
            self.fs, self.root = remote.from_uri(uri)
        else:
            self.fs, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        self.local = isinstance(self.fs, fs.LocalFileSystem)
        self.damaged: list[str] = []  # parts that could not be read, relative to the root, sorted
        self.patience_s = 0.0  # a store that has never answered is not waited for
        self.guard: Callable[[], None] = lambda: None  # called before each write, raises where it must not be

    # ---- opening ------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, uri: str) -> Store:
        """The store at `uri`; UserError when there is none or the folder is somebody else's."""
        store = cls(uri)
        kind = store._kind()
        if kind == "foreign":
            raise UserError(f"{uri}: this holds no Lethe results. Name a results folder with --results.")
        if kind == "absent":
            raise UserError(f"{uri}: no results yet. `lethe run GRID --results {uri}` makes them.")
        store._check_version()
        return store

    @classmethod
    def create(cls, uri: str) -> Store:
        """The store at `uri`, made if the folder is missing or empty; UserError if it is somebody else's."""
        store = cls(uri)
        if store._kind() == "foreign":
            raise UserError(
                f"{uri}: this folder is not empty and holds no Lethe results, so nothing was written."
                " Name an empty or a new folder with --results."
            )
        if store._kind() == "absent":
            marker = {"lethe_schema_version": schema.SCHEMA_VERSION, "created_at": time.time()}
            try:
                store.write(MARKER, json.dumps(marker).encode())
            except OSError as error:
                raise UserError(f"{uri}: cannot be written to ({error}).") from None
        store._check_version()
        return store

    @classmethod
    def open_if_any(cls, uri: str) -> Store | None:
        """The store at `uri`, None if nothing is there, UserError if the folder is somebody else's."""
        return cls.open(uri) if cls(uri)._kind() != "absent" else None

    @patient
    def _kind(self) -> str:
        """'ours', 'absent' (no folder, or an empty one) or 'foreign'."""
        if self.exists(MARKER):
            return "ours"
        info = self.fs.get_file_info(self.root)
        if info.type == fs.FileType.NotFound:
            return "absent"
        if info.type != fs.FileType.Directory:
            return "foreign"
        entries = self.fs.get_file_info(fs.FileSelector(self.root))
        return "foreign" if [e for e in entries if e.base_name != "LOCK"] else "absent"

    def identity(self) -> str:
        """What tells these results from others, wherever they lie: when they were begun."""
        return str(json.loads(self.read(MARKER)).get("created_at", ""))

    def _check_version(self) -> None:
        self.patience_s = remote.PATIENCE_S
        try:
            found = json.loads(self.read(MARKER))["lethe_schema_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.uri}/{MARKER}: not readable. The folder may be damaged.") from None
        if found != schema.SCHEMA_VERSION:
            raise UserError(
                f"{self.uri}: results of schema version {found}, this Lethe writes {schema.SCHEMA_VERSION}."
                " Use another --results folder."
            )

    # ---- files --------------------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    @patient
    def exists(self, *parts: str) -> bool:
        return bool(self.fs.get_file_info(self.path(*parts)).type == fs.FileType.File)

    @patient
    def read(self, *parts: str) -> bytes:
        with self.fs.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def write(self, relative: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there whole and durable or not at all."""
        with self.writing(relative) as file:
            file.write(data)

    @contextmanager
    def writing(self, relative: str) -> Iterator[Any]:
        """A binary file to write into; it gets its name, whole and durable, when the block ends well."""
        if self.local:
            self.guard()
            with atomic.local(self.path(relative)) as file:
                yield file
        else:
            with atomic.collected(lambda data: self._upload(relative, data)) as file:
                yield file

    @patient
    def _upload(self, relative: str, data: bytes | pa.Buffer) -> None:
        self.guard()
        atomic.upload(self.fs, self.path(relative), data)

    @patient
    def delete(self, relative: str) -> None:
        self.guard()
        with suppress(FileNotFoundError):
            self.fs.delete_file(self.path(relative))

    @patient
    def files(self, folder: str, ending: str = ".parquet") -> list[str]:
        """Files with this ending below a folder, relative to the root, sorted by path."""
        selector = fs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        found = [info.path for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File]
        start = len(self.root) + 1
        names = [path[start:] if path.startswith(self.root) else path for path in found]
        return sorted(name for name in names if name.endswith(ending))

    # ---- tables -------------------------------------------------------------------------------------------

    def write_part(
        self,
        table: str,
        rows: Sequence[dict[str, Any]] | pa.Table,
        part: str,
        folder: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write rows as one Parquet file `<table>/<folder>/<part>.parquet`, columns left out null, with
        `facts` in its metadata.
        """
        arrow = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema.arrow(table))
        arrow = arrow.replace_schema_metadata(
            parquet.stamped(schema.arrow(table), dict(facts or {})).metadata
        )
        sink = pa.BufferOutputStream()
        pq.write_table(arrow, sink, **parquet.options(arrow.schema))
        self.write("/".join(filter(None, (table, folder, f"{part}.parquet"))), sink.getvalue())

    def held(self, folder: str) -> dict[str, set[str]]:
        """The Parquet files of a table, or below a folder of it, each with the parts whose rows it holds.

        Files that a compaction has merged into another one are left out, though not deleted yet.
        """
        found, merged = self._listed(folder)
        return {name: parts for name, parts in found.items() if name not in merged}

    def leftovers(self, folder: str) -> list[str]:
        """Files below a folder that nobody reads: merged into others, or cut off while they were written."""
        merged = self._listed(folder)[1]
        return [*(name for name in self.files(folder) if name in merged), *self.files(folder, ".tmp")]

    def _listed(self, folder: str) -> tuple[dict[str, set[str]], set[str]]:
        """All files below a folder with the parts they hold, and which of them were merged into others."""
        found: dict[str, set[str]] = {}
        merged: set[str] = set()
        for name in self.files(folder):
            place, _, file = name.rpartition("/")
            if not file.startswith(parquet.COMPACT):
                found[name] = {file.removesuffix(".parquet")}
            elif (facts := self.facts(name)) is not None:
                found[name] = set(facts.get("parts", ()))
                merged |= {f"{place}/{other}" for other in facts.get("merged", ())}
        return found, merged

    def read_table(self, table: str, columns: Sequence[str] | None = None, folder: str = "") -> pa.Table:
        """All rows of a table. Parts that are truncated or not ours are listed in `damaged`, not fatal."""
        wanted = parquet.fields(table, columns)
        names = self.held("/".join(filter(None, (table, folder))))
        read = remote.each(self, list(names), lambda name: self.read_part(name, wanted))
        parts = [part for part in read if part is not None]
        return pa.concat_tables(parts) if parts else wanted.empty_table()

    def read_part(
        self, name: str, wanted: pa.Schema, chunks: Collection[int] | None = None
    ) -> pa.Table | None:
        """The wanted columns of one file, of `scores` the rows of some chunks; None if it is damaged."""
        read = partial(parquet.read, wanted=wanted, chunks=chunks)
        found: pa.Table | None = self._of_part(name, lambda file: read(_part(file, name)))
        return found

    def facts(self, name: str) -> dict[str, Any] | None:
        """What the metadata of one file say beyond its schema; None if it is damaged."""
        found: dict[str, Any] | None = self._of_part(name, lambda file: parquet.facts_of(_part(file, name)))
        return found

    def _of_part(self, name: str, get: Callable[[Any], Any]) -> Any:
        """What `get` makes of one file; None, and a note in `damaged`, if that cannot be read."""
        try:
            with self.fs.open_input_file(self.path(name)) as file:
                return get(file)
        except parquet.BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system failed, which says nothing about the part
        if not self.local:  # its errors look like those of a damaged file: the whole file's content decides
            content = self.read(name)
            try:
                return get(pa.BufferReader(content))
            except parquet.BROKEN:
                pass
        self.note_damage(name)
        return None

    def note_damage(self, name: str) -> None:
        if name not in self.damaged:
            bisect.insort(self.damaged, name)

    @patient
    def discard(self) -> None:
        """Take back a store that holds its marker, its lock and plans; one that holds more stays."""
        entries = self.fs.get_file_info(fs.FileSelector(self.root))
        if {entry.base_name for entry in entries} - {MARKER, "LOCK", "plans"}:
            return
        self.guard()
        self.fs.delete_dir_contents(self.root)
        if self.local:
            os.rmdir(self.root)

    def set_aside(self) -> list[str]:
        """Move the parts found damaged into `aside/` and return their names. Only the driver calls this."""
        moved, self.damaged = sorted(self.damaged), []
        for name in moved:
            self._move(name, f"{ASIDE}/{name.replace('/', '__')}")
        return moved

    @patient
    def _move(self, name: str, target: str) -> None:
        self.guard()
        if self.local:
            self.fs.create_dir(os.path.dirname(self.path(target)), recursive=True)
        self.fs.move(self.path(name), self.path(target))

    # ---- the ledger ---------------------------------------------------------------------------------------

    def runs(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The row of each finished task: of several rows for one id, the one with the highest attempt."""
        wanted = columns if columns is None else list(dict.fromkeys((*columns, "task_id", "attempt")))
        table = self.read_table("runs", wanted)
        return parquet.latest(table) if table.num_rows else table

    def scores(self, rows: pa.Table, folder: str, column: str = "phi") -> dict[str, np.ndarray]:
        """φ (float32) or `correct` (bool) of runs (columns task_id, part) in one folder: task id ->
        (samples,), of the image as it is.
        """
        return {task: views[0] for task, views in self.views(rows, folder, column).items()}

    def views(
        self, rows: pa.Table, folder: str, column: str = "phi", chunks: Collection[int] | None = None
    ) -> dict[str, list[np.ndarray]]:
        """φ or another column of runs in one folder in every view there is: task id -> [(samples,), …].

        Runs without the column are left out. chunks: of these chunks of samples alone; from compacted files
        nothing else is read.
        """
        part_of = dict(zip(rows["task_id"].to_pylist(), rows["part"].to_pylist(), strict=True))
        wanted = parquet.fields("scores", ("task_id", "view", "chunk", "part", column))
        found: dict[str, parquet.Chunks] = {}
        held = self.held(f"scores/{folder}").items()
        names = [name for name, parts in held if not parts.isdisjoint(part_of.values())]
        tables = remote.each(self, names, lambda name: self.read_part(name, wanted, chunks))
        for name, table in zip(names, tables, strict=True):
            if table is not None:
                parquet.collect(table, column, Path(name).stem, part_of, found)
        return {task: parquet.joined(chunks) for task, chunks in found.items()}

    def readable_scores(self) -> set[tuple[str, str]]:
        """(folder, part) of every part of scores that can be read; the others are noted in `damaged`.

        Reads the ends of the files only, and does not parse them: there are thousands.
        """
        held, found = self.held("scores"), set()
        check = partial(parquet.check_end, table="scores")
        whole = remote.each(self, list(held), lambda name: self._of_part(name, check))
        for (name, parts), good in zip(held.items(), whole, strict=True):
            if good:
                folder = name.removeprefix("scores/").rpartition("/")[0]
                found |= {(folder, part) for part in parts}
        return found

    # ---- models and logs ----------------------------------------------------------------------------------

    def write_model(self, task_id: str, weights: bytes) -> None:
        self.write(_model(task_id), weights)

    def read_model(self, task_id: str) -> bytes:
        return self.read(_model(task_id))

    def has_model(self, task_id: str) -> bool:
        return self.exists(_model(task_id))

    def models(self) -> set[str]:
        """The tasks whose weights are there."""
        return {Path(name).stem for name in self.files("models", ".safetensors")}

    def delete_model(self, task_id: str) -> None:
        self.delete(_model(task_id))

    def write_log(self, task_id: str, attempt: int, text: str) -> str:
        """Write the details of a failure; returns the file's path relative to the results folder."""
        name = f"logs/{task_id}-{attempt}.txt"
        self.write(name, text.encode())
        return name


@cache
def score_folder(dataset: str, architecture: str, kind: str, method: str) -> str:
    """The folder of `scores` for one kind of models, in Hive form: the colon of `timm:NAME` as %3A, which
    readers of Hive folders turn back.
    """
    model = quote(architecture, safe="")
    return f"dataset={dataset}/architecture={model}/kind={kind}/method={method or 'none'}"


def score_rows(
    task_id: str,
    phi: np.ndarray,
    correct: np.ndarray,
    views: Sequence[np.ndarray] = (),
    columns: Mapping[str, np.ndarray] | None = None,
) -> Iterable[dict[str, Any]]:
    """The rows of `scores` for one model, one per chunk of samples and view; `correct` and further columns
    stand with the first.
    """
    first = {"correct": correct} | dict(columns or {})
    for view, values in enumerate((phi, *views)):
        for chunk, start in enumerate(range(0, len(values), schema.CHUNK)):
            part = slice(start, start + schema.CHUNK)
            row = {"task_id": task_id, "view": view, "chunk": chunk, "phi": values[part]}
            yield row | ({name: column[part] for name, column in first.items()} if view == 0 else {})


def _part(file: Any, name: str) -> pq.ParquetFile:
    return parquet.opened(file, name.partition("/")[0])


def _model(task_id: str) -> str:
    return f"models/{task_id}.safetensors"
