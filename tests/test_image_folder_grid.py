"""Folders of pictures in grids: the entry that `prepare` prints, plans without a folder, moved results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator import cost, datasets, plans
from orchestrator.cli import app
from orchestrator.config import Grid, load
from orchestrator.describe import entry_of
from orchestrator.errors import UserError
from orchestrator.keys import digest
from orchestrator.plan import Plan, make_plan
from orchestrator.report import render
from orchestrator.report_card import cards
from orchestrator.report_rows import collect
from orchestrator.runner import Ended, Options, run_grid
from orchestrator.store import Store
from orchestrator.strict_yaml import read_yaml
from tests.conftest import Lethe, grid_data
from tests.dataset_files import write_file, write_pictures
from workers.image_folder import scan

pytestmark = pytest.mark.usefixtures("quick_runs")

ENTRY: dict[str, Any] = {
    "name": "flowers",
    "path": "flowers",
    "size": 16,
    "channels": 3,
    "classes": ["daisy", "rose", "no"],
    "pool_size": 96,
    "test_size": 24,
    "mean": [0.3, 0.4, 0.5],
    "std": [0.2, 0.3, 0.25],
    "sha256": "ab" * 32,
}


def with_entry(**changes: Any) -> dict[str, Any]:
    """A grid on one folder; a change to None takes a key of the entry away."""
    entry = {key: value for key, value in (ENTRY | changes).items() if value is not None}
    return grid_data(datasets=[{"image_folder": entry}], audit=None, seeds=1)


def planned(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(with_entry(**changes)))


def problems(path: Path, data: dict[str, Any]) -> list[str]:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert all(len(line.splitlines()) == 1 for line in caught.value.problems)
    return [line.removeprefix(f"{path}  ") for line in caught.value.problems]


# ---- mistakes --------------------------------------------------------------------------------------------

MISTAKES = [
    ({"name": "my flowers"}, "image_folder.name: 'my flowers' is no name. Allowed are up to 64 letters"),
    ({"name": "../x"}, "'../x' is no name"),
    ({"name": "x" * 65}, "is no name"),
    ({"name": "digits"}, "image_folder.name: 'digits' means something else in a grid already."),
    ({"name": "cnn_small"}, "'cnn_small' means something else"),
    ({"name": "all"}, "'all' means something else"),
    ({"size": 0}, "image_folder.size: 0 is out of range, at least 8."),
    ({"size": 2000}, "image_folder.size: 2000 is out of range, at most 1024."),
    ({"channels": 4}, "image_folder.channels: 4 is not one of 1 or 3."),
    ({"channels": 1}, "image_folder: mean has 3 values for channels: 1."),
    ({"std": [0.1, 0.0, 0.1]}, "image_folder.std[1]: 0.0 is out of range, more than 0."),
    ({"mean": [float("nan"), 0.1, 0.1]}, "image_folder.mean[0]: "),
    ({"mean": [128, 0.1, 0.1]}, "image_folder.mean[0]: 128 is out of range, at most 1."),
    ({"classes": ["daisy"]}, "image_folder.classes: 1 is too few, at least 2."),
    ({"classes": ["daisy", 5]}, "image_folder.classes[1]: Input should be a valid string, not 5."),
    ({"sha256": "beef"}, "image_folder.sha256: 'beef' is no SHA-256 sum, 64 hexadecimal digits."),
    (
        {"sizes": 3},
        "image_folder.sizes: unknown key. Did you mean 'size'? Allowed: name, path, size, channels,",
    ),
    ({"augment_flip": "yes"}, "image_folder.augment_flip: "),
]


@pytest.mark.parametrize(("changes", "told"), MISTAKES)
def test_a_mistake_in_an_entry_is_one_line(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    [line] = problems(tmp_path / "g.yaml", with_entry(**changes))
    assert line.startswith("datasets[0]: image_folder") and told in line


def test_missing_facts_are_one_line_with_the_command_that_prints_them(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    changes = dict.fromkeys(["classes", "pool_size", "test_size", "mean", "std", "sha256"])
    [line] = problems(path, with_entry(**changes, path="my flowers"))
    assert line == (
        "datasets[0]: image_folder: classes, pool_size, test_size, mean, std, sha256 missing. `lethe prepare"
        " image_folder 'my flowers' --size 16 --name flowers` prints the whole entry."
    )
    lines = problems(path, with_entry(**changes, size="big", name=None, channels=1))
    assert len(lines) == 2 and "image_folder.size: " in lines[0]
    assert "image_folder flowers --size N --channels 1` prints" in lines[1]
    [line] = problems(path, grid_data(datasets=["image_folder"]))
    assert "name, path, size, classes" in line and "`lethe prepare image_folder PATH --size N` prints" in line


@pytest.mark.parametrize("entry", [{"digits": {}}, {"image_folder": 3}, {"image_folder": {}, "x": {}}, 3, []])
def test_what_is_neither_a_name_nor_an_entry_is_one_line(entry: Any, tmp_path: Path) -> None:
    [line] = problems(tmp_path / "g.yaml", grid_data(datasets=[entry]))
    assert line.startswith("datasets[0]: write a name or {image_folder: {name: …, path: …, …}}, not ")


def test_names_of_folders_are_known_where_datasets_are_named(tmp_path: Path) -> None:
    path, data = tmp_path / "g.yaml", with_entry()
    data["forget"] = [{"class": {"classes": [1, 3]}}]
    [line] = problems(path, data)
    assert line == "forget.class.classes: flowers has no class 3, only 0 to 2."
    data = with_entry() | {"training": {"flower": {"epochs": 1}, "flowers/cnn_small": {"epochs": 1}}}
    [line] = problems(path, data)
    assert line.startswith("training.flower: ") and "Did you mean 'flowers'?" in line
    twice = with_entry()
    twice["datasets"] = [*twice["datasets"], {"image_folder": ENTRY | {"sha256": "cd" * 32}}]
    assert problems(path, twice) == ["datasets: named twice: flowers."]
    twice["datasets"][1] = {"image_folder": ENTRY | {"name": "other", "path": "elsewhere"}}
    assert problems(path, twice) == [
        "datasets: flowers and other are the same pictures in the same form. Name one."
    ]


# ---- identity --------------------------------------------------------------------------------------------


def test_the_identity_is_the_content_and_not_where_it_lies_or_what_it_is_called() -> None:
    plan = planned()
    for changes in ({"path": "/mnt/x"}, {"name": "blumen"}, {"classes": ["a", "b", "c"]}, {"test_size": 3}):
        assert [task.id for task in planned(**changes).tasks] == [task.id for task in plan.tasks], changes
        assert planned(**changes).cells[0].id == plan.cells[0].id
    for neutral in ({"augment_pad": 0}, {"augment_flip": False}, {"channels": None}):
        assert [task.id for task in planned(**neutral).tasks] == [task.id for task in plan.tasks]
    for changes in (
        {"sha256": "cd" * 32},
        {"size": 17},
        {"mean": [0.3, 0.4, 0.51]},
        {"std": [0.2, 0.3, 0.26]},
        {"augment_pad": 2},
        {"augment_flip": True},
    ):
        other = planned(**changes)
        assert not {task.id for task in other.tasks} & {task.id for task in plan.tasks}, changes
        assert other.cells[0].dataset != plan.cells[0].dataset
    assert "flowers" not in str([task.spec for task in plan.tasks])
    assert all(task.id == digest(task.spec) for task in plan.tasks)


def test_ids_and_names_of_today_stay() -> None:
    """Golden: when these change, results of folders on users' disks are orphaned."""
    plan = planned()
    assert plan.cells[0].dataset == "flowers-25c06c31"
    assert [task.id for task in plan.tasks] == [
        "f22cfd863d8df434168a",
        "e029ccf3708e80346653",
        "5c33aabe74e44e0c311c",
    ]
    assert {task.columns()["dataset"] for task in plan.tasks} == {plan.cells[0].dataset}


def test_built_in_datasets_keep_their_specification() -> None:
    assert datasets.of("digits").spec == {"name": "digits", "version": 1}
    assert datasets.of("digits").name == datasets.of("digits").key == "digits"


def test_recipes_take_the_entry_then_the_selectors() -> None:
    data = with_entry(epochs=7, batch_size=9)
    data["training"] = {"all": {"learning_rate": 0.02}}
    recipe = Grid.model_validate(data).recipe("flowers", "cnn_small", "main")
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (7, 9, 0.02)
    for selector in ("all", "flowers", "flowers/cnn_small"):
        data["training"] = {selector: {"epochs": 3}}
        assert Grid.model_validate(data).recipe("flowers", "cnn_small", "main")["epochs"] == 3
    data = with_entry() | {"training": {}}
    assert Grid.model_validate(data).recipe("flowers", "cnn_small", "main")["epochs"] == 50


def test_costs_come_from_the_specification_alone() -> None:
    plan = planned()
    base = next(task for task in plan.tasks if task.kind == "base")
    assert cost.images(base.spec) == pytest.approx(2 * 96 * 0.85)
    data = with_entry() | {"forget": ["class"], "methods": []}
    retrain = next(t for t in make_plan(Grid.model_validate(data)).tasks if t.kind == "retrain")
    assert cost.images(retrain.spec) == pytest.approx(2 * 96 * 0.85 * 2 / 3), "one class of three"


def test_a_grid_keeps_its_entry_when_it_is_stored() -> None:
    data = with_entry(augment_flip=True, epochs=3)
    data["datasets"].append("digits")
    grid = Grid.model_validate(data)
    stored = grid.model_dump(mode="json")
    expected = {"image_folder": ENTRY | {"augment_flip": True, "epochs": 3}}
    del expected["image_folder"]["channels"]  # at its default
    assert stored["datasets"] == [expected, "digits"]
    again = Grid.model_validate(
        {"datasets": stored["datasets"]} | {k: data[k] for k in data if k != "datasets"}
    )
    assert again == grid


# ---- lethe prepare image_folder --------------------------------------------------------------------------


def test_prepare_prints_an_entry_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("1e5", "no", "it's: a # tülpe", "~", "-", "12")
    write_pictures(tmp_path / "data" / "flower photos", names, each=5)
    write_file(tmp_path / "data" / "flower photos" / "-" / "bad.png")
    for number in range(25):
        write_file(tmp_path / "data" / "flower photos" / f"{number}.txt")
    text, notes = entry_of("flower photos", str(tmp_path / "data"), 12, 3, None)
    (tmp_path / "g.yaml").write_text(text, encoding="utf-8")
    [entry] = read_yaml(str(tmp_path / "g.yaml"))["datasets"]
    found = scan(tmp_path / "data" / "flower photos", 12, 3)
    pixels = found.arrays.pool_images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    expected = {
        "name": "flower_photos",
        "path": "flower photos",
        "size": 12,
        "channels": 3,
        "classes": sorted(names),
        "pool_size": 24,
        "test_size": 6,
        "mean": pixels.mean(1).round(4).tolist(),
        "std": pixels.std(1).round(4).tolist(),
        "sha256": found.sha256,
    }
    assert entry["image_folder"] == expected
    Grid.model_validate(grid_data(datasets=[entry], audit=None))
    assert notes[0].startswith(
        f"{tmp_path}/data/flower photos: 30 images of 6 classes, pool 24, test 6 (test: a"
    )
    assert notes[1] == "left out: 0.txt: no picture by its name" and notes[21] == "left out: 5 more files."
    assert notes[22:] == ["left out, cannot be read: -/bad.png: no image format that is known"]
    monkeypatch.chdir(tmp_path / "data")
    text, _ = entry_of("./flower photos/", "elsewhere", 12, 1, "x")
    entry = yaml.safe_load(text)["datasets"][0]["image_folder"]
    assert entry["path"] == str(tmp_path / "data" / "flower photos") and len(entry["mean"]) == 1
    assert entry["sha256"] == found.sha256, "the content is the same in grey"


def test_a_relative_path_means_the_same_as_in_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "flowers", ("here", "b"))
    write_pictures(tmp_path / "data" / "flowers", ("below", "b"))
    monkeypatch.chdir(tmp_path)
    entry = yaml.safe_load(entry_of("flowers", "data", 8, 3, None)[0])["datasets"][0]["image_folder"]
    assert entry["path"] == "flowers" and entry["classes"] == ["b", "below"]
    entry = yaml.safe_load(entry_of("data/flowers", "data", 8, 3, None)[0])["datasets"][0]["image_folder"]
    assert entry["path"] == "flowers" and entry["classes"] == ["b", "below"]


def test_a_channel_that_never_varies_has_a_finite_normalisation(tmp_path: Path) -> None:
    from tests.dataset_files import picture

    for name, value in (("a", 10), ("b", 20)):
        for number in range(3):
            write_file(tmp_path / "x" / name / f"{number}.png", picture((value, 0, 255)))
    entry = yaml.safe_load(entry_of("x", str(tmp_path), 8, 3, None)[0])["datasets"][0]["image_folder"]
    assert entry["mean"] == [round(15 / 255, 4), 0.0, 1.0] and entry["std"] == [round(5 / 255, 4), 1.0, 1.0]


WORDS = [
    (("image_folder", "x"), "prepare image_folder: --size is missing"),
    (
        ("image_folder", "--size", "8"),
        "prepare image_folder: write `lethe prepare image_folder PATH --size N`",
    ),
    (
        ("image_folder", "x", "y", "--size", "8"),
        "prepare image_folder x y: write `lethe prepare image_folder",
    ),
    (("digits", "image_folder", "--size", "8"), "prepare digits image_folder: write"),
    (("digits", "--size", "8"), "--size, --channels and --name are for `lethe prepare image_folder PATH`."),
    (
        ("image_folder", "x", "--size", "8", "--channels", "2"),
        "--channels 2: not one of 3 (colour) and 1 (grey).",
    ),
    (("image_folder", "x", "--size", "8", "--data", "d"), "image_folder: no {cwd}/d/x and no {cwd}/x."),
    (("image_folder", "x", "--size", "8", "--name", "digits"), "--name 'digits' means something else"),
    (
        ("image_folder", "digits", "--size", "8"),
        "{cwd}/digits: name it with --name; 'digits' means something",
    ),
    (
        ("image_folder", "a.zip", "--size", "8"),
        "image_folder: {cwd}/a.zip cannot be used: File is not a zip file.",
    ),
]


@pytest.mark.parametrize(("words", "told"), WORDS)
def test_mistakes_of_prepare_are_one_line(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "a.zip")
    done = CliRunner().invoke(app, ["prepare", *words])
    assert isinstance(done.exception, UserError)
    [line] = done.exception.problems
    assert line.startswith(told.format(cwd=tmp_path)), line


# ---- end to end ------------------------------------------------------------------------------------------


def test_from_pictures_to_a_report_without_pictures_and_grid(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prepare, run, run again; then the folder is moved, its name changed and the grid deleted."""
    here = weird_tmp_path
    write_pictures(here / "data" / "flowers", ("daisy", "tülpe", "rose"), each=12)
    monkeypatch.chdir(here)
    done = CliRunner().invoke(app, ["prepare", "image_folder", "flowers", "--size", "8"])
    assert done.exit_code == 0 and "36 images of 3 classes" in done.stderr
    entry = yaml.safe_load(done.stdout)["datasets"][0]["image_folder"] | {"augment_flip": True}
    data = grid_data(
        datasets=[{"image_folder": entry}],
        methods=["finetune", "gradient_ascent"],
        seeds=1,
        forget=[{"random": {"fraction": 0.62}}],
        training={"flowers": {"epochs": 1, "batch_size": 16}},
        audit={"pairs": 4, "forget_sets": 1, "retrains": 1},
    )
    grid = here / "grid.yaml"
    grid.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    ended = run(grid, here)
    assert (ended.done, ended.failures, ended.total) == (ended.total, [], 36)
    assert run(grid, here).ran == 0

    (here / "data" / "flowers").rename(here / "elsewhere")
    moved = copy.deepcopy(data)
    moved["datasets"][0]["image_folder"] |= {"path": str(here / "elsewhere"), "name": "blumen"}
    moved["training"] = {"blumen": {"epochs": 1, "batch_size": 16}}
    moved["seeds"] = 2
    grid.write_text(yaml.safe_dump(moved, allow_unicode=True), encoding="utf-8")
    ended = run(grid, here)
    assert (ended.total, ended.ran, ended.failures) == (40, 4, []), "the tasks of the second seed alone"
    grid.unlink()
    (here / "elsewhere").rename(here / "away")
    check_results(here / "results", entry)


def run(grid: Path, here: Path) -> Ended:
    options = Options(results=str(here / "results"), data=str(here / "data"), address=None)
    return run_grid(load(str(grid)), options)


def check_results(results: Path, entry: dict[str, Any]) -> None:
    from orchestrator.compact import compact

    store = Store.open(str(results))
    names = {row["dataset"] for row in store.runs(["dataset"]).to_pylist()}
    [old] = [name for name in names if name.startswith("flowers-")]
    [new] = names - {old}
    assert new == old.replace("flowers", "blumen")
    for name in names:
        samples = store.read_table("samples", folder=f"dataset={name}").to_pylist()
        assert [row["split"] for row in samples].count("pool") == entry["pool_size"] == 30
        assert len(samples) == 36
    assert {row["dataset"] for row in store.read_table("designs", ["dataset"]).to_pylist()} <= names
    kinds = {(row["dataset"], row["kind"]) for row in store.runs(["dataset", "kind"]).to_pylist()}
    assert kinds == {(name, kind) for name in names for kind in ("base", "retrain", "unlearn")}
    [cell] = plans.recall(store)
    assert cell.dataset == new and len(cell.variants) == 2, "both names in one table"

    rows = collect(store).cells[0].entries
    audited = [entry.row for entry in rows if entry.row["kind"] == "unlearn"]
    assert {(row["method"], row["n"]) for row in audited} == {("finetune", 2), ("gradient_ascent", 2)}
    assert all(np.isfinite([row["ta"], row["auc_forgotten_vs_retrained"]]).all() for row in audited)
    [card] = cards(store, collect(store))
    assert card["design"]["views"] == 2, "as it is and mirrored, from bases under the old name"
    assert f"## {new} · cnn_small" in render(store, "md")
    compact(store, "float32", lambda: None)
    files = [name for name in store.held("scores") if f"dataset={old}" in name]
    assert files and all((store.facts(n) or {})["views"] == [[False, 0, 0], [True, 0, 0]] for n in files)


def test_a_grid_on_a_changed_folder_runs_nothing(
    write_grid: Callable[..., Path], weird_tmp_path: Path
) -> None:
    write_pictures(weird_tmp_path / "data" / "flowers")
    entry = yaml.safe_load(entry_of("flowers", str(weird_tmp_path / "data"), 8, 3, None)[0])["datasets"][0]
    grid = write_grid(datasets=["digits", entry], audit=None, seeds=1, training={"all": {"epochs": 1}})
    write_file(weird_tmp_path / "data" / "flowers" / "rose" / "0.png")
    with pytest.raises(UserError) as caught:
        run(grid, weird_tmp_path)
    assert not (weird_tmp_path / "results").exists()
    [line] = caught.value.problems
    assert line.startswith(f"flowers: {weird_tmp_path}/data/flowers is not the folder of the grid: ")
    assert "1 cannot be read, first rose/0.png" in line


@pytest.mark.parametrize("classes", [["rose", "daisy"], ["daisy", "daisy"]])
def test_classes_in_another_order_than_the_folders_run_nothing(
    classes: list[str], write_grid: Callable[..., Path], tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data" / "flowers")
    entry = yaml.safe_load(entry_of("flowers", str(tmp_path / "data"), 8, 3, None)[0])["datasets"][0]
    assert entry["image_folder"]["classes"] == ["daisy", "rose"]
    entry["image_folder"]["classes"] = classes
    grid = write_grid(datasets=[entry], audit=None, seeds=1, training={"all": {"epochs": 1}})
    with pytest.raises(UserError) as caught:
        run(grid, tmp_path)
    [line] = caught.value.problems
    assert f"the grid: classes are daisy, rose, not {', '.join(classes)}. Restore it" in line


@pytest.mark.long
def test_on_ray_the_folder_reaches_the_actors(
    lethe: Lethe, write_grid: Callable[..., Path], weird_tmp_path: Path
) -> None:
    from tests.conftest import results_table

    write_pictures(weird_tmp_path / "my data" / "flowers", each=20)
    data = str(weird_tmp_path / "my data")
    entry = yaml.safe_load(entry_of("flowers", data, 8, 3, None)[0])["datasets"][0]
    grid = write_grid(datasets=[entry], audit=None)
    for name, options in (("ray", ["--max-actors", "2"]), ("inline", ["--inline"])):
        done = lethe("run", grid, "--data", data, "--results", weird_tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    assert results_table(weird_tmp_path / "ray") == results_table(weird_tmp_path / "inline") != []
