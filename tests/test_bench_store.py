"""`lethe bench store` writes, reads back and measures what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator import bench_store
from tests.conftest import Lethe


def test_encodings_are_ordered_as_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = bench_store.store(models=300, samples=5000)
    assert os.listdir(tmp_path) == []
    assert [(row.encoding, row.layout) for row in found.rows] == [
        (encoding, layout) for encoding in bench_store.ENCODINGS for layout in ("parts", "compacted")
    ]
    size = {(row.encoding, row.layout): row.bytes_per_value for row in found.rows}
    for layout in ("parts", "compacted"):
        plain, zstd, split, half = (size[encoding, layout] for encoding in bench_store.ENCODINGS)
        assert 4.0 <= plain < 4.1 and plain > zstd > split > 2 > half > 1
    assert all(row.file_bytes_per_value > row.bytes_per_value for row in found.rows)


def test_it_prints_what_its_docstring_says(lethe: Lethe) -> None:
    done = lethe("bench", "store", "--samples", 200, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts.keys() == {"models", "samples", "rows", "compact_s", "peak_mib"}
    assert (facts["models"], facts["samples"], len(facts["rows"])) == (640, 200, 8)
    for name in (*facts, *facts["rows"][0]):
        assert name in (bench_store.__doc__ or "")
