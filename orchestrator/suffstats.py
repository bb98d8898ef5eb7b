"""`lethe store suffstats`: what Gaussian attacks need of φ, per sample and world, without the scores.

Reads the scores of the audit track and writes one file for each cell; calling it again replaces the file, so
after further runs it has to be called again. attacks/suffstats.py merges the rows and asks whether φ is
Gaussian; docs/storage.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attacks.suffstats import of
from orchestrator import parquet, plans
from orchestrator.audit import AuditDesign, Reader, Row, rows_of
from orchestrator.errors import UserError
from orchestrator.plan import Cell
from orchestrator.store import Store


def write(store: Store, beat: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Write the table suffstats of all cells with an audit; rows written by cell. The caller holds the lock.

    UserError if scores cannot be read: statistics without them would look whole.
    """
    reader = Reader(store)
    return {
        cell.id: _write_cell(store, reader, cell, beat)
        for cell in plans.recall(store)
        if _audited(reader, cell)
    }


def as_text(written: dict[str, int]) -> str:
    """What was written, in one line."""
    if not written:
        return "No finished runs of an audit track, so nothing was written."
    return f"Wrote suffstats: {sum(written.values()):,} rows of {len(written):,} cells."


def _audited(reader: Reader, cell: Cell) -> bool:
    return any(_has_runs(reader, row) for row in rows_of(cell))


def _has_runs(reader: Reader, row: Row) -> bool:
    return any(reader.done(task) for key, task in row.tasks.items() if key[0] == "audit")


def _write_cell(store: Store, reader: Reader, cell: Cell, beat: Callable[[], None]) -> int:
    written, count = parquet.fields("suffstats"), 0
    options = parquet.options(written)
    name = f"suffstats/{cell.id}/suffstats.parquet"
    with store.writing(name) as file, pq.ParquetWriter(file, written, **options) as writer:
        for table in _tables(reader, cell):
            writer.write_table(table)
            count += table.num_rows
            beat()
        if store.damaged:
            raise UserError(
                f"{store.damaged[0]}: cannot be read, so no statistics were written."
                " `lethe run GRID` moves it to aside/ and makes its runs again."
            )
    return count


def _tables(reader: Reader, cell: Cell) -> Iterator[pa.Table]:
    """The rows of one world and view of one row of the report at a time."""
    designs: dict[str, AuditDesign] = {}
    for row in rows_of(cell):
        if not _has_runs(reader, row):
            continue
        if row.training not in designs:
            designs[row.training] = AuditDesign(reader, cell, row.references.retrains)
        design = designs[row.training]
        for world, views in worlds(reader, design, row).items():
            for view, phi in enumerate(views):
                if phi.size:
                    yield _table(row, world, view, design.audited, phi)


def worlds(reader: Reader, design: AuditDesign, row: Row) -> dict[str, np.ndarray]:
    """φ (views, pairs, audited samples) by world, NaN where missing: what orchestrator/audit.py compares."""
    cube = design.cube(reader, row.tasks)
    forgotten, never, retrained = design.worlds(cube)
    retained, _ = design.stayed(cube)
    return {"forgotten": forgotten, "never": never, "retrained": retrained, "retained": retained}


def _table(row: Row, world: str, view: int, samples: np.ndarray, phi: np.ndarray) -> pa.Table:
    found = of(phi)
    same = row.columns | {"world": world, "view": view}
    columns = {name: pa.repeat(value, len(samples)) for name, value in same.items()}
    columns |= {"sample_id": samples, **found._asdict()}
    wanted = parquet.fields("suffstats")
    return pa.table({name: columns[name] for name in wanted.names}).cast(wanted)
