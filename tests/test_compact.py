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

from attacks import metrics, ulira
from orchestrator import audit, compact, overview, parquet, plans, report
from orchestrator import store as stores
from orchestrator.compact import Manifest, verify
from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.lock import Lock
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store, score_folder, score_rows
from tests.conftest import Lethe, grid_data, results_table

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
    """Let the process die at step n of those that change what others see: before or after a file gets its
    name, before or after one is deleted.
    """
    count, replace, delete = [0], os.replace, Store.delete

    def around(action: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            tick()
            action(*arguments)
            tick()

        return call

    def tick() -> None:
        count[0] += 1
        if count[0] == step:
            raise Killed

    patch.setattr(os, "replace", around(replace))
    patch.setattr(Store, "delete", around(delete))


def test_killed_before_or_after_any_step_nothing_is_lost_or_there_twice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and no kill of a process can undo a write
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
        assert content(copy) == before, step
        opened = Store.open(copy)
        done = compact.compact(opened)
        assert content(copy) == before, step
        assert verify(opened)[1] == done.missing == [], step
        assert [name for table in compact.TABLES for name in opened.leftovers(table)] == []
        assert all(len(opened.files(f"scores/{folder}")) == 1 for folder in (ONE, OTHER))
    assert step > 30


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


# ---- float16 ---------------------------------------------------------------------------------------------


def test_float16_moves_no_auc_by_1e_4_with_ties_counted_half(tmp_path: Path) -> None:
    """A simulated cell of 16 pairs: U-LiRA and one threshold on φ, from the stored scores."""
    store, rng = Store.create(str(tmp_path / "results")), np.random.default_rng(0)
    pairs, samples = 16, 5000
    hard = rng.normal(4, 2, samples)
    worlds = {
        "forgotten": rng.normal(hard + rng.gamma(1, 0.5, samples), 1, (pairs, samples)),
        "retrained": rng.normal(hard, 1, (pairs, samples)),
    }
    rows = []
    for world, values in worlds.items():
        for pair, phi in enumerate(values.astype(np.float32)):
            rows += score_rows(f"{world} {pair}", phi, phi > 0)
    store.write_part("scores", rows, "p", ONE)
    tasks = sorted({row["task_id"] for row in rows})
    store.write_part(
        "runs", [{"task_id": t, "part": "p", "attempt": 1, "status": "done"} for t in tasks], "p"
    )

    def read() -> list[np.ndarray]:
        phi = store.scores(store.runs(["task_id", "part"]), ONE)
        return [np.stack([phi[f"{world} {pair}"] for pair in range(pairs)]) for world in worlds]

    exact = read()
    size = sum(info.size for info in store.fs.get_file_info([store.path(n) for n in store.files("scores")]))
    compact.compact(store, "float16")
    rounded = read()
    [name] = store.files("scores")
    assert store.fs.get_file_info(store.path(name)).size < 0.6 * size
    assert pq.read_schema(store.path(name)).field("phi").type == pa.list_(pa.float16())
    assert all(
        a.dtype == np.float32 and not np.array_equal(a, b) for a, b in zip(rounded, exact, strict=True)
    )
    a, b = ulira.compare(*exact), ulira.compare(*rounded)
    for name in ("auc", "loss_auc", "balanced_accuracy"):
        assert abs(getattr(a, name) - getattr(b, name)) < 1e-4, name
    high, low = (world.ravel() for world in rounded)
    ties = sum(int(np.count_nonzero(low == value)) for value in np.unique(high)) and len(
        np.intersect1d(high, low)
    )
    assert ties > 1000  # rounding makes many
    strict = metrics.auc(*(world.ravel() for world in exact))
    assert abs(metrics.auc(high, low) - strict) < 1e-5
    below = np.searchsorted(np.sort(low), high, side="left").mean() / low.size
    assert abs(below - strict) > 1e-4  # what a tie counted as nothing would read


def test_float16_stays_and_what_is_beyond_its_range_is_its_largest_number(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    phi = np.array([1e6, -1e6, 0.1], np.float32)
    store.write_part("scores", list(score_rows("a", phi, phi > 0)), "p", ONE)
    store.write_part("runs", [{"task_id": "a", "part": "p", "attempt": 1, "status": "done"}], "p")
    compact.compact(store, "float16")
    expected = [65504.0, -65504.0, float(np.float16(0.1))]
    runs = store.runs(["task_id", "part"])
    assert store.scores(runs, ONE)["a"].tolist() == expected
    files = store.files("scores")
    for precision in ("float32", "float16"):
        compact.compact(store, precision)
        assert store.files("scores") == files
    put(store, 2, {"b": ONE})
    compact.compact(store)
    assert store.scores(runs, ONE)["a"].tolist() == expected
    assert np.array_equal(store.scores(store.runs(["task_id", "part"]), ONE)["b"], phi_of("b", 1))


# ---- elsewhere -------------------------------------------------------------------------------------------


def test_a_store_that_is_no_folder_is_compacted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem(skip_instance_cache=True)))
    monkeypatch.setattr(stores, "_from_uri", lambda uri: (memory, "/compact/results"))
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


# ---- a real run ------------------------------------------------------------------------------------------


def facts_of(results: Path) -> dict[str, Any]:
    store = Store.open(str(results))
    found = {form: report.render(store, form) for form in ("json", "csv")}
    return found | {"status": overview.of_store(store), "runs": results_table(results)}


def test_status_report_audit_and_resume_of_a_real_run(tmp_path: Path) -> None:
    grid = Grid.model_validate(
        grid_data(
            seeds=1,
            training={"all": {"epochs": 1}},
            audit={"pairs": 4, "forget_sets": 1, "columns": ["modified_entropy"]},
            run={"flush_s": 0.2},
        )
    )
    results = tmp_path / "results"
    options = Options(str(results), "data", address=None)
    ended = run_grid(grid, options)
    assert ended.done == ended.total
    store = Store.open(str(results))
    before, markdown = facts_of(results), report.render(store, "md")
    assert len(store.files("runs")) > 2, "several parts, or nothing is shown"
    compact.compact(store)
    assert facts_of(results) == before and report.render(store, "md") == markdown
    audits = store.files("audits")
    audit.write(Store.open(store.uri), plans.recall(store))
    assert store.files("audits") == audits  # no row was computed again
    again = run_grid(grid, options)
    assert (again.ran, again.done) == (0, ended.total)
    assert facts_of(results) == before
    folder = score_folder("digits", "cnn_small", "unlearn", "finetune")
    runs = store.runs(["task_id", "part", "track"])
    scored = {row["task_id"] for row in runs.to_pylist() if row["track"] == "audit"}
    found = store.scores(runs, folder, "modified_entropy")
    assert found.keys() == scored & store.scores(runs, folder).keys()  # the main track has none
    assert all(values.dtype == np.float16 and len(values) == 1797 for values in found.values())
    assert all((values >= 0).all() for values in found.values())
    [name] = store.files(f"scores/{folder}")
    facts = store.facts(name)
    assert facts is not None and facts["views"] == [[False, 0, 0]] and '"torch"' in facts["versions"][0]
    assert parquet.COMPACT in name
