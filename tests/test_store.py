"""The results folder: whole files or none, the last attempt counts, damage is named, strangers refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from orchestrator import remote, schema
from orchestrator.errors import UserError
from orchestrator.store import MARKER, Store, new_part, score_folder, score_rows

FOLDER = score_folder("digits", "cnn_small", "base", "")


@pytest.fixture
def store(weird_tmp_path: Path) -> Store:
    return Store.create(str(weird_tmp_path / "results"))


@pytest.fixture(params=["path", "file uri", "remote"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on a path, on a file:// URI, and on a file system that is no folder, as an object store is."""
    if request.param == "path":
        return Store.create(str(tmp_path / "results"))
    if request.param == "file uri":
        return Store.create((tmp_path / "results").as_uri())
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem(skip_instance_cache=True)))
    monkeypatch.setattr(remote, "from_uri", lambda uri: (memory, f"/{tmp_path.name}/results"))
    store = Store.create("memory://bucket/results")
    assert not store.local
    return store


def row(task: str, attempt: int = 1, **columns: Any) -> dict[str, Any]:
    return {"task_id": task, "attempt": attempt, "status": "done"} | columns


def put_scores(store: Store, task: str, phi: np.ndarray, part: str, *, with_row: bool = True) -> None:
    store.write_part("scores", list(score_rows(task, phi, phi > 0)), part, FOLDER)
    if with_row:
        store.write_part("runs", [row(task, part=part)], part)


def phi_of(store: Store, *tasks: str) -> dict[str, np.ndarray]:
    runs = store.runs(["task_id", "part"])
    wanted = [facts for facts in runs.to_pylist() if facts["task_id"] in tasks]
    return store.scores(pa.Table.from_pylist(wanted, runs.schema), FOLDER)


# ---- files -----------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("logs/a.txt", b"old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(OSError, match="disk full"):
                store.write("logs/a.txt", b"new")
        assert store.read("logs/a.txt") == b"old"
        assert os.listdir(store.path("logs")) == ["a.txt"]


def test_a_file_is_synced_before_it_gets_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    store.write("runs/x.parquet", b"content")
    assert events == ["fsync", "replace", "fsync"]  # the content, the name, the folder that holds the name


def test_leftovers_of_a_write_that_was_killed_are_not_read(store: Store) -> None:
    store.write_part("runs", [row("a")], new_part())
    Path(store.path("runs", ".0123.tmp")).write_bytes(b"half a part")
    assert store.runs(["status"]).num_rows == 1
    assert store.damaged == []


def test_parts_have_names_of_their_own_in_the_order_of_time() -> None:
    names = [new_part() for _ in range(200)]
    assert len(set(names)) == len(names)
    times = [name.split("-")[0] for name in names]
    assert times == sorted(times)


def test_files_are_found_below_a_folder_and_relative_to_the_root(any_store: Store) -> None:
    any_store.write("runs/b.parquet", b"")
    any_store.write("runs/deep/er/a.parquet", b"")
    any_store.write("runs/c.txt", b"")
    assert any_store.files("runs") == ["runs/b.parquet", "runs/deep/er/a.parquet"]
    assert any_store.files("nothing") == []
    any_store.delete("runs/b.parquet")
    any_store.delete("runs/b.parquet")  # a second time is no error
    assert any_store.files("runs") == ["runs/deep/er/a.parquet"]


def test_models_and_logs_round_trip(any_store: Store) -> None:
    assert not any_store.has_model("a")
    any_store.write_model("a", b"\x00weights")
    assert any_store.has_model("a") and any_store.read_model("a") == b"\x00weights"
    any_store.delete_model("a")
    assert not any_store.has_model("a")
    assert any_store.read(any_store.write_log("a", 2, "trace ö")) == "trace ö".encode()


# ---- the ledger ------------------------------------------------------------------------------------------


def test_the_highest_attempt_counts_whatever_the_order_of_the_parts(any_store: Store) -> None:
    any_store.write_part("runs", [row("a", 2, status="oom"), row("b", 1)], "00000000000009-x")
    any_store.write_part("runs", [row("a", 3), row("b", 2, status="bug")], "00000000000001-x")
    any_store.write_part("runs", [row("a", 1, status="timeout")], "00000000000005-x")
    latest = {r["task_id"]: (r["status"], r["attempt"]) for r in any_store.runs(["status"]).to_pylist()}
    assert latest == {"a": ("done", 3), "b": ("bug", 2)}
    assert any_store.read_table("runs").num_rows == 5


def test_an_empty_ledger_has_all_columns(any_store: Store) -> None:
    assert any_store.runs().column_names == [column.name for column in schema.RUNS]
    assert any_store.runs(["status"]).num_rows == 0


def test_columns_left_out_are_null_and_types_are_the_schemas(store: Store) -> None:
    store.write_part("runs", [row("a", ra=0.5, parents=["b", "c"])], "p")
    table = store.read_table("runs")
    assert table.schema.types == schema.arrow("runs").types
    (found,) = table.to_pylist()
    assert (found["ra"], found["parents"], found["ta"], found["reason"]) == (0.5, ["b", "c"], None, None)


def test_parts_carry_their_table_version_and_the_meaning_of_their_columns(store: Store) -> None:
    store.write_part("runs", [row("a")], "p")
    found = pq.read_schema(store.path("runs", "p.parquet"))
    assert found.metadata[b"lethe_table"] == b"runs"
    assert found.metadata[b"lethe_schema_version"] == str(schema.SCHEMA_VERSION).encode()
    assert found.field("wall_s").metadata[b"unit"] == b"s"


# ---- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 10_000])
def test_scores_round_trip_over_chunks(any_store: Store, count: int) -> None:
    rng = np.random.default_rng(count)
    one, other = (rng.normal(size=count).astype(np.float32) for _ in range(2))
    both = [*score_rows("one", one, one > 0), *score_rows("other", other, other > 0)]
    assert [r["chunk"] for r in both if r["task_id"] == "one"] == list(range(-(-count // 4096)))
    any_store.write_part("scores", both[::-1], "p", FOLDER)  # the order of rows does not matter
    any_store.write_part("runs", [row("one", part="p"), row("other", part="p")], "p")
    runs = any_store.runs(["task_id", "part"])
    for column, expected in (("phi", one), ("correct", one > 0)):
        found = any_store.scores(runs, FOLDER, column)
        assert found.keys() == {"one", "other"}
        assert found["one"].dtype == expected.dtype
        assert np.array_equal(found["one"], expected)
    assert np.array_equal(any_store.scores(runs, FOLDER)["other"], other)


def test_views_round_trip_and_scores_are_of_the_image_as_it_is(store: Store) -> None:
    views = [np.random.default_rng(seed).normal(size=5000).astype(np.float32) for seed in range(3)]
    store.write_part("scores", list(score_rows("a", views[0], views[0] > 0, views[1:])), "p", FOLDER)
    store.write_part("runs", [row("a", part="p")], "p")
    runs = store.runs(["task_id", "part"])
    found = store.views(runs, FOLDER)["a"]
    assert len(found) == 3 and all(np.array_equal(*pair) for pair in zip(found, views, strict=True))
    assert np.array_equal(store.scores(runs, FOLDER)["a"], views[0])
    assert np.array_equal(store.scores(runs, FOLDER, "correct")["a"], views[0] > 0)


def test_a_column_that_old_parts_lack_is_null_there(store: Store) -> None:
    phi, entropy = np.ones(5000, np.float32), np.arange(5000).astype(np.float16)
    old = pa.Table.from_pylist(list(score_rows("old", phi, phi > 0)), schema.arrow("scores"))
    store.write_part("scores", old.drop_columns(["entropy", "modified_entropy", "part"]), "p", FOLDER)
    store.write_part(
        "scores", list(score_rows("new", phi, phi > 0, [phi], {"entropy": entropy})), "q", FOLDER
    )
    store.write_part("runs", [row("old", part="p"), row("new", part="q")], "r")
    runs = store.runs(["task_id", "part"])
    assert store.views(runs, FOLDER).keys() == {"old", "new"}
    [(task, [found])] = store.views(runs, FOLDER, column="entropy").items()
    assert task == "new" and found.dtype == np.float16 and np.array_equal(found, entropy)
    assert store.views(runs, FOLDER, column="modified_entropy") == {}
    table = store.read_table("scores").to_pylist()
    assert [r["entropy"] for r in table if r["task_id"] == "old"] == [None, None]


def test_a_page_whose_bytes_were_changed_is_damage(store: Store) -> None:
    """φ is stored byte by byte: without a checksum another number would be read."""
    phi = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    put_scores(store, "a", phi, "p")
    name = f"scores/{FOLDER}/p.parquet"
    group = pq.read_metadata(store.path(name)).row_group(0)
    leaves = (group.column(i) for i in range(group.num_columns))
    leaf = next(leaf for leaf in leaves if leaf.path_in_schema == "phi.list.element")
    data = bytearray(store.read(name))
    for place in range(leaf.data_page_offset + 200, leaf.data_page_offset + leaf.total_compressed_size, 997):
        data[place] ^= 1
    store.write(name, bytes(data))
    assert phi_of(store, "a") == {} and store.damaged == [name]


def test_scores_without_their_row_belong_to_a_write_that_was_cut_off(store: Store) -> None:
    orphan, real = np.full(5, -1, np.float32), np.arange(5, dtype=np.float32)
    put_scores(store, "a", orphan, "00000000000001-killed", with_row=False)
    assert phi_of(store, "a") == {}
    put_scores(store, "a", real, "00000000000002-again")
    put_scores(store, "a", orphan, "00000000000003-killed", with_row=False)
    assert np.array_equal(phi_of(store, "a")["a"], real)


def test_a_later_attempt_brings_its_own_scores(store: Store) -> None:
    for attempt in (1, 2):
        part = f"0000000000000{attempt}-x"
        phi = np.full(5000, attempt, np.float32)
        store.write_part("scores", list(score_rows("a", phi, phi > 0)), part, FOLDER)
        store.write_part("runs", [row("a", attempt, part=part)], part)
    assert np.array_equal(phi_of(store, "a")["a"], np.full(5000, 2, np.float32))


# ---- damage ----------------------------------------------------------------------------------------------


def test_a_damaged_or_foreign_part_is_named_and_set_aside(any_store: Store) -> None:
    any_store.write_part("runs", [row("a")], "good")
    any_store.write_part("runs", [row("b")], "cut")
    any_store.write("runs/cut.parquet", any_store.read("runs/cut.parquet")[:-10])
    any_store.write("runs/empty.parquet", b"")
    any_store.write("runs/text.parquet", b"not parquet at all")
    any_store.write_part("designs", [{"design": "x"}], "p")
    any_store.write("runs/other_table.parquet", any_store.read("designs/p.parquet"))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"task_id": ["c"], "attempt": [1]}), sink)
    any_store.write("runs/somebody.parquet", sink.getvalue())
    names = [f"runs/{stem}.parquet" for stem in ("cut", "empty", "other_table", "somebody", "text")]

    assert any_store.runs(["status"])["task_id"].to_pylist() == ["a"]
    assert sorted(any_store.damaged) == names
    assert any_store.set_aside() == names
    assert any_store.files("runs") == ["runs/good.parquet"]
    assert any_store.files("aside") == [f"aside/{name.replace('/', '__')}" for name in names]
    assert any_store.damaged == [] and any_store.set_aside() == []
    assert any_store.runs(["status"]).num_rows == 1 and any_store.damaged == []


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_damage_is_fatal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A part cut anywhere, or with bytes changed: rows or a name in `damaged`, never an exception."""
    store = Store.create(str(tmp_path_factory.mktemp("damage")))
    store.write_part("runs", [row("a", reason="x" * 50), row("b", parents=["c"])], "p")
    content = bytearray(store.read("runs/p.parquet"))
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
        lost = True
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        lost = False
    store.write("runs/p.parquet", bytes(content))
    rows = store.runs(["status"]).num_rows
    assert rows == 0 if lost else True
    assert bool(store.damaged) or rows > 0


def test_scores_in_a_damaged_part_are_named_not_fatal(store: Store) -> None:
    put_scores(store, "a", np.ones(5, np.float32), "p")
    path = Path(store.path("scores", FOLDER, "p.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    assert phi_of(store, "a") == {}
    assert store.damaged == [f"scores/{FOLDER}/p.parquet"]


# ---- whose folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("footer", [0, 40_000])  # bytes beyond what is read of the end at first
def test_parts_of_scores_with_a_sound_end_are_readable(any_store: Store, footer: int) -> None:
    """Ends that are cut off, foreign, of another table or gone are damage, and nothing else is."""
    rows = list(score_rows("a", np.ones(3, np.float32), np.ones(3, bool)))
    for part in ("whole", "cut", "empty", "short", "foreign"):
        any_store.write_part("scores", rows, part, "folder", {"long": "x" * footer})
    any_store.write_part("runs", [{"task_id": "a"}], "other")
    damage = {
        "cut": any_store.read("scores/folder/cut.parquet")[:-9],
        "empty": b"",
        "short": b"PAR1",
        "foreign": any_store.read("runs/other.parquet"),
    }
    for part, data in damage.items():
        any_store.write(f"scores/folder/{part}.parquet", data)
    assert any_store.readable_scores() == {("folder", "whole")}
    assert sorted(any_store.damaged) == sorted(f"scores/folder/{part}.parquet" for part in damage)


def test_a_folder_that_is_not_ours_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    file = tmp_path / "thesis.tex"
    for uri in (str(tmp_path), str(file)):
        for opening in (Store.open, Store.create, Store.open_if_any):
            with pytest.raises(UserError, match="holds no Lethe results"):
                opening(uri)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_opening_needs_results_and_creating_makes_them(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "deep")
    with pytest.raises(UserError, match="no results yet"):
        Store.open(uri)
    assert Store.open_if_any(uri) is None
    assert not (tmp_path / "new").exists()
    Store.create(uri)
    Store.create(uri)
    assert Store.open_if_any(uri) is not None
    (tmp_path / "empty").mkdir()
    assert Store.open_if_any(str(tmp_path / "empty")) is None
    Store.create(str(tmp_path / "empty"))


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"lethe_schema_version": 99}'])
def test_another_version_or_a_broken_marker_is_refused(tmp_path: Path, content: str) -> None:
    uri = str(tmp_path / "results")
    Store.create(uri)
    (tmp_path / "results" / MARKER).write_text(content)
    for opening in (Store.open, Store.create):
        with pytest.raises(UserError, match="99, this Lethe writes" if "99" in content else "not readable"):
            opening(uri)


@pytest.mark.parametrize("uri", ["nosuchscheme://bucket/x", "s3://"])
def test_a_uri_that_leads_nowhere_is_one_clear_line(uri: str) -> None:
    with pytest.raises(UserError, match="--results"):
        Store.create(uri)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        Store.create(str(tmp_path / "file" / "results"))


def test_a_path_and_its_uri_are_the_same_store(weird_tmp_path: Path) -> None:
    folder = weird_tmp_path / "résults #1 100%"
    Store.create(str(folder)).write_part("runs", [row("a")], "p")
    assert Store.open(folder.as_uri()).runs(["status"]).num_rows == 1
    assert Store.open(folder.as_uri() + "/").files("runs") == ["runs/p.parquet"]


# ---- the schema ------------------------------------------------------------------------------------------

COLUMNS = [(table, column) for table, columns in schema.TABLES.items() for column in columns]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[f"{t}.{c.name}" for t, c in COLUMNS])
def test_every_column_says_what_it_means_and_in_which_unit(table: str, column: schema.Column) -> None:
    assert len(column.meaning) >= 5
    for ending, unit in (("_s", "s"), ("_at", "s"), ("_mib", "MiB"), ("_loss", "nats")):
        if column.name.endswith(ending):
            assert column.unit == unit
    value = column.type.value_type if pa.types.is_list(column.type) else column.type
    dimensionless = (
        "nu0_positive",
        "nu0_negative",
        "mu_split",
        "gus",
    )  # degrees of freedom; means of N(μ, 1)
    if pa.types.is_floating(value) and column.name not in dimensionless:
        assert column.unit, "a measured number has a unit"
    assert column.unit in ("", "s", "MiB", "nats", "nats²", "nats³", "nats⁴", "fraction", "samples")


def test_tables_have_the_columns_that_scripts_rely_on() -> None:
    names = [column.name for column in schema.RUNS]
    relied_on = "task_id kind dataset architecture forget method seed design status reason ra fa va ta wall_s"
    assert set(relied_on.split()) <= set(names)
    for columns in schema.TABLES.values():
        assert len({column.name for column in columns}) == len(columns)
