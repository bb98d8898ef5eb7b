"""`lethe plan --device`: the file that is meant, hours by hand in a made-up world, and tuning on top."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import catalogue, plan_cost
from orchestrator.catalogue import Parameter
from orchestrator.config import Grid
from orchestrator.cost import Works, alone, images
from orchestrator.errors import UserError
from orchestrator.measured import FOLDER, Measurement, named, read
from orchestrator.overview import of_plan, plan_text
from orchestrator.paces import EVALUATE
from orchestrator.plan import Plan
from orchestrator.tune import Budget
from orchestrator.tuning import entries
from tests.conftest import ROOT, Lethe, grid_data
from tests.test_plan import plan_of

Row = dict[str, Any]
TRAIN, PASS = 2e-3, 1e-4  # seconds per image of the made-up device


def row(kind: str = "base", method: str = "", pace: float = TRAIN, **changes: Any) -> Row:
    """A task of 1,000 images on digits × cnn_small, and an evaluation of 500."""
    facts = {"kind": kind, "method": method, "dataset": "digits", "architecture": "cnn_small"}
    facts |= {"track": "main", "image": [1, 8], "training_images": 1000.0, "wall_s": 1000 * pace}
    return facts | {"evaluate_s": 500 * PASS, "evaluated_images": 500, "repeat": 0} | changes


def twice(*rows: Row) -> list[Row]:
    return [one | {"repeat": repeat} for one in rows for repeat in range(2)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a made-up measurement: write("made", tasks, device=…) -> its file."""

    def call(slug: str, tasks: list[Row] | None = None, device: str = "Made-up GPU 1") -> Path:
        found = {"device": device, "versions": {"torch": "9.9"}, "rows": [], "tasks": tasks or twice(row())}
        facts = {"command": "made up", "date": "2026-01-02", "commit": "abc", "versions": {"python": "3.99"}}
        path = tmp_path / f"train-{slug}.json"
        path.write_text(json.dumps(facts | {"found": found}))
        return path

    return call


Write = Callable[..., Path]


# ---- which measurement -----------------------------------------------------------------------------------


def test_a_device_is_named_by_its_file_or_by_part_of_its_name(write: Write, tmp_path: Path) -> None:
    one, other = write("g1"), write("small", device="cpu (x86_64)")
    assert [named(name, tmp_path).file for name in ("g1", "G1", "made-up")] == [one] * 3
    assert named("X86", tmp_path).file == other
    found = named("g1", tmp_path)
    assert (found.device, found.date, found.commit) == ("Made-up GPU 1", "2026-01-02", "abc")
    assert found.versions == {"python": "3.99", "torch": "9.9"}


def one_problem(name: str, folder: Path) -> str:
    with pytest.raises(UserError) as told:
        named(name, folder)
    [problem] = told.value.problems
    assert "\n" not in problem
    return problem


def test_an_unknown_device_is_one_line_with_those_there_are(write: Write, tmp_path: Path) -> None:
    write("g1")
    write("small", device="cpu (x86_64)")
    problem = one_problem("h200", tmp_path)
    assert problem.startswith(
        "--device h200: not measured. There are: g1 (Made-up GPU 1), small (cpu (x86_64)), in"
    )
    assert str(tmp_path) in problem and "--measured" in problem
    assert "python -m benchmarks.record train-NAME python -m workers.bench_train" in problem


def test_a_name_that_fits_two_devices_takes_neither(write: Write, tmp_path: Path) -> None:
    write("a", device="NVIDIA A")
    write("b", device="NVIDIA B")
    assert "fits 2" in one_problem("nvidia", tmp_path)
    assert named("a", tmp_path).device == "NVIDIA A"


def test_further_files_of_a_device_are_parts_of_it(write: Write, tmp_path: Path) -> None:
    first = write("g1", twice(row()))
    second = write("g1-more", twice(row(architecture="resnet18", image=[3, 32])))
    write("g10", twice(row()), device="Made-up GPU 10")
    found = named("g1", tmp_path)
    assert found.file == first and found.parts == (second,)
    assert {work.architecture for work in found.paces.timed} == {"cnn_small", "resnet18"}
    assert named("g10", tmp_path).parts == ()
    write("g1-other", device="Made-up GPU 2")
    assert "train-g1-other.json: timed on Made-up GPU 2, and train-g1.json" in one_problem("g1", tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert f"There are: none, in {tmp_path / 'no'}, which does not exist" in one_problem("x", tmp_path / "no")


def test_timings_are_looked_for_in_the_repository() -> None:
    assert FOLDER == ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"date": "x"}', "found is missing"),
        ('{"found": {"device": "x", "tasks": []}}', "no task in it"),
        (json.dumps({"found": {"device": "x", "tasks": [{"kind": "base"}]}}), "image is missing"),
        (json.dumps({"found": {"device": "x", "tasks": [row(wall_s=-1)]}}), "wall_s is -1, no finite number"),
        (json.dumps({"found": {"device": "x", "tasks": [row(wall_s=None)]}}), "wall_s is None"),
        (json.dumps({"found": {"device": "x", "tasks": [row(evaluated_images=0)]}}), "evaluated_images is 0"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, write: Write, text: str, said: str) -> None:
    path = tmp_path / "train-bad.json"
    path.write_text(text)
    problem = one_problem("bad", tmp_path)
    assert problem.startswith(f"{path}: ") and said in problem
    write("good")
    assert named("made", tmp_path).file.name == "train-good.json"  # which the other does not stop
    assert "bad (damaged)" in one_problem("neither", tmp_path)


def test_methods_that_are_not_there_tell_nothing(write: Write) -> None:
    strange = row("unlearn", "of_a_private_file", pace=1e6)
    plain, more = (
        read(write(slug, tasks))
        for slug, tasks in (("a", twice(row())), ("b", twice(row(), strange, row("of another kind"))))
    )
    plan = plan_of(audit=None)
    assert cost(plan, plain)["hours"] == pytest.approx(cost(plan, more)["hours"])


# ---- hours -----------------------------------------------------------------------------------------------


def cost(plan: Plan, measured: Measurement) -> dict[str, Any]:
    found = of_plan(plan, None, measured)["cost"]
    assert isinstance(found, dict)
    return found


def test_hours_of_an_exact_world_by_hand(write: Write) -> None:
    """Bases and retrains at 2 ms per image, finetune at 6; everything is evaluated on 1,797 images."""
    known = twice(row(), row("retrain"), row("unlearn", "finetune", 3 * TRAIN))
    plan = plan_of(audit=None)
    paces = {"base": TRAIN, "retrain": TRAIN, "unlearn": 3 * TRAIN}
    seconds = {task.id: images(task.spec) * paces[task.kind] + 1797 * PASS for task in plan.tasks}
    found = cost(plan, read(write("made", known)))
    assert found["hours"] == pytest.approx(sum(seconds.values()) / 3600)
    assert found["hours_low"] == pytest.approx(found["hours"], rel=1e-6) == found["hours_high"]
    assert found["left_hours"] == found["hours"] and found["borrowed"] == []
    unshared = sum(times * seconds[task] for task, times in alone(plan).items())
    assert found["unshared_hours"] == pytest.approx(unshared / 3600)
    parts = {(part["kind"], part["method"]): part for part in found["parts"]}
    assert {key: part["tasks"] for key, part in parts.items()} == {
        ("base", ""): 2,
        ("retrain", ""): 2,
        ("unlearn", "finetune"): 2,
    }
    assert sum(part["hours"] for part in parts.values()) == pytest.approx(found["hours"])
    assert found["measured"]["device"] == "Made-up GPU 1" and found["tuning"] is None


def test_bases_trained_in_another_way_are_work_of_their_own(write: Write) -> None:
    grid = {"methods": ["mnemonic_code"], "forget": [{"class": {"classes": [1]}}], "audit": None}
    plan = plan_of(**grid)
    coded = row(pace=5 * TRAIN, training="mnemonic")
    found = cost(plan, read(write("made", twice(row(), coded))))
    parts = {(part["kind"], part["method"]): part["hours"] for part in found["parts"]}
    bases = [task for task in plan.tasks if task.kind == "base" and "mnemonic" in task.spec["training"]]
    expected = sum(5 * TRAIN * images(task.spec) + 1797 * PASS for task in bases)
    assert bases and parts["base", "mnemonic"] == pytest.approx(expected / 3600)


def test_what_is_borrowed_is_counted_and_said(write: Write) -> None:
    """MNIST takes the pace of other data of its shape; scrub on resnet18 that of bases there times 4."""
    known = [row(), row("unlearn", "scrub", 4 * TRAIN)]
    known += [row(architecture="resnet18", image=[1, 32], dataset="made", pace=10 * TRAIN)]
    plan = plan_of(datasets=["mnist"], architectures=["resnet18"], methods=["scrub"], audit=None)
    found = cost(plan, read(write("made", twice(*known))))
    how = {(b["kind"], b["how"]): b["tasks"] for b in found["borrowed"]}
    assert how == {
        ("base", "dataset"): 2,
        ("retrain", "base"): 2,
        ("unlearn", "ratio"): 2,
        ("evaluate", "dataset"): 6,
    }
    scrub = next(part for part in found["parts"] if part["method"] == "scrub")
    task = next(task for task in plan.tasks if task.kind == "unlearn")
    assert scrub["hours"] == pytest.approx(2 * (images(task.spec) * 40 * TRAIN + 70_000 * PASS) / 3600)
    text = "\n".join(plan_cost.lines(found))
    assert "2 tasks, at the pace of bases, times the method's ratio" in text
    assert "2 tasks, at the pace of the same on other data of the image shape" in text


def test_nothing_to_borrow_from_leaves_no_hours_and_is_named(write: Write) -> None:
    plan = plan_of(datasets=["digits", "utkface"], audit=None)
    facts = of_plan(plan, None, read(write("made")))
    found = facts["cost"]
    assert found["hours"] is found["hours_low"] is found["unshared_hours"] is None
    assert {(w["architecture"], w["dataset"]) for w in found["missing"]} == {("cnn_small", "utkface")}
    alone_hours = cost(plan_of(datasets=["digits"], audit=None), read(write("made")))["hours"]
    assert found["estimated_hours"] == pytest.approx(alone_hours)
    text = plan_text(facts | {"studies_first": None})
    assert "were not timed there: cnn_small at 3×224×224." in text
    assert f"at least {plan_cost.duration(alone_hours)} on one Made-up GPU 1" in text


def test_one_repeat_gives_hours_without_an_interval(write: Write) -> None:
    found = cost(plan_of(audit=None), read(write("made", [row()])))
    assert found["hours"] > 0 and found["hours_low"] is None
    assert "No interval: nothing was timed twice." in plan_cost.lines(found)


# ---- tuning ----------------------------------------------------------------------------------------------

TUNE = {"trials": 10, "seeds": 2, "finalists": 1, "confirm_seeds": 3, "evaluate_seeds": 4}


def test_tuning_on_top_by_hand(write: Write) -> None:
    """Epochs of 1 to 5 are 3 in the mean: 20 trials. Beside them a base and a retrain for each of the nine
    seeds, two candidates on three seeds, winner and default on four.
    """
    tune = TUNE | {"space": {"finetune": {"epochs": [1, 5], "learning_rate": [0.01, 0.1]}}}
    plan = plan_of(audit=None, tune=tune)
    known = twice(row(), row("retrain"), row("unlearn", "finetune", 3 * TRAIN))
    found = cost(plan, read(write("made", known)))["tuning"]
    assert (found["studies"], found["trials"], found["other_tasks"]) == (1, 20, 2 * 9 + 2 * 3 + 2 * 4)
    epoch, default = 0.8 * 1437 * 0.85, catalogue.plugins("methods")["finetune"].parameters["epochs"].default
    trials = 20 * (3 * epoch * 3 * TRAIN + 1797 * PASS)
    assert found["hours"] == pytest.approx(trials / 3600, rel=0.01)  # 64 draws of five values
    trained = 9 * 2 * epoch * (1 + 1 / 0.8) * TRAIN
    others = trained + 14 * default * epoch * 3 * TRAIN + 32 * 1797 * PASS
    assert found["other_hours"] == pytest.approx(others / 3600)


def test_methods_share_the_bases_and_retrains_of_tuning() -> None:
    grid = Grid.model_validate(grid_data(methods=["finetune", "scrub"], tune=TUNE))
    _, others = plan_cost.tuning_loads(entries(grid), Budget(**TUNE), Works(grid))
    runs = {work.what: load.runs for work, load in others.items() if work.what != EVALUATE}
    assert runs == {
        ("base", ""): 9,
        ("retrain", ""): 9,
        ("unlearn", "finetune"): 14,
        ("unlearn", "scrub"): 14,
    }


def test_draws_are_even_over_each_parameter() -> None:
    space = {
        "rate": Parameter("rate", "float", 0.1, 1e-4, 1.0, log=True),
        "epochs": Parameter("epochs", "int", 5, 1, 8),
        "rewind": Parameter("rewind", "bool", True, choices=(True, False)),
    }
    found = list(plan_cost.draws(space))
    assert found == list(plan_cost.draws(space)) and len(found) == plan_cost.DRAWS
    for epochs in range(1, 9):
        assert sum(one["epochs"] == epochs for one in found) == plan_cost.DRAWS / 8
    assert sum(one["rewind"] for one in found) == plan_cost.DRAWS / 2
    assert sum(one["rate"] < 1e-2 for one in found) == plan_cost.DRAWS / 2
    assert min(one["rate"] for one in found) >= 1e-4 and max(one["rate"] for one in found) <= 1.0


# ---- the command -----------------------------------------------------------------------------------------


def test_the_command_says_it_in_words_and_json(
    write: Write, lethe: Lethe, write_grid: Callable[..., Path]
) -> None:
    path, grid = write("made"), write_grid(audit=None, tune=TUNE)
    done = lethe("plan", grid, "--device", "made", "--measured", path.parent)
    assert done.returncode == 0, done.stderr
    for words in (
        "on one Made-up GPU 1, one model at a time; what is left: ",
        "Without sharing: ",
        "unlearn  finetune  2  ",
        "On top, `lethe tune`: ",
        "the pruner and repeated values shorten them, by how much is not measured",
        f"Timed on 2026-01-02 (python 3.99, torch 9.9) by `made up`, kept in {path}.",
    ):
        assert words in done.stdout
    facts = json.loads(lethe("plan", grid, "--device", "made", "--measured", path.parent, "--json").stdout)
    assert facts["gpu_hours"] is None and facts["cost"]["hours"] > 0
    assert facts["cost"]["measured"]["file"] == str(path)
    assert of_plan(plan_of(audit=None), None)["cost"] is None


def test_mistakes_are_one_line(write: Write, lethe: Lethe, write_grid: Callable[..., Path]) -> None:
    folder, grid = write("made").parent, write_grid()
    for arguments, said in (
        (("--device", "h900", "--measured", folder), "--device h900: not measured. There are: made ("),
        (("--measured", folder), "--measured: name the device too, --device NAME."),
    ):
        done = lethe("plan", grid, *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1
