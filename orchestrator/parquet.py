"""Tables as Parquet files: how they are encoded, what their metadata say, and reading part of a file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator import schema
from orchestrator.keys import canonical
from workers.views import mirrors, views_of

END = 16_384  # bytes at the end of a file that are read at once
SMALL = 10_000  # rows that are read faster by one thread than by several
COMPACT = "compact-"  # names of files that hold the rows of several parts begin so
PRECISIONS = ("float32", "float16")  # of φ in compacted files
HALF_MAX = float(np.finfo(np.float16).max)
BROKEN = (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, OSError)  # what a damaged file raises

Chunks = dict[tuple[int, int], np.ndarray]  # values by (view, chunk)


def fields(table: str, columns: Sequence[str] | None = None) -> pa.Schema:
    """The Arrow schema of a table or of some of its columns."""
    full = schema.arrow(table)
    return full if columns is None else pa.schema([full.field(name) for name in columns])


def options(written: pa.Schema) -> dict[str, Any]:
    """How tables are written: zstd over the bytes of floats sorted by significance (BYTE_STREAM_SPLIT), texts
    by dictionary, a checksum for each page.
    """
    types = {field.name: field.type for field in written}
    leaves = {name: kind.value_type if pa.types.is_list(kind) else kind for name, kind in types.items()}
    floats = [name for name, leaf in leaves.items() if pa.types.is_floating(leaf)]
    return {
        "compression": "zstd",
        "use_dictionary": [name for name, kind in types.items() if kind == pa.string()],
        "use_byte_stream_split": [
            f"{name}.list.element" if pa.types.is_list(types[name]) else name for name in floats
        ],
        "write_page_checksum": True,
    }


# ---- metadata --------------------------------------------------------------------------------------------


def stamped(plain: pa.Schema, facts: dict[str, Any]) -> pa.Schema:
    """The schema with facts in its metadata, each as JSON under `lethe_` and its name."""
    return plain.with_metadata(
        {**(plain.metadata or {}), **{f"lethe_{name}": canonical(value) for name, value in facts.items()}}
    )


def facts_of(parquet: pq.ParquetFile) -> dict[str, Any]:
    """What `stamped` put into a file; ValueError where it is not JSON."""
    found = parquet.schema_arrow.metadata or {}
    names = ("merged", "parts", "half", "phi", "views", "versions")
    return {name: json.loads(found[key]) for name in names if (key := f"lethe_{name}".encode()) in found}


def opened(file: Any, table: str) -> pq.ParquetFile:
    """A Parquet file of ours; ArrowInvalid if it is none of this table."""
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    if (parquet.metadata.metadata or {}).get(b"lethe_table", b"").decode() != table:
        raise pa.ArrowInvalid("not a part of this table")
    return parquet


def check_end(file: Any, table: str) -> bool:
    """True; ArrowInvalid if the end of a file is not that of a Parquet file of this table. In a twentieth of
    the time that `opened` takes, since what the end says is not parsed.
    """
    size = file.size()
    end = file.read_at(min(size, END), size - min(size, END))
    footer = int.from_bytes(end[-8:-4], "little") + 8
    if footer > len(end):
        end = file.read_at(min(size, footer), size - min(size, footer))
    named = end.find(b"lethe_table", len(end) - footer)
    if len(end) < footer or end[-4:] != b"PAR1" or named < 0 or end.find(table.encode(), named) < 0:
        raise pa.ArrowInvalid("not a part of this table")
    return True


# ---- reading ---------------------------------------------------------------------------------------------


def read(parquet: pq.ParquetFile, wanted: pa.Schema, chunks: Collection[int] | None = None) -> pa.Table:
    """The wanted columns, null where the file has none; of `scores` the rows of these chunks, for which no
    other row group is read.
    """
    known = parquet.schema_arrow.names
    there = [name for name in wanted.names if name in known]
    if chunks is None:
        return filled(parquet.read(columns=there, use_threads=parquet.metadata.num_rows > SMALL), wanted)
    groups = [i for i in range(parquet.num_row_groups) if _may_hold(parquet.metadata.row_group(i), chunks)]
    table = filled(parquet.read_row_groups(groups, columns=there), wanted)
    return table.filter(pc.is_in(table["chunk"], pa.array(list(chunks), pa.int16())))


def _may_hold(group: Any, chunks: Collection[int]) -> bool:
    """Whether a row group of `scores` can hold rows of these chunks, by the range of its column `chunk`."""
    leaves = (group.column(i) for i in range(group.num_columns))
    [found] = [leaf.statistics for leaf in leaves if leaf.path_in_schema == "chunk"]
    if found is None or not found.has_min_max:
        return True
    return any(found.min <= chunk <= found.max for chunk in chunks)


def filled(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The wanted columns; one that did not exist yet when the part was written is null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted) if columns else wanted.empty_table()


def latest(runs: pa.Table) -> pa.Table:
    """Of several rows for one task the one with the highest attempt; of a table with rows. In Arrow alone:
    `pyarrow.array` imports pandas, half a second.
    """
    order = pc.sort_indices(runs, sort_keys=[("task_id", "ascending"), ("attempt", "descending")])
    ids = runs["task_id"].take(order)
    new = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).combine_chunks()
    return runs.take(pa.concat_arrays([order.slice(0, 1), order.slice(1).filter(new)]))


def collect(
    table: pa.Table, column: str, part: str, part_of: dict[str, str], found: dict[str, Chunks]
) -> None:
    """Add the values of the runs that belong to this part, where the column is neither null nor empty; a row
    that names its part belongs to that one.
    """
    for batch in table.to_batches():
        lists = batch.column(column)
        offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        names = (batch.column(name).to_pylist() for name in ("task_id", "part", "view", "chunk"))
        for row, (task, own, view, chunk) in enumerate(zip(*names, strict=True)):
            if part_of.get(task) == (own or part) and offsets[row] < offsets[row + 1]:
                found.setdefault(task, {})[view, chunk] = values[offsets[row] : offsets[row + 1]]


def joined(chunks: Chunks) -> list[np.ndarray]:
    """The views of one model, each (samples,), from its chunks by (view, chunk)."""
    views = sorted({view for view, _ in chunks})
    return [np.concatenate([chunks[key] for key in sorted(chunks) if key[0] == view]) for view in views]


# ---- float16 ---------------------------------------------------------------------------------------------


def halved(table: pa.Table) -> pa.Table:
    """Rows of `scores` with φ as float16; beyond its range the largest float16 instead of infinity."""
    place = table.schema.get_field_index("phi")
    lists = [_half(array) for array in table["phi"].chunks]
    field = table.schema.field("phi").with_type(pa.list_(pa.float16()))
    return table.set_column(place, field, pa.chunked_array(lists, field.type))


def _half(lists: pa.ListArray) -> pa.ListArray:
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    small = np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16)
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), pa.array(small))


def score_facts(
    dataset: dict[str, Any], views: int, versions: Iterable[str], specs: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """What the metadata of a file of `scores` say: the definition of φ, what each view is (mirrored, pixels
    down, pixels to the right), and the software versions that made the models. specs: of the models; where
    some of them mirror and some do not, a view has no one meaning and `views` is None. dataset: as
    specifications have it.
    """
    from orchestrator import datasets  # and pydantic with it, which reading does without

    facts: dict[str, Any] = {"phi": schema.PHI, "versions": sorted(set(versions))}
    known = datasets.constants(dataset)
    if known is not None:
        usual = bool(known["augment_flip"])
        flips = {mirrors(spec, usual) for spec in specs} or {usual}
        facts["views"] = views_of(flips.pop(), strong=True)[:views] if len(flips) == 1 else None
    return facts
