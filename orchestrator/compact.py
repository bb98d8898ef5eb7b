"""`lethe store compact`: the many small parts of a results folder become one file for each folder of it.

Files of `scores` become sample-major: rows sorted by (chunk, task_id, view), a row group for each chunk, so
that one chunk of all models is read without the others. Rows keep the name of the write they came in (column
`part`), so the ledger, resuming and the hashes of the audits' inputs stay as they are.

A merged file names the files it replaces. It appears whole or not at all, readers leave out the files it
names from that moment, and they are deleted afterwards: killed anywhere, nothing is lost or there twice, and
the next call finishes. Rows of `runs` are all kept, being small and the history of a task; of scores those of
superseded attempts and of writes that were cut off are dropped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator import __version__, parquet, schema
from orchestrator.errors import UserError
from orchestrator.remote import patient
from orchestrator.store import Store, new_part

MANIFEST = "manifest.json"
ROWS_AT_ONCE = 16_384  # of scores in memory, up to 32 KiB each, besides those of one part
TABLES = ("runs", "designs", "samples", "audits", "scores")
INDEX = ("task_id", "part", "view", "chunk")


@dataclass
class Compacted:
    """What a compaction did. Bytes and files are those of the tables it looks after; dropped scores are
    counted in models; missing: files of the last manifest that are gone.
    """

    precision: str
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    superseded: int = 0
    cut_off: int = 0
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class _DamagedPage(Exception):
    """A file whose index could be read cannot be read in full."""


def compact(store: Store, precision: str = "float32", beat: Callable[[], None] = lambda: None) -> Compacted:
    """Merge the parts of a store; the caller holds its lock. beat: called often, to keep the lock.

    precision: 'float32', or 'float16' for an archive: φ is rounded for good. A file that is float16 already
    stays so until new parts are merged with it.
    """
    manifest, done = Manifest(store), Compacted(precision)
    for table in schema.TABLES:
        _settle(store, manifest, table)
    done.files_before, done.bytes_before = _size(store)
    done.missing = [name for name in manifest.files if not store.exists(name)]
    ledger = _Ledger(store)
    for table in TABLES:
        for folder, names in _by_folder(store, table).items():
            merge = _Scores(store, ledger, precision, beat, done) if table == "scores" else _rows
            new = merge(store, folder, names)
            if new is not None:
                _settle(store, manifest, folder, new)
            beat()
    manifest.files = {name: facts for name, facts in manifest.files.items() if store.exists(name)}
    whole = [name for table in TABLES for name in store.held(table) if name not in store.damaged]
    manifest.add(store, whole)
    done.files_after, done.bytes_after = _size(store)
    done.damaged = list(store.damaged)
    return done


def as_text(done: Compacted) -> str:
    """What a compaction did, a few lines."""
    lines = [
        f"{done.files_before:,} files of {done.bytes_before / 2**20:,.1f} MiB became {done.files_after:,} of"
        f" {done.bytes_after / 2**20:,.1f} MiB."
    ]
    if done.superseded or done.cut_off:
        lines.append(
            f"Dropped scores: of {done.superseded:,} superseded attempts, of {done.cut_off:,} models whose"
            " write was cut off."
        )
    lines += [
        f"{name} cannot be read and was left; the next run moves it to aside/." for name in done.damaged
    ]
    lines += [f"{name} stood in the last manifest and is gone." for name in done.missing]
    return "\n".join(lines)


def _by_folder(store: Store, table: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in store.held(table):
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return found


@patient
def _size(store: Store) -> tuple[int, int]:
    names = [name for table in TABLES for name in store.files(table)]
    infos = store.fs.get_file_info([store.path(name) for name in names])
    return len(names), sum(info.size for info in infos)


def _settle(store: Store, manifest: Manifest, folder: str, *new: str) -> None:
    """Put new files of a folder into the manifest, take those out that were merged, then delete these."""
    gone = store.leftovers(folder)
    manifest.files = {name: facts for name, facts in manifest.files.items() if name not in gone}
    if new or gone:
        manifest.add(store, new)
    for name in gone:
        store.delete(name)


# ---- small tables ----------------------------------------------------------------------------------------


def _rows(store: Store, folder: str, names: list[str]) -> str | None:
    """Merge the files of one folder of a table; the new file, None if there was nothing to merge."""
    wanted = parquet.fields(folder.partition("/")[0])
    tables = {name: table for name in names if (table := store.read_part(name, wanted)) is not None}
    if len(tables) < 2:
        return None
    facts = {"merged": [Path(name).name for name in tables]}
    return _write(store, folder, parquet.stamped(wanted, facts), iter([pa.concat_tables(tables.values())]))


def _write(store: Store, folder: str, written: pa.Schema, groups: Iterator[pa.Table]) -> str:
    """Write tables as the row groups of a new merged file of this schema; its name."""
    name = f"{folder}/{parquet.COMPACT}{new_part()}.parquet"
    with store.writing(name) as file, pq.ParquetWriter(file, written, **parquet.options(written)) as writer:
        for table in groups:
            writer.write_table(table.cast(written), row_group_size=max(1, table.num_rows))
    return name


# ---- scores ----------------------------------------------------------------------------------------------


class _Ledger:
    """Which (task, part) have a row in `runs`, and which of them count: the last attempt of a done task."""

    def __init__(self, store: Store) -> None:
        rows = store.read_table("runs", ["task_id", "part"])
        latest = store.runs(["task_id", "part", "status"])
        self.recorded = _keys(rows)
        self.live = _keys(latest.filter(pc.field("status") == "done"))
        # Where rows cannot be read, scores that seem to have none may belong to them.
        self.whole = not any(name.startswith("runs/") for name in store.damaged)

    def kept(self, index: pa.Table) -> pa.ChunkedArray:
        """Which rows of scores (columns task_id, part) are to stay."""
        keys = _keys(index)
        live = pc.is_in(keys, value_set=self.live)
        return live if self.whole else pc.or_(live, pc.invert(pc.is_in(keys, value_set=self.recorded)))

    def dropped(self, index: pa.Table) -> tuple[int, int]:
        """(superseded, cut off): how many models the rows of scores that do not stay are of."""
        gone = pc.unique(_keys(index.filter(pc.invert(self.kept(index)))))
        superseded = pc.sum(pc.is_in(gone, value_set=self.recorded)).as_py() or 0
        return superseded, len(gone) - superseded


def _keys(table: pa.Table) -> pa.Array:
    joined = pc.binary_join_element_wise(table["task_id"], table["part"], " ")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


@dataclass
class _Scores:
    """Merges the files of one folder of `scores` into a sample-major one."""

    store: Store
    ledger: _Ledger
    precision: str
    beat: Callable[[], None]
    done: Compacted

    def __call__(self, store: Store, folder: str, names: list[str]) -> str | None:
        """The new file, None if there was nothing to merge."""
        indices = {name: index for name in names if (index := self._part(name, INDEX)) is not None}
        if not indices:
            return None
        index = pa.concat_tables(indices.values())
        dropped = self.ledger.dropped(index)
        if self._is_done(list(indices), dropped):
            return None
        index = index.filter(self.ledger.kept(index))
        written = parquet.stamped(self._schema(), self._facts(folder, list(indices), index))
        try:
            new = _write(store, folder, written, self._chunks(list(indices), index))
        except _DamagedPage:  # now noted as damaged: once more without it
            return self(store, folder, [name for name in names if name not in store.damaged])
        self.done.superseded += dropped[0]
        self.done.cut_off += dropped[1]
        return new

    def _is_done(self, names: list[str], dropped: tuple[int, int]) -> bool:
        """Whether the folder is one merged file that has nothing to drop and is of the precision wanted."""
        if len(names) > 1 or any(dropped) or not Path(names[0]).name.startswith(parquet.COMPACT):
            return False
        return self.precision == "float32" or bool((self.store.facts(names[0]) or {}).get("half"))

    def _schema(self) -> pa.Schema:
        plain = parquet.fields("scores")
        return plain if self.precision == "float32" else parquet.halved(plain.empty_table()).schema

    def _facts(self, folder: str, names: list[str], index: pa.Table) -> dict[str, Any]:
        versions = {text for name in names for text in (self.store.facts(name) or {}).get("versions", ())}
        views = 1 + (pc.max(index["view"]).as_py() or 0)
        dataset = next(
            (p.removeprefix("dataset=") for p in folder.split("/") if p.startswith("dataset=")), ""
        )
        facts = parquet.score_facts({"name": dataset}, views, versions)
        usual = facts.get("views")
        told = [(self.store.facts(name) or {}).get("views", usual) for name in names]
        return facts | {
            "views": common_views(told, views),
            "merged": [Path(name).name for name in names],
            "parts": sorted(pc.unique(index["part"]).to_pylist()),
            "half": self.precision == "float16",
        }

    def _part(self, name: str, columns: tuple[str, ...] | None, chunks: list[int] | None = None) -> Any:
        """Columns of one file with `part` filled in; None if it is damaged."""
        table = self.store.read_part(name, parquet.fields("scores", columns), chunks)
        if table is None:
            return None
        place = table.schema.get_field_index("part")
        return table.set_column(place, table.field("part"), table["part"].fill_null(Path(name).stem))

    def _chunks(self, names: list[str], index: pa.Table) -> Iterator[pa.Table]:
        """The rows that stay, one table for each chunk, sorted; as many chunks in memory as there is room."""
        counts = index.group_by("chunk").aggregate([([], "count_all")]).sort_by("chunk")
        chunks = counts["chunk"].to_pylist()
        step = max(1, ROWS_AT_ONCE // max(counts["count_all"].to_pylist(), default=1))
        for start in range(0, len(chunks), step):
            tables = [self._rows_of(name, chunks[start : start + step]) for name in names]
            for chunk in chunks[start : start + step]:
                rows = pa.concat_tables([table.filter(pc.field("chunk") == chunk) for table in tables])
                rows = rows.sort_by([(column, "ascending") for column in ("task_id", "view")])
                yield rows if self.precision == "float32" else parquet.halved(rows)
                self.beat()

    def _rows_of(self, name: str, chunks: list[int]) -> pa.Table:
        table = self._part(name, None, chunks)
        if table is None:
            raise _DamagedPage(name)
        kept = self.ledger.kept(table)
        return table if pc.all(kept).as_py() else table.filter(kept)


def common_views(told: list[Any], count: int) -> list[Any] | None:
    """The first `count` views that merged files say they have, the shorter lists being the beginnings of the
    longest; None where they do not agree, or one says that its own models do not.
    """
    lists = [[list(view) for view in views] for views in told if views is not None]
    longest = max(lists, key=len, default=[])
    if len(lists) < len(told) or any(views != longest[: len(views)] for views in lists):
        return None
    return longest[:count]


# ---- the manifest ----------------------------------------------------------------------------------------


class Manifest:
    """SHA-256 and bytes of the files that a compaction left, by their name below the results folder."""

    def __init__(self, store: Store) -> None:
        try:
            known = json.loads(store.read(MANIFEST))["files"] if store.exists(MANIFEST) else {}
            self.files: dict[str, dict[str, Any]] = dict(known)
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{store.uri}/{MANIFEST}: not readable. Delete it; `lethe store compact` writes a new one."
            ) from None

    def add(self, store: Store, names: Iterable[str]) -> None:
        """Write the manifest with further files. A file that stands in it keeps its hash: names are never
        used twice, so another content is damage.
        """
        self.files |= {name: measured(store, name) for name in names if name not in self.files}
        facts = {"lethe": __version__, "created_at": time.time(), "files": dict(sorted(self.files.items()))}
        store.write(MANIFEST, json.dumps(facts, indent=1).encode())


@patient
def measured(store: Store, name: str) -> dict[str, Any]:
    """SHA-256 and bytes of a file."""
    content, size = hashlib.sha256(), 0
    with store.fs.open_input_stream(store.path(name)) as stream:
        while block := stream.read(2**22):
            content.update(block)
            size += len(block)
    return {"sha256": content.hexdigest(), "bytes": size}


def verify(store: Store) -> tuple[int, list[str]]:
    """How many files the manifest names, and a line for each that is gone or differs from it."""
    if not store.exists(MANIFEST):
        raise UserError(f"{store.uri}: no {MANIFEST} yet. `lethe store compact` writes it.")
    known, problems = Manifest(store).files, []
    for name, facts in known.items():
        if not store.exists(name):
            problems.append(f"{name} is gone")
        elif (found := measured(store, name)) != facts:
            problems.append(f"{name} differs: {found['bytes']:,} bytes, {facts['bytes']:,} when written")
    return len(known), problems
