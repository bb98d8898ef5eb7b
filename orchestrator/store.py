"""The results folder: owns every path, writes atomically, keeps the ledger.

A write of finished tasks is one *part*: scores first, then rows in `runs`, both in files of the part's name.
A task is done when its row is durable; scores whose part has no rows belong to a write that was cut off and
are ignored. Works on a local folder and, through pyarrow.fs, on s3:// and gs://.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from orchestrator import schema
from orchestrator.errors import UserError

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
            self.fs, self.root = _from_uri(uri)
        else:
            self.fs, self.root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        self.local = isinstance(self.fs, fs.LocalFileSystem)
        self.damaged: list[str] = []  # parts that could not be read, relative to the root

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

    def _check_version(self) -> None:
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

    def exists(self, *parts: str) -> bool:
        return bool(self.fs.get_file_info(self.path(*parts)).type == fs.FileType.File)

    def read(self, *parts: str) -> bytes:
        with self.fs.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def write(self, relative: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that it is there whole and durable or not at all."""
        target = self.path(relative)
        if not self.local:
            with self.fs.open_output_stream(target) as stream:  # an object store shows whole objects only
                stream.write(data)
            return
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(folder)

    def delete(self, relative: str) -> None:
        if self.exists(relative):
            self.fs.delete_file(self.path(relative))

    def files(self, folder: str, ending: str = ".parquet") -> list[str]:
        """Files with this ending below a folder, relative to the root, sorted by path."""
        selector = fs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        found = [info.path for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File]
        start = len(self.root) + 1
        names = [path[start:] if path.startswith(self.root) else path for path in found]
        return sorted(name for name in names if name.endswith(ending))

    # ---- tables -------------------------------------------------------------------------------------------

    def write_part(
        self, table: str, rows: Sequence[dict[str, Any]] | pa.Table, part: str, folder: str = ""
    ) -> None:
        """Write rows as one Parquet file `<table>/<folder>/<part>.parquet`; columns left out are null."""
        arrow = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema.arrow(table))
        sink = pa.BufferOutputStream()
        floats = [
            column.name for column in schema.TABLES[table] if column.type in (pa.float32(), pa.float64())
        ]
        phi = ["phi.list.element"] if table == "scores" else []
        dictionary = [c.name for c in schema.TABLES[table] if c.type == pa.string()]
        pq.write_table(
            arrow,
            sink,
            compression="zstd",
            use_dictionary=dictionary,
            use_byte_stream_split=floats + phi,
        )
        self.write("/".join(filter(None, (table, folder, f"{part}.parquet"))), sink.getvalue())

    def read_table(self, table: str, columns: Sequence[str] | None = None, folder: str = "") -> pa.Table:
        """All rows of a table. Parts that are truncated or not ours are listed in `damaged`, not fatal."""
        full = schema.arrow(table)
        wanted = full if columns is None else pa.schema([full.field(name) for name in columns])
        tables = [wanted.empty_table()]
        for name in self.files("/".join(filter(None, (table, folder)))):
            part = self._read_part(name, table, wanted)
            if part is not None:
                tables.append(part)
        return pa.concat_tables(tables)

    def _read_part(self, name: str, table: str, wanted: pa.Schema) -> pa.Table | None:
        try:
            with self.fs.open_input_file(self.path(name)) as file:
                parquet = pq.ParquetFile(file)
                metadata = parquet.schema_arrow.metadata or {}
                if metadata.get(b"lethe_table", b"").decode() != table:
                    raise pa.ArrowInvalid("not a part of this table")
                there = [name for name in wanted.names if name in parquet.schema_arrow.names]
                return _filled(parquet.read(columns=there), wanted)
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system failed, which says nothing about the part
            self.note_damage(name)
            return None

    def note_damage(self, name: str) -> None:
        if name not in self.damaged:
            self.damaged.append(name)

    def discard(self) -> None:
        """Take back a store that holds its marker, its lock and plans; one that holds more stays."""
        entries = self.fs.get_file_info(fs.FileSelector(self.root))
        if {entry.base_name for entry in entries} - {MARKER, "LOCK", "plans"}:
            return
        for name in (MARKER, "LOCK", *self.files("plans", ".json")):
            self.delete(name)
        for folder in ("plans", ""):
            path = self.path(folder).rstrip("/")
            if self.local and os.path.isdir(path) and not os.listdir(path):
                os.rmdir(path)

    def set_aside(self) -> list[str]:
        """Move the parts found damaged into `aside/` and return their names. Only the driver calls this."""
        moved, self.damaged = self.damaged, []
        for name in moved:
            target = f"{ASIDE}/{name.replace('/', '__')}"
            self.fs.create_dir(self.path(ASIDE), recursive=True)
            self.fs.move(self.path(name), self.path(target))
        return moved

    # ---- the ledger ---------------------------------------------------------------------------------------

    def runs(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The row of each finished task: of several rows for one id, the one with the highest attempt."""
        wanted = columns if columns is None else list(dict.fromkeys((*columns, "task_id", "attempt")))
        table = self.read_table("runs", wanted)
        return _latest(table) if table.num_rows else table

    def scores(self, rows: pa.Table, folder: str, column: str = "phi") -> dict[str, np.ndarray]:
        """φ (float32) or `correct` (bool) of runs (columns task_id, part) in one folder: task id ->
        (samples,), of the image as it is.
        """
        return {task: views[0] for task, views in self.views(rows, folder, column).items()}

    def views(self, rows: pa.Table, folder: str, column: str = "phi") -> dict[str, list[np.ndarray]]:
        """φ or `correct` of runs in one folder in every view there is: task id -> [(samples,), …]."""
        part_of = dict(zip(rows["task_id"].to_pylist(), rows["part"].to_pylist(), strict=True))
        wanted = set(part_of.values())
        chunks: dict[str, dict[tuple[int, int], np.ndarray]] = {}
        for name in self.files(f"scores/{folder}"):
            if Path(name).stem not in wanted:
                continue
            table = self._read_part(name, "scores", schema.arrow("scores"))
            if table is not None:
                _collect(table, column, Path(name).stem, part_of, chunks)
        return {task: _joined(found) for task, found in chunks.items()}

    def readable_scores(self) -> set[tuple[str, str]]:
        """(folder, part) of every scores file that can be read; the others are noted in `damaged`.

        Reads the ends of the files only.
        """
        found = set()
        for name in self.files("scores"):
            if self._read_part(name, "scores", pa.schema([])) is not None:
                folder, _, file = name.removeprefix("scores/").rpartition("/")
                found.add((folder, Path(file).stem))
        return found

    # ---- models and logs ----------------------------------------------------------------------------------

    def write_model(self, task_id: str, weights: bytes) -> None:
        self.write(_model(task_id), weights)

    def read_model(self, task_id: str) -> bytes:
        return self.read(_model(task_id))

    def has_model(self, task_id: str) -> bool:
        return self.exists(_model(task_id))

    def delete_model(self, task_id: str) -> None:
        self.delete(_model(task_id))

    def write_log(self, task_id: str, attempt: int, text: str) -> str:
        """Write the details of a failure; returns the file's path relative to the results folder."""
        name = f"logs/{task_id}-{attempt}.txt"
        self.write(name, text.encode())
        return name


def _from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        found, root = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--results {uri}: not a folder that can be used ({error}).") from None
    if not root:
        raise UserError(f"--results {uri}: names no bucket or folder.")
    return found, root.rstrip("/")


def score_folder(dataset: str, architecture: str, kind: str, method: str) -> str:
    """The folder of `scores` for one kind of models, in Hive form."""
    return f"dataset={dataset}/architecture={architecture}/kind={kind}/method={method or 'none'}"


def score_rows(
    task_id: str, phi: np.ndarray, correct: np.ndarray, views: Sequence[np.ndarray] = ()
) -> Iterable[dict[str, Any]]:
    """The rows of `scores` for one model, one per chunk of samples and view; `correct` stands with the
    first.
    """
    for view, values in enumerate((phi, *views)):
        for chunk, start in enumerate(range(0, len(values), schema.CHUNK)):
            part = slice(start, start + schema.CHUNK)
            row = {"task_id": task_id, "view": view, "chunk": chunk, "phi": values[part]}
            yield row | {"correct": correct[part] if view == 0 else []}


def _model(task_id: str) -> str:
    return f"models/{task_id}.safetensors"


def _latest(table: pa.Table) -> pa.Table:
    order = pc.sort_indices(table, sort_keys=[("task_id", "ascending"), ("attempt", "descending")])
    ids = table["task_id"].take(order).combine_chunks().to_numpy(zero_copy_only=False)
    first = np.concatenate([[True], ids[1:] != ids[:-1]])
    return table.take(pc.filter(order, pa.array(first)))


def _filled(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The wanted columns; one that did not exist yet when the part was written is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted) if columns else wanted.empty_table()


def _collect(
    table: pa.Table,
    column: str,
    part: str,
    part_of: dict[str, str],
    chunks: dict[str, dict[tuple[int, int], np.ndarray]],
) -> None:
    """Add the chunks, by (view, chunk), of the runs that belong to this part."""
    lists = table[column].combine_chunks()
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    names = zip(*(table[name].to_pylist() for name in ("task_id", "view", "chunk")), strict=True)
    for row, (task, view, chunk) in enumerate(names):
        if part_of.get(task) == part:
            chunks.setdefault(task, {})[view, chunk] = values[offsets[row] : offsets[row + 1]]


def _joined(chunks: dict[tuple[int, int], np.ndarray]) -> list[np.ndarray]:
    """The views of one model, each (samples,), from its chunks by (view, chunk)."""
    views = sorted({view for view, _ in chunks})
    return [np.concatenate([chunks[key] for key in sorted(chunks) if key[0] == view]) for view in views]


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
