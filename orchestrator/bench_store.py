"""`lethe bench store`: what a score costs on disk, and how long writing and reading a cell of scores takes.

Simulated φ of one cell, once in parts as runs leave them (model after model) and once sample-major as `lethe
store compact` leaves them, in four encodings. JSON keys: models, samples, peak_mib (of the process),
compact_s (one `lethe store compact` of the parts), and `rows`, one for each encoding and layout, with

    encoding, layout  e.g. float32_bss_zstd; parts or compacted
    bytes_per_value   of φ alone, as it stands in the files
    file_bytes_per_value  of the whole files, with correctness and the names of the models
    write_s           to write the files
    read_chunk_s      to read one chunk of all models, φ alone; the best of three
    read_cell_s       to read φ of the whole cell; the best of three
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import parquet, schema
from orchestrator.compact import compact
from orchestrator.session import FLUSH_ROWS
from orchestrator.store import Store, score_folder

FOLDER = score_folder("simulated", "simulated", "unlearn", "simulated")
REPEATS = 3
File = tuple[str, Iterable[pa.Table]]  # the name of a file of scores and its row groups
ENCODINGS: dict[str, dict[str, Any]] = {
    "float32_plain": {"compression": "none", "use_byte_stream_split": False},
    "float32_zstd": {"use_byte_stream_split": False},
    "float32_bss_zstd": {},
    "float16_bss_zstd": {},
}


@dataclass(frozen=True)
class Measured:
    """One encoding in one layout; the keys are explained above."""

    encoding: str
    layout: str
    bytes_per_value: float
    file_bytes_per_value: float
    write_s: float
    read_chunk_s: float
    read_cell_s: float


@dataclass(frozen=True)
class StoreBench:
    """What `store` found; the keys are explained above."""

    models: int
    samples: int
    rows: list[Measured]
    compact_s: float
    peak_mib: float


def store(models: int = 640, samples: int = 60_000, seed: int = 0) -> StoreBench:
    """Write and read a simulated cell in a temporary folder, which is deleted."""
    phi, rows = _simulated(models, samples, seed), []
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        for encoding in ENCODINGS:
            for layout, tables in (("parts", _parts), ("compacted", _compacted)):
                made = _ledger(f"{folder}/{encoding}-{layout}", models)
                rows.append(_measure(made, encoding, layout, tables(phi)))
                for name in made.files("scores"):
                    made.delete(name)
        compact_s = _compaction(_ledger(f"{folder}/compact", models), phi)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return StoreBench(models, samples, rows, compact_s, peak)


def as_text(found: StoreBench) -> str:
    """The figures as a table."""
    names = list(asdict(found.rows[0]))
    lines = [f"{found.models:,} models × {found.samples:,} samples, bytes for each value, seconds"]
    lines.append("  ".join(f"{name:>{max(16, len(name))}}" for name in names))
    for row in found.rows:
        values = (f"{v:.3f}" if isinstance(v, float) else v for v in asdict(row).values())
        lines.append("  ".join(f"{v:>{max(16, len(name))}}" for v, name in zip(values, names, strict=True)))
    lines.append(f"compact: {found.compact_s:.2f} s   peak memory: {found.peak_mib:,.0f} MiB")
    return "\n".join(lines)


def _ledger(uri: str, models: int) -> Store:
    """A new store whose ledger knows all models."""
    made = Store.create(uri)
    same = {"attempt": 1, "status": "done"}
    rows = [same | {"task_id": _model(model), "part": _part(model)} for model in range(models)]
    made.write_part("runs", rows, _part(0))
    return made


def _simulated(models: int, samples: int, seed: int) -> np.ndarray:
    """φ (models, samples) float32: how hard a sample is, what half of the models remember, and noise."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(4, 2, samples).astype(np.float32)
    memory = rng.gamma(1, 1, samples).astype(np.float32)
    phi = rng.standard_normal((models, samples), dtype=np.float32)
    for row in phi:
        row += hard + memory * (rng.random(samples) < 0.5)
    return phi


# ---- measuring -------------------------------------------------------------------------------------------


def _measure(store: Store, encoding: str, layout: str, files: Iterable[File]) -> Measured:
    runs = store.runs(["task_id", "part"])
    parts = sorted(set(runs["part"].to_pylist()))
    write_s = sum(_write(store, encoding, parts, *file) for file in files)
    names = store.files("scores")
    of_phi, values = map(sum, zip(*(_phi_bytes(store.path(name)) for name in names), strict=True))
    of_files = sum(store.fs.get_file_info(store.path(name)).size for name in names)
    times = [min(_read(store, runs, chunks) for _ in range(REPEATS)) for chunks in ([0], None)]
    return Measured(encoding, layout, of_phi / values, of_files / values, write_s, *times)


def _read(store: Store, runs: pa.Table, chunks: list[int] | None) -> float:
    """Seconds to read φ of all models; RuntimeError if one is missing."""
    start = time.perf_counter()
    found = store.views(runs, FOLDER, chunks=chunks)
    seconds = time.perf_counter() - start
    if len(found) != runs.num_rows:
        raise RuntimeError(f"{store.uri}: {len(found)} of {runs.num_rows} models were read back")
    return seconds


def _write(store: Store, encoding: str, parts: list[str], name: str, groups: Iterable[pa.Table]) -> float:
    """Write one file that says to hold these parts; the seconds it took, less those of making the rows."""
    half, facts = encoding.startswith("float16"), {"parts": parts, "merged": []}
    plain = parquet.fields("scores")
    written = parquet.stamped(parquet.halved(plain.empty_table()).schema if half else plain, facts)
    options = parquet.options(written) | ENCODINGS[encoding]
    start, making = time.perf_counter(), 0.0
    with (
        store.writing(f"scores/{FOLDER}/{name}.parquet") as file,
        pq.ParquetWriter(file, written, **options) as writer,
    ):
        made = time.perf_counter()
        for table in groups:
            making += time.perf_counter() - made
            rows = (parquet.halved(table) if half else table).cast(written)
            writer.write_table(rows, row_group_size=rows.num_rows)
            made = time.perf_counter()
    return time.perf_counter() - start - making


def _phi_bytes(path: str) -> tuple[int, int]:
    """Bytes of the column φ of a file, and how many values it has."""
    found = pq.read_metadata(path)
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
    phi = [leaf for leaf in leaves if leaf.path_in_schema.startswith("phi.")]
    return sum(leaf.total_compressed_size for leaf in phi), sum(leaf.num_values for leaf in phi)


def _compaction(store: Store, phi: np.ndarray) -> float:
    for file in _parts(phi):
        _write(store, "float32_bss_zstd", [], *file)
    start = time.perf_counter()
    compact(store)
    return time.perf_counter() - start


# ---- the two layouts -------------------------------------------------------------------------------------


def _parts(phi: np.ndarray) -> Iterator[File]:
    """As runs leave them: model after model, one file with one row group for each flush."""
    for start in range(0, len(phi), FLUSH_ROWS):
        models = range(start, min(start + FLUSH_ROWS, len(phi)))
        yield _part(start), [_table(phi, [(model, chunk) for model in models for chunk in _chunks(phi)])]


def _compacted(phi: np.ndarray) -> Iterator[File]:
    """As compaction leaves them: one file, a row group for each chunk of all models."""
    groups = (_table(phi, [(model, chunk) for model in range(len(phi))]) for chunk in _chunks(phi))
    yield parquet.COMPACT + _part(0), groups


def _chunks(phi: np.ndarray) -> range:
    return range(-(-phi.shape[1] // schema.CHUNK))


def _model(model: int) -> str:
    return f"{model:020x}"


def _part(model: int) -> str:
    """The name of the write a model came in."""
    return f"{model // FLUSH_ROWS:014d}"


def _table(phi: np.ndarray, places: list[tuple[int, int]]) -> pa.Table:
    """Rows of scores for (model, chunk)."""
    pieces = [phi[model, chunk * schema.CHUNK : (chunk + 1) * schema.CHUNK] for model, chunk in places]
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    values = np.concatenate(pieces)
    columns = {
        "task_id": [_model(model) for model, _ in places],
        "view": pa.repeat(pa.scalar(0, pa.int8()), len(places)),
        "chunk": [chunk for _, chunk in places],
        "phi": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
        "correct": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values > 0)),
        "part": [_part(model) for model, _ in places],
    }
    return parquet.filled(pa.table(columns), parquet.fields("scores"))
