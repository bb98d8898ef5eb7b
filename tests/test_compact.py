"""Compaction changes files and nothing else: killed anywhere, on damage, in float16, on an object store."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from orchestrator import compact
from orchestrator.compact import Manifest, verify
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import Lethe

ONE, OTHER = (score_folder("digits", "cnn_small", "unlearn", name) for name in ("finetune", "salun"))
COLUMNS = ("phi", "correct", "entropy")
SAMPLES = 9000  # three chunks
DAY = "0000000000000{}-x"


def phi_of(task: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *task.encode()]).normal(4, 3, SAMPLES).astype(np.float32)


def put(
    store: Store,
    number: int,
    tasks: dict[str, str],
    *,
    recorded: bool = True,
    attempt: int = 1,
    status: str = "done",
    columns: bool = False,
) -> str:
    """A part with models (task -> folder), two views each."""
    part = DAY.format(number)
    for folder in sorted(set(tasks.values())):
        rows: list[dict[str, Any]] = []
        for task in (task for task, place in tasks.items() if place == folder):
            phi = phi_of(task, attempt)
            further = {"entropy": np.abs(phi).astype(np.float16)} if columns else {}
            rows += score_rows(task, phi, phi > 0, [phi_of(task, 100)], further)
        store.write_part("scores", rows, part, folder, {"versions": [f'{{"lethe":"{number}"}}']})
    if recorded:
        rows = [{"task_id": t, "part": part, "attempt": attempt, "status": status} for t in tasks]
        store.write_part("designs", [{"design": f"design of {part}"}], part)
        store.write_part("runs", rows, part)
    return part


def filled(store: Store) -> Store:
    """Three parts, two folders, a superseded attempt and a write that was cut off."""
    put(store, 1, {"a": ONE, "b": ONE, "c": OTHER})
    put(store, 2, {"d": ONE, "e": OTHER, "b": ONE}, attempt=2)
    put(store, 3, {"f": OTHER, "g": ONE}, columns=True)
    put(store, 4, {"h": ONE}, recorded=False)
    store.write_part("samples", [{"sample_id": 0, "label": 3}], "p", "dataset=digits")
    store.write_part("samples", [{"sample_id": 1, "label": 4}], "q", "dataset=digits")
    return store


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return filled(Store.create(str(weird_tmp_path / "results")))


def content(uri: str | Store) -> dict[str, Any]:
    """All that can be read: rows of the small tables, and every column of every live model."""
    store = Store.open(uri) if isinstance(uri, str) else uri
    tables = {
        name: Counter(map(str, store.read_table(name).to_pylist()))
        for name in ("runs", "designs", "samples", "audits")
    }
    runs = store.runs(["task_id", "part"])
    values = {
        (folder, column, task, view): array.tobytes()
        for folder in (ONE, OTHER)
        for column in COLUMNS
        for task, views in store.views(runs, folder, column).items()
        for view, array in enumerate(views)
    }
    assert store.damaged == []
    return tables | {"values": values, "usable": usable(store, values)}


def usable(store: Store, values: Iterable[tuple[str, ...]]) -> set[tuple[str, str]]:
    """(folder, task) whose scores are there, by what a resumed run looks at."""
    readable = store.readable_scores()
    parts = {row["task_id"]: row["part"] for row in store.runs(["task_id", "part"]).to_pylist()}
    return {(folder, task) for folder, _, task, _ in values if (folder, parts[task]) in readable}


# ---- the same results ------------------------------------------------------------------------------------


def test_everything_reads_the_same_from_one_file_for_each_folder(store: Store) -> None:
    before = content(store.uri)
    assert len(before["values"]) == 7 * 3 + 2  # two views of φ and one of correctness; entropy of two
    done = compact.compact(store)
    assert content(store.uri) == before
    assert (done.superseded, done.cut_off, done.damaged, done.missing) == (1, 1, [], [])
    folders = [name.rpartition("/")[0] for table in compact.TABLES for name in store.files(table)]
    assert sorted(folders) == sorted(
        {"runs", "designs", "samples/dataset=digits", f"scores/{ONE}", f"scores/{OTHER}"}
    )
    assert "Dropped scores: of 1 superseded attempts, of 1 models" in compact.as_text(done)


def test_a_second_call_leaves_every_file_as_it_is_and_a_third_takes_new_parts_in(store: Store) -> None:
    compact.compact(store)
    files = {name: store.read(name) for name in store.files("")}
    again = compact.compact(Store.open(store.uri))
    assert {name: store.read(name) for name in store.files("")} == files
    assert (again.files_before, again.superseded, again.cut_off) == (again.files_after, 0, 0)
    put(store, 5, {"i": ONE, "a": ONE}, attempt=3)
    before = content(store.uri)
    third = compact.compact(store)
    assert content(store.uri) == before
    assert third.superseded == 1 and len(store.files(f"scores/{ONE}")) == 1
    assert set(files) & set(store.files(f"scores/{OTHER}"))  # nothing new in there: not written again


def test_a_failure_after_a_success_supersedes_its_scores(store: Store) -> None:
    compact.compact(store)
    store.write_part("runs", [{"task_id": "a", "part": "z", "attempt": 9, "status": "oom"}], "z")
    assert compact.compact(store).superseded == 1
    [name] = store.files(f"scores/{ONE}")
    assert "a" not in pq.read_table(store.path(name))["task_id"].to_pylist()


def test_rows_are_sample_major_with_a_row_group_for_each_chunk(store: Store) -> None:
    compact.compact(store)
    [name] = store.files(f"scores/{ONE}")
    file = pq.ParquetFile(store.path(name))
    groups = [
        file.read_row_group(i, ["chunk", "task_id", "view"]).to_pylist() for i in range(file.num_row_groups)
    ]
    assert [{row["chunk"] for row in group} for group in groups] == [{0}, {1}, {2}]
    expected = [(task, view) for task in "abdg" for view in (0, 1)]
    assert all([(row["task_id"], row["view"]) for row in group] == expected for group in groups)
    phi = phi_leaf(store, name, 0)
    assert "BYTE_STREAM_SPLIT" in phi.encodings and phi.compression == "ZSTD"


def phi_leaf(store: Store, name: str, group: int) -> Any:
    """What a file says of the column φ in one of its row groups."""
    found = pq.read_metadata(store.path(name)).row_group(group)
    leaves = (found.column(i) for i in range(found.num_columns))
    return next(leaf for leaf in leaves if leaf.path_in_schema == "phi.list.element")


class _Counted:
    """A file system that counts the bytes that are read."""

    def __init__(self, inner: fs.FileSystem) -> None:
        self.inner, self.bytes = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open_input_file(self, path: str) -> pa.PythonFile:
        counted = self

        class File(io.FileIO):
            def read(self, size: int = -1) -> bytes:
                data = super().read(size)
                counted.bytes += len(data)
                return data

        return pa.PythonFile(File(path), mode="r")


def test_one_chunk_of_all_models_is_read_without_the_others(store: Store) -> None:
    runs, chunk = store.runs(["task_id", "part"]), slice(4096, 8192)
    from_parts = store.views(runs, ONE, chunks=[1])
    compact.compact(store)
    [name] = store.files(f"scores/{ONE}")
    counted = _Counted(store.fs)
    store.fs = counted
    found = store.views(runs, ONE, chunks=[1])
    assert found.keys() == from_parts.keys() == {"a", "b", "d", "g"}
    for task in found:
        assert np.array_equal(found[task][0], phi_of(task, 2 if task in "bd" else 1)[chunk])
        assert all(np.array_equal(*pair) for pair in zip(found[task], from_parts[task], strict=True))
    phi = phi_leaf(store, name, 1)
    ends = 2 * 2**16  # the ends of the file, for its metadata, twice
    assert phi.total_compressed_size < counted.bytes < phi.total_compressed_size + 20_000 + ends
    counted.bytes = 0
    store.views(runs, ONE)
    assert counted.bytes > 2 * phi.total_compressed_size


def test_metadata_say_what_the_scores_are_and_what_made_them(store: Store) -> None:
    compact.compact(store)
    [name] = store.files(f"scores/{ONE}")
    facts = store.facts(name)
    assert facts is not None
    assert facts["views"] == [[False, 0, 0], [False, -1, -1]]  # digits are not mirrored
    assert facts["phi"].startswith("phi = z_y - logsumexp") and facts["half"] is False
    assert facts["versions"] == [f'{{"lethe":"{number}"}}' for number in (1, 2, 3, 4)]
    assert facts["parts"] == [DAY.format(number) for number in (1, 2, 3)]
    assert pq.read_schema(store.path(name)).metadata[b"lethe_schema_version"] == b"1"


# ---- killed ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Raised in place of a step of the file system, as a signal that cannot be caught would come."""


def dying(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die right after step n of those that others see: a file got its name or is deleted."""
    count = [0]

    def then(action: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            action(*arguments)
            count[0] += 1
            if count[0] == step:
                raise Killed

        return call

    patch.setattr(os, "replace", then(os.replace))
    patch.setattr(Store, "delete", then(Store.delete))


def test_killed_after_any_step_nothing_is_lost_or_there_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was compacted once, so that merged files are merged again, and a manifest names them."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and no kill of a process can undo a write
    compact.compact(store)
    put(store, 5, {"i": ONE, "a": ONE, "j": OTHER}, attempt=3)
    store.write_part("samples", [{"sample_id": 2, "label": 5}], "r", "dataset=digits")
    before, step, finished = content(store.uri), 0, False
    while not finished:
        step += 1
        copy = str(tmp_path / f"killed at {step}")
        shutil.copytree(store.root, copy)
        with monkeypatch.context() as patch:
            dying(patch, step)
            try:
                compact.compact(Store.open(copy))
                finished = True
            except Killed:
                pass
        Path(copy, "runs", ".0123.tmp").write_bytes(b"what a killed write leaves")
        opened = Store.open(copy)
        assert content(copy) == before and verify(opened)[1] == [], step
        done = compact.compact(opened)
        assert content(copy) == before, step
        assert verify(opened)[1] == done.missing == [], step
        assert [name for table in compact.TABLES for name in opened.leftovers(table)] == []
        assert all(len(opened.files(f"scores/{folder}")) == 1 for folder in (ONE, OTHER))
    assert step > 15


def test_nobody_compacts_while_a_driver_runs(store: Store, lethe: Lethe) -> None:
    files = store.files("")
    with Lock(store):
        done = lethe("store", "compact", "--results", store.root)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "has been running on these results" in done.stderr
    assert store.files("") == files


# ---- damage ----------------------------------------------------------------------------------------------


def test_damaged_parts_are_named_and_left_and_their_rows_dropped_by_nobody(store: Store) -> None:
    cut, spoilt = f"scores/{ONE}/{DAY.format(1)}.parquet", f"scores/{OTHER}/{DAY.format(2)}.parquet"
    data = bytearray(store.read(spoilt))
    phi = phi_leaf(store, spoilt, 0)
    data[phi.data_page_offset + phi.total_compressed_size // 2] ^= 1  # the index reads, a page of φ does not
    store.write(spoilt, bytes(data))
    store.write(cut, store.read(cut)[:-9])
    done = compact.compact(store)
    assert sorted(done.damaged) == sorted([cut, spoilt])
    assert store.exists(cut) and store.exists(spoilt)
    assert store.read(spoilt) == bytes(data)
    runs = store.runs(["task_id", "part"])
    assert store.views(runs, ONE).keys() == {"b", "d", "g"} and store.views(runs, OTHER).keys() == {"c", "f"}
    assert f"{cut} cannot be read and was left" in compact.as_text(done)
    assert not {cut, spoilt} & Manifest(store).files.keys() and verify(store)[1] == []


def test_scores_are_kept_where_their_rows_cannot_be_read(store: Store) -> None:
    name = f"runs/{DAY.format(3)}.parquet"
    whole = store.read(name)
    store.write(name, whole[:-9])
    done = compact.compact(store)
    assert (done.superseded, done.cut_off) == (1, 0)
    store.write(name, whole)  # somebody has a copy
    assert Store.open(store.uri).views(Store.open(store.uri).runs(["task_id", "part"]), OTHER).keys() == set(
        "cef"
    )


def test_a_merged_file_that_is_damaged_is_named_and_its_tasks_run_again(store: Store) -> None:
    compact.compact(store)
    [name] = store.files(f"scores/{ONE}")
    store.write(name, store.read(name)[:-9])
    opened = Store.open(store.uri)
    assert {folder for folder, _ in opened.readable_scores()} == {OTHER}
    assert opened.damaged == [name] == opened.set_aside()
    done = compact.compact(Store.open(store.uri))
    assert done.missing == [name] and "is gone" in compact.as_text(done)


# ---- the manifest ----------------------------------------------------------------------------------------


def test_the_manifest_names_files_that_differ_or_are_gone(store: Store, lethe: Lethe) -> None:
    with pytest.raises(UserError, match="lethe store compact"):
        verify(store)
    compact.compact(store)
    files = [name for table in compact.TABLES for name in store.files(table)]
    assert verify(store) == (len(files), [])
    put(store, 7, {"z": ONE})  # a later part is no difference
    assert verify(store) == (len(files), [])
    changed, gone = files[0], files[-1]
    data = bytearray(store.read(changed))
    data[10] ^= 1
    store.write(changed, bytes(data))
    store.delete(gone)
    assert [line.split()[0] for line in verify(store)[1]] == [changed, gone]
    done = lethe("store", "verify", "--results", store.root)
    assert done.returncode == 1 and f"{gone} is gone" in done.stdout
    assert f"{len(files) - 2} of {len(files)} files are as they were written." in done.stdout


def test_a_manifest_does_not_take_damage_for_the_truth(store: Store) -> None:
    compact.compact(store)
    [name] = store.files("runs")
    data = bytearray(store.read(name))
    data[-20] ^= 1  # text of the metadata, which nobody checks
    store.write(name, bytes(data))
    compact.compact(Store.open(store.uri))
    assert [line.split()[0] for line in verify(store)[1]] == [name]
    store.write(compact.MANIFEST, b"{")
    with pytest.raises(UserError, match="not readable"):
        Manifest(store)


# ---- elsewhere -------------------------------------------------------------------------------------------


def test_a_store_that_is_no_folder_is_compacted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem(skip_instance_cache=True)))
    monkeypatch.setattr("orchestrator.remote.from_uri", lambda uri: (memory, "/compact/results"))
    remote = filled(Store.create("memory://bucket/results"))
    before = content(remote)
    with Lock(remote) as lock:
        compact.compact(remote, "float32", lock.beat)
    assert content(remote) == before and verify(remote)[1] == []

    def broken(*_: Any) -> Iterator[pa.Table]:
        raise OSError("the network is gone")

    put(remote, 8, {"k": ONE})
    monkeypatch.setattr(compact._Scores, "_rows_of", broken)
    files = remote.files("")
    with pytest.raises(OSError, match="network"):
        compact.compact(remote)
    assert [name for name in remote.files("") if name not in files and name.startswith("scores/")] == []


def test_few_rows_at_a_time_give_the_same_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(store.uri)
    monkeypatch.setattr(compact, "ROWS_AT_ONCE", 1)
    compact.compact(store)
    assert content(store.uri) == before
    assert pq.ParquetFile(store.path(store.files(f"scores/{ONE}")[0])).num_row_groups == 3


def test_a_wrong_precision_is_one_line(store: Store, lethe: Lethe) -> None:
    done = lethe("store", "compact", "--results", store.root, "--precision", "float61")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "--precision float61: unknown. Did you mean 'float16'? Allowed: float32, float16."
    ]
