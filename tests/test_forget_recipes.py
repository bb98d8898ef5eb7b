"""Forget recipes in a grid: their bounds, files of sample ids, and what of them is in a task's identity."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config import Grid, load
from orchestrator.cost import _sizes
from orchestrator.errors import UserError
from orchestrator.keys import digest
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.schedule import Schedule
from tests.conftest import Lethe, grid_data
from tests.test_schedule import drain
from workers.data import DeviceDataset
from workers.task_design import Design

WriteGrid = Callable[..., Path]
LISTED = [{"listed": {"file": "ids.txt"}}]


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**changes)))


def problems(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(str(path))
    return [line.removeprefix(f"{path}  ") for line in caught.value.problems]


# ---- bounds ----------------------------------------------------------------------------------------------

AUDIT = {"pairs": 4, "forget_sets": 2}
CIFAR20 = {"datasets": ["cifar20"], "architectures": ["resnet18"]}


@pytest.mark.parametrize(
    ("forget", "more", "line"),
    [
        (
            {"random": {"fraction": 0.1, "count": 5}},
            {},
            "forget.random: give fraction or count, not both.",
        ),
        (
            {"random": {"count": 1099}},
            {"audit": None},
            "forget.random.count: 1,099 is too many, digits has 1,221 samples to train on; at most 1,098.",
        ),
        (
            {"random": {"count": 550}},
            {},
            "forget.random.count: 550 is too many, a base of the audit on digits has 610 samples;"
            " at most 549.",
        ),
        (
            {"random": {"count": 306}},
            {},
            "audit.forget_sets: 2 disjoint sets of 306 samples do not fit into one base of digits, which has"
            " 610; at most 1.",
        ),
        (
            {"random": {"count": 0}},
            {},
            "forget[0]: random.count: 0 is out of range, 1 to 1e+09 are allowed.",
        ),
        (
            {"subclass": {"subclasses": [1]}},
            {},
            "forget.subclass.subclasses: digits has no subclasses; datasets that do: cifar20.",
        ),
        (
            {"subclass": {"subclasses": [3, 100]}},
            CIFAR20,
            "forget.subclass.subclasses: cifar20 has no subclass 100, only 0 to 99.",
        ),
        (
            {"subclass": {"subclasses": ["rockets"]}},
            CIFAR20,
            "forget.subclass.subclasses: cifar20 has no subclass 'rockets'. Did you mean 'rocket'?",
        ),
        (
            {"subclass": {"subclasses": [69, "rocket"]}},
            CIFAR20,
            "forget.subclass.subclasses: cifar20's subclass 69 is named twice.",
        ),
        (
            {"subclass": {"subclasses": list(range(100))}},
            CIFAR20,
            "forget.subclass.subclasses: all 100 subclasses of cifar20; none is left.",
        ),
        (
            {"subclass": {"subclasses": [1.5]}},
            CIFAR20,
            "forget[0]: subclass.subclasses: [1.5] is not a whole number of at least 0, a name, nor a list of"
            " them.",
        ),
        (
            {"memorised": {"count": 10}},
            {"audit": None},
            "forget.memorised: needs `audit: {pairs: …}`; its bases tell which samples are memorised.",
        ),
        (
            {"memorised": {"count": 1200}},
            {},
            "forget.memorised.count: 1,200 is too many, digits has 1,221 samples to train on; at most 1,098.",
        ),
        (
            "listed",
            {},
            "forget.listed: names no file. Write {listed: {file: ids.txt}}, one sample id a line.",
        ),
        (
            {"listed": {"file": "ids.txt"}},
            {"datasets": ["digits", "cifar10"]},
            "forget.listed: sample ids are of one dataset, and the grid has digits, cifar10.",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    write_grid: WriteGrid, forget: Any, more: dict[str, Any], line: str
) -> None:
    assert problems(write_grid(forget=[forget], **({"audit": AUDIT} | more))) == [line]


def test_the_largest_counts_fit(write_grid: WriteGrid) -> None:
    for forget, audit in (
        ({"random": {"count": 1098}}, None),
        ({"random": {"count": 305}}, AUDIT),
        ({"random": {"count": 549}}, AUDIT | {"forget_sets": 1}),
        ({"memorised": {"count": 1098}}, AUDIT),
    ):
        assert load(str(write_grid(forget=[forget], audit=audit))).forget


def test_a_subclass_by_name_is_the_one_by_number(write_grid: WriteGrid) -> None:
    (line,) = problems(
        write_grid(forget=[{"subclass": {"subclasses": s}} for s in ("rocket", [69])], **CIFAR20)
    )
    assert line == "forget: subclass is named twice with the same parameters."
    by_name = plan_of(forget=[{"subclass": {"subclasses": ["rocket", 2]}}], **CIFAR20)
    by_number = plan_of(forget=[{"subclass": {"subclasses": [2, 69]}}], **CIFAR20)
    assert by_name.by_id.keys() == by_number.by_id.keys()
    assert by_name.cells[0].forget == "subclass(subclasses=[2, 69])"


# ---- files of sample ids ---------------------------------------------------------------------------------


def listed(write_grid: WriteGrid, text: str | bytes, file: str = "ids.txt", **changes: Any) -> Path:
    path = write_grid(forget=[{"listed": {"file": file}}], **changes)
    data = text if isinstance(text, bytes) else text.encode()
    (path.parent / file).write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        ("5\n3\n1436\n", "ids.txt", [3, 5, 1436]),
        ("# a request\n\n  7 # by mail\r\n0\r\n", "ids.txt", [0, 7]),
        ("\ufeff4\n2\n", "ids.txt", [2, 4]),
        ("sample_id\n9\n8\n", "ids.txt", [8, 9]),
        ('who,sample_id\n"Lee, A.",12\nKim,11\n', "ids.csv", [11, 12]),
    ],
)
def test_ids_are_read(write_grid: WriteGrid, text: str, file: str, expected: list[int]) -> None:
    (choice,) = load(str(listed(write_grid, text, file))).forget
    assert list(choice.ids or ()) == expected


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1\n2.5\n3\n", [" line 2: '2.5' is no sample id, which is a whole number from 0 to 1436."]),
        ("1\n2_0\n٣\n", [" line 2: '2_0' is no", " line 3: '٣' is no"]),
        ("1 2\n", [" line 1: '1 2' is no"]),
        ("4\n#\n5\n4\n", [" line 4: sample 4 stands twice, first in line 1."]),
        ("4\n-5\n", [" line 2: digits has no sample -5; ids of its pool are 0 to 1436."]),
        (
            "1437\n",
            [
                " line 1: 1437 is in the test set of digits, which no model is trained on; ids of the pool"
                " are 0 to 1436."
            ],
        ),
        ("3\n1797\n", [" line 2: digits has no sample 1797; ids of its pool are 0 to 1436."]),
        ("# nothing\n", [": lists no sample. Write one sample id a line."]),
        ("", [": lists no sample"]),
        ("name,sample_id\nx,4\ny\n", [" line 3: '' is no sample id"]),
        ("x\n" * 8, [f" line {n}: 'x' is no sample id" for n in range(1, 6)] + [": 3 more lines are wrong."]),
        (b"\xff\xfe\x00", [": not readable as text ("]),
        (
            "\n".join(map(str, range(1437))),
            [": lists all 1,437 samples of the pool of digits; none is left."],
        ),
        (
            "\n".join(map(str, range(1099))),
            [": 1,099 samples are too many, digits has 1,221 to train on; at most 1,098."],
        ),
        (
            "7\n",
            [": one sample is too few for an audit, in which each base of a pair forgets half of the list;"],
        ),
    ],
)
def test_a_wrong_list_is_a_line_for_each_mistake(
    write_grid: WriteGrid, text: str | bytes, lines: list[str]
) -> None:
    path = listed(write_grid, text)
    found = problems(path)
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(str(path.parent / "ids.txt") + expected), line


def test_a_csv_without_the_column_a_missing_file_and_the_same_list_twice(write_grid: WriteGrid) -> None:
    path = listed(write_grid, "id;x\n4;1\n", "ids.csv")
    assert problems(path) == [f"{path.parent}/ids.csv: no column sample_id; its first line is 'id;x'."]
    path = write_grid(forget=[{"listed": {"file": "gone.txt"}}])
    source = path.parent / "gone.txt"
    assert problems(path) == [f"{source}: no such file; `file` is relative to the grid file."]
    path = write_grid(forget=[{"listed": {"file": file}} for file in ("a.txt", "b.txt")])
    (path.parent / "a.txt").write_text("1\n2\n")
    (path.parent / "b.txt").write_text("2\n1\n")
    assert problems(path) == ["forget: listed is named twice with the same samples."]


def test_a_list_that_does_not_fit_the_split_or_the_requests(write_grid: WriteGrid) -> None:
    path = listed(write_grid, "7\n8\n9\n", split="paper")
    (line,) = problems(path)
    assert line == "forget.listed: with split: paper the validation set is fixed and may hold listed samples."
    path = listed(write_grid, "7\n8\n9\n", requests=4, audit=None)
    (line,) = problems(path)
    assert line.endswith("ids.txt: 3 samples are too few for requests: 4, at least 4.")
    assert load(str(listed(write_grid, "7\n8\n9\n", requests=3, audit=None))).requests == 3
    (line,) = problems(listed(write_grid, "\n".join(map(str, range(95))), requests=3))
    assert line.endswith("ids.txt: 95 samples are too few for requests: 3, at least 96.")


@pytest.mark.parametrize("recipe", ["random", "poisoned"])
def test_a_share_that_rounds_to_no_sample_is_one_line(recipe: str, write_grid: WriteGrid) -> None:
    (line,) = problems(write_grid(forget=[{recipe: {"fraction": 0.0004}}], audit=None))
    assert line == (
        f"forget.{recipe}.fraction: 0.0004 of the 1,221 samples that digits has to train on is none;"
        " give more."
    )
    assert plan_of(forget=[{recipe: {"fraction": 0.0005}}], audit=None).tasks
    assert plan_of(forget=[{"random": {"count": 1}}], audit=None).tasks


def test_one_listed_sample_is_enough_without_an_audit(write_grid: WriteGrid) -> None:
    assert load(str(listed(write_grid, "7\n", audit=None))).forget[0].ids == (7,)


# ---- identity --------------------------------------------------------------------------------------------


def test_a_list_is_in_the_ids_and_its_file_is_not(write_grid: WriteGrid) -> None:
    one = make_plan(load(str(listed(write_grid, "5\n9\n700\n"))))
    same = make_plan(load(str(listed(write_grid, "sample_id\n700\n5\n9\n", "other.csv", name="b.yaml"))))
    other = make_plan(load(str(listed(write_grid, "5\n9\n701\n", "third.txt", name="c.yaml"))))
    assert one.by_id.keys() == same.by_id.keys() and one.by_id.keys().isdisjoint(other.by_id)
    (key,) = one.lists
    assert one.lists[key] == [5, 9, 700] and len(key) == 64
    for task in one.tasks:
        assert task.spec["members"]["listed"] == key, "bases are trained for the list"
        assert task.kind == "base" or task.spec["forget"]["ids"] == {"count": 3, "sha256": key}
        text = json.dumps(task.spec)
        assert "ids.txt" not in text and not re.search(r"\b700\b", text)
    assert one.cells[0].forget == f"listed(count=3, sha256={key[:12]})"
    assert "700]" not in json.dumps(load(str(listed(write_grid, "5\n700\n"))).model_dump(mode="json"))


def test_a_list_has_one_forget_set_in_each_base_of_an_audit(write_grid: WriteGrid) -> None:
    plan = make_plan(load(str(listed(write_grid, "5\n9\n700\n", audit=AUDIT | {"retrains": 2}))))
    assert sorted(key for key in plan.cells[0].retrains if key[0] == "audit") == [
        ("audit", base, 0) for base in range(8)
    ]


def test_a_grid_whose_list_was_not_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"forget\.listed: the list was not read"):
        plan_of(forget=LISTED)


def test_the_count_of_random_leaves_no_trace_in_other_ids_and_changes_its_own() -> None:
    plain, counted = plan_of(), plan_of(forget=[{"random": {"count": 50}}])
    assert all(
        "count" not in task.spec["forget"]["parameters"] for task in plain.tasks if task.kind != "base"
    )
    assert {task.id for task in plain.tasks if task.kind == "base"} <= counted.by_id.keys()
    assert counted.cells[0].forget == "random(count=50)"


def test_memorised_waits_for_the_bases_of_the_audit_and_has_no_audit_of_its_own() -> None:
    alone = plan_of(forget=[{"memorised": {"count": 5}}])
    plain = plan_of()
    bases = [
        task.id for task in plain.tasks if task.kind == "base" and task.spec["members"]["track"] == "audit"
    ]
    assert len(bases) == 8
    (cell,) = alone.cells
    assert all(key[0] == "main" for tasks in (cell.bases, cell.retrains) for key in tasks)
    assert cell.retrains_per_base == 0 and all(key[0] == "main" for v in cell.variants for key in v.tasks)
    waiting = [task for task in alone.tasks if task.kind != "base"]
    assert len(waiting) == 2 * 2
    for task in waiting:
        assert list(task.after) == bases and task.spec["members"]["track"] == "main"
        assert task.spec["forget"]["bases"] == digest(bases) and "ids" not in task.spec["forget"]
    assert {task.id for task in alone.tasks if not task.after} == {
        task.id for task in plain.tasks if task.kind == "base"
    }
    wider = plan_of(forget=[{"memorised": {"count": 5}}], audit={"pairs": 5, "forget_sets": 2})
    assert {t.id for t in wider.tasks if t.after}.isdisjoint(alone.by_id), "other bases, another forget set"


def test_memorised_in_requests_waits_for_the_bases_in_each_of_them() -> None:
    plan = plan_of(forget=[{"memorised": {"count": 6}}], requests=3, seeds=1)
    waiting = [task for task in plan.tasks if task.kind != "base"]
    assert len(waiting) == 3 + 3 and all(len(task.after) == 8 for task in waiting)
    chain = [task for task in waiting if task.kind == "unlearn"]
    assert [task.base in {t.id for t in chain} for task in chain] == [False, True, True]
    order = [task.id for task in plan.tasks]
    for task in waiting:
        assert all(order.index(name) < order.index(task.id) for name in task.after)
    assert sorted(drain(Schedule(plan.tasks, {}))) == sorted(order)


def test_the_forget_sets_of_random_by_count_are_split_into_requests_too(write_grid: WriteGrid) -> None:
    (line,) = problems(write_grid(forget=[{"random": {"count": 9}}], requests=10, audit=None))
    assert line.startswith("requests: 10 are too many for forget.random, at most 9 ")
    (line,) = problems(write_grid(forget=[{"random": {"fraction": 0.01}}], requests=100, audit=None))
    assert line.startswith("requests: 100 are too many for forget.random, at most 12 ")


@pytest.mark.parametrize(
    "forget", [{"random": {"count": 9}}, {"memorised": {"count": 9}}, {"listed": {"file": "ids.txt"}}]
)
def test_the_forget_set_does_not_depend_on_the_seed(write_grid: WriteGrid, forget: dict[str, Any]) -> None:
    path = write_grid(forget=[forget], seeds=3)
    (path.parent / "ids.txt").write_text("1\n2\n")
    main = [
        t for t in make_plan(load(str(path))).tasks if t.kind == "retrain" and t.columns()["track"] == "main"
    ]
    assert len(main) == 3
    assert len({digest([task.spec["members"], task.spec["forget"]]) for task in main}) == 1


# ---- sizes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> DeviceDataset:
    import torch

    from workers.datasets.digits import Digits

    return DeviceDataset(Digits(), Digits().load(Path()), torch.device("cpu"))


@pytest.mark.parametrize(
    "forget", [{"random": {"count": 90}}, {"random": {"fraction": 0.2}}, {"listed": {"file": "ids.txt"}}]
)
def test_plans_count_images_with_the_true_sizes(
    write_grid: WriteGrid, digits: DeviceDataset, forget: dict[str, Any]
) -> None:
    path = write_grid(forget=[forget])
    (path.parent / "ids.txt").write_text("\n".join(map(str, range(3, 1400, 13))))
    plan = make_plan(load(str(path)))
    unlearn: list[Task] = [task for task in plan.tasks if task.kind == "unlearn"]
    for track in ("main", "audit"):
        tasks = [task for task in unlearn if task.spec["members"]["track"] == track]
        found = [Design(digits, task.spec, plan.lists) for task in tasks]
        for name, indices in (("retain", [d.retain for d in found]), ("forget", [d.forget for d in found])):
            size = float(np.mean([len(index) for index in indices]))
            said = _sizes({"name": "digits"}, tasks[0].spec["members"], tasks[0].spec["forget"])[
                f"{name}_size"
            ]
            assert size == pytest.approx(said, rel=0.01, abs=1), (track, name)
        assert all(index.max() < digits.n_pool for d in found for index in (d.retain, d.forget, d.val))


def test_a_task_without_its_list_or_with_another_is_refused(
    write_grid: WriteGrid, digits: DeviceDataset
) -> None:
    plan = make_plan(load(str(listed(write_grid, "5\n9\n700\n"))))
    (key,) = plan.lists
    with pytest.raises(LookupError, match="did not come with the task"):
        Design(digits, plan.tasks[0].spec)
    with pytest.raises(ValueError, match="came with other ids"):
        Design(digits, plan.tasks[0].spec, {key: [5, 9, 701]})


def test_a_dataset_without_subclasses_is_refused(digits: DeviceDataset) -> None:
    spec = {"members": {"track": "main", "val_fraction": 0.15}}
    spec["forget"] = {"name": "subclass", "version": 1, "parameters": {"subclasses": [1]}}
    with pytest.raises(ValueError, match="digits has no subclasses"):
        Design(digits, spec)


# ---- the command line ------------------------------------------------------------------------------------


def test_list_describes_every_recipe(lethe: Lethe) -> None:
    text = lethe("list", "forget").stdout
    for words in (
        "listed samples",
        "main track only",
        "fraction or count, not both",
        "(a list of whole numbers from 0 or names)",
        "audit: one forget set per base",
        "(text)",
    ):
        assert words in text
    facts = {row["name"]: row for row in json.loads(lethe("list", "forget", "--json").stdout)}
    assert {"random", "class", "subclass", "listed", "memorised"} <= facts.keys()
    assert facts["random"]["alternatives"] == ["fraction", "count"]
    assert facts["memorised"]["audit_sets"] == "none" and facts["memorised"]["share"] == "count / members"


@pytest.mark.parametrize("recipe", [{"count": 7}, {"fraction": 0.01}])
def test_forget_sets_too_small_for_the_audit_are_refused(
    write_grid: WriteGrid, recipe: dict[str, Any]
) -> None:
    path = write_grid(forget=[{"random": recipe}])
    with pytest.raises(UserError, match=r"forget\.random: (7|6\.1) samples a forget set .* at least 8"):
        load(str(path))
    assert make_plan(load(str(write_grid(forget=[{"random": recipe}], audit=None)))).tasks
    assert make_plan(load(str(write_grid(forget=[{"random": {"count": 8}}])))).tasks
