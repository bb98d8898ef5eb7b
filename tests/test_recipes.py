"""Named training recipes: what they set, what beats them, one cycle by steps, mirroring by a recipe."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import fit
from methods.schedules import SCHEDULES, one_cycle
from orchestrator import compact, report
from orchestrator.catalogue import plugins
from orchestrator.config import Grid
from orchestrator.parquet import score_facts
from orchestrator.recipes import FAST_EPOCHS, FAST_PEAK, RECIPE, resolve
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store, score_folder
from tests.conftest import grid_data
from tests.test_data import Mirrored, Plugin, dataset
from tests.test_plan import ids, plan_of
from workers import train
from workers.data import UnlearnData, View
from workers.mnemonic import MnemonicView, draw_codes
from workers.run_task import generator
from workers.views import mirrors, views_of

pytestmark = pytest.mark.usefixtures("quick_runs")

CPU = torch.device("cpu")
STRONG = [[*view] for view in views_of(True, strong=True)]


def recipe_of(name: str, *overrides: dict[str, Any]) -> dict[str, Any]:
    return resolve(plugins("datasets")[name], overrides)


# ---- what a recipe is ------------------------------------------------------------------------------------

COMMON = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
COMMON |= {"schedule": "cosine", "batch_size": 256, "augment": True, "precision": "float32", "t_mix": 0.3}


CIFAR_100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
PAPER: dict[str, tuple[int, bool, int, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "mnist": (50, True, 0, ((0.1307,), (0.3081,))),
    "fashion_mnist": (50, True, 0, ((0.2860,), (0.3530,))),
    "cifar10": (182, True, 4, ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))),
    "cifar100": (182, True, 4, CIFAR_100),
    "utkface": (50, False, 0, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe_is_that_of_the_paper(name: str) -> None:
    """spec/benchmark.md, §2: epochs, mirror, padding of the crop, mean and standard deviation."""
    epochs, mirrored, pad, normalisation = PAPER[name]
    found, constants = recipe_of(name, {"recipe": "paper"}), plugins("datasets")[name].constants
    assert mirrors({"training": found}, constants["augment_flip"]) is mirrored
    assert (constants["augment_pad"], (constants["mean"], constants["std"])) == (pad, normalisation)
    found.pop("flip", None)
    assert found == COMMON | {"epochs": epochs}


def test_without_a_name_everything_is_as_it_was() -> None:
    assert recipe_of("mnist") == RECIPE | {"epochs": 50, "batch_size": 256}
    assert recipe_of("digits") == RECIPE | {"epochs": 20, "batch_size": 64, "learning_rate": 0.05}


@pytest.mark.parametrize(("name", "epochs"), [("mnist", 50), ("cifar10", 182), ("digits", 20)])
def test_the_fast_recipe_is_one_cycle_over_a_share_of_the_epochs(name: str, epochs: int) -> None:
    usual, found = recipe_of(name), recipe_of(name, {"recipe": "fast"})
    assert usual["epochs"] == epochs
    assert found == usual | {
        "schedule": "one_cycle",
        "epochs": -int(-epochs * FAST_EPOCHS // 1),
        "learning_rate": FAST_PEAK * usual["learning_rate"],
    }


def test_a_key_of_the_grid_beats_a_named_recipe_wherever_it_stands() -> None:
    fast = recipe_of("digits", {"recipe": "paper", "epochs": 3}, {"recipe": "fast"}, {"momentum": 0.5})
    assert (fast["epochs"], fast["momentum"], fast["schedule"]) == (3, 0.5, "one_cycle")
    assert fast["precision"] == "auto", "the narrower name replaces the wider"


def test_flip_leaves_no_trace_where_it_is_the_datasets_habit() -> None:
    assert "flip" not in recipe_of("mnist", {"recipe": "paper", "flip": False})
    assert "flip" not in recipe_of("cifar10", {"flip": True})
    assert recipe_of("cifar10", {"flip": False})["flip"] is False
    assert ids(plan_of()) == ids(plan_of(training={"all": {"epochs": 2, "flip": False}}))


def test_a_recipe_is_known_by_its_values_alone() -> None:
    """So a grid that writes them out shares the models, and none is orphaned by a new name."""
    values = {"precision": "float32", "epochs": 2}
    assert ids(plan_of(training={"all": {"recipe": "paper", "epochs": 2}})) == ids(
        plan_of(training={"all": values})
    )


# ---- one cycle -------------------------------------------------------------------------------------------


def test_one_cycle_rises_to_one_and_falls_towards_zero() -> None:
    rates = [one_cycle(step, 10) for step in range(10)]
    up, down = [0.04, 0.36, 0.68], [1 - i / 7 for i in range(7)]
    np.testing.assert_allclose(rates, up + down)
    assert one_cycle(0, 1) > 0 and SCHEDULES["one_cycle"] is one_cycle


def rates_of(**options: Any) -> list[float]:
    """The learning rate of every step of two epochs of three batches, from a rate of 2."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    fit(optimizer, lambda: [(torch.ones(1, 2),)] * 3, lambda x: model(x).sum() * 0, epochs=2, **options)
    return seen


def test_a_schedule_goes_by_epochs_or_by_steps() -> None:
    np.testing.assert_allclose(rates_of(schedule=SCHEDULES["cosine"]), [2.0] * 3 + [1.0] * 3)
    np.testing.assert_allclose(rates_of(schedule=one_cycle, steps=3), [2 * one_cycle(i, 6) for i in range(6)])


@pytest.mark.parametrize(("schedule", "expected"), [("one_cycle", 4), ("cosine", None)])
def test_training_goes_by_steps_where_the_schedule_does(
    monkeypatch: pytest.MonkeyPatch, schedule: str, expected: int | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(train, "fit", lambda *_, **options: given.update(options))
    recipe = {**recipe_of("digits"), "schedule": schedule, "batch_size": 16, "version": 1}
    del recipe["t_mix"]
    view = View(dataset(), np.arange(50), generator(0, CPU), augment=True)
    train.train(nn.Linear(2, 1), view, train.Recipe(**recipe))
    assert given["schedule"] is SCHEDULES[schedule] and given["steps"] == expected


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (8, 8), (9, 8), (17, 8), (18, 8), (5, 1)])
def test_a_view_knows_its_number_of_batches(count: int, batch_size: int) -> None:
    view = View(dataset(), np.arange(count), generator(0, CPU), augment=False)
    coded = MnemonicView(view, draw_codes(4, (2, 6, 6), generator(1, CPU)), 0.5, generator(2, CPU))
    assert view.steps(batch_size) == coded.steps(batch_size) == sum(1 for _ in view.batches(batch_size))


# ---- mirroring -------------------------------------------------------------------------------------------


def mirrored(images: torch.Tensor, ids: torch.Tensor, data: Any) -> int:
    plain = data.normalised(data.images[ids])
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(images, plain, strict=True))
    return sum(not torch.equal(a, b) for a, b in zip(images, plain, strict=True))


@pytest.mark.parametrize(
    ("flip", "habit", "expected"), [(True, False, True), (False, True, False), (None, True, True)]
)
def test_a_recipe_mirrors_against_the_habit_of_the_dataset(
    flip: bool | None, habit: bool, expected: bool
) -> None:
    data = dataset(Mirrored) if habit else dataset()
    view = View(data, np.arange(50), generator(0, CPU), augment=True, flip=flip)
    images, _, which = next(view.batches(50))
    assert (5 < mirrored(images, which, data) < 45) is expected


def test_a_method_sees_what_training_saw() -> None:
    sets = {"retain": np.arange(30), "forget": np.arange(30, 40), "val": np.arange(40, 50)}
    needs = ("retain", "forget", "val")
    for plugin, flip in ((Plugin, True), (Mirrored, False)):
        data = dataset(plugin)
        seen = UnlearnData(data, sets, needs, generator(0, CPU), augment=True, flip=flip)
        plain = {image.numpy().tobytes() for image in data.normalised(data.images)}
        for batches in (seen.retain(30), seen.forget(10), seen.val(10), seen.union(40)):
            images, *_ = next(iter(batches))
            same = [image.contiguous().numpy().tobytes() in plain for image in images]
            assert all(same) is not flip


def test_the_tasks_of_a_mirrored_recipe_say_so() -> None:
    plan = plan_of(training={"all": {"epochs": 2, "flip": True}})
    assert all(mirrors(task.spec, False) for task in plan.tasks)
    assert not any(mirrors(task.spec, False) for task in plan_of().tasks)
    assert ids(plan).isdisjoint(ids(plan_of()))


def test_views_of_files_that_do_not_agree_are_not_told() -> None:
    plain, flipped = {"training": {}}, {"training": {"flip": True}}
    assert score_facts({"name": "digits"}, 2, [], [flipped])["views"] == views_of(True)
    assert score_facts({"name": "digits"}, 2, [], [plain, {"flip": True}])["views"] is None
    one, strong = [[False, 0, 0]], [list(view) for view in views_of(False, strong=True)]
    assert compact.common_views([one, STRONG], 18) == STRONG
    assert compact.common_views([one, strong], 3) == strong[:3]
    assert compact.common_views([strong, STRONG], 9) is None
    assert compact.common_views([one, None], 1) is None


# ---- from the grid to the report -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Grid]:
    """The paper's split and recipe with mirroring, one of two architectures and methods audited."""
    grid = Grid.model_validate(
        grid_data(
            architectures=["cnn_small", "vit_tiny"],
            methods=[{"finetune": {"epochs": 1}}, {"gradient_ascent": {"epochs": 1}}],
            forget=[{"random": {"fraction": 0.5}}],
            split="paper",
            training={"all": {"recipe": "fast", "epochs": 1, "batch_size": 256, "flip": True}},
            audit={"pairs": 4, "forget_sets": 1, "only": ["cnn_small"], "methods": ["finetune"]},
            seeds=1,
        )
    )
    results = str(tmp_path_factory.mktemp("recipes") / "results")
    ended = run_grid(grid, Options(results=results, data="data", address=None))
    assert not ended.failures
    return Store.open(results), grid


def test_what_is_not_audited_is_not_run(ran: tuple[Store, Grid]) -> None:
    runs = ran[0].runs(["track", "architecture", "kind", "method"]).to_pylist()
    audited = [run for run in runs if run["track"] == "audit"]
    assert {run["architecture"] for run in audited} == {"cnn_small"} and len(audited) == 3 * 8
    assert {run["method"] for run in audited} == {"", "finetune"}
    assert len(runs) - len(audited) == 2 * (2 + 2)


def test_cells_and_methods_without_an_audit_are_reported(ran: tuple[Store, Grid]) -> None:
    rows = {(r["architecture"], r["kind"], r["method"]): r for r in json.loads(report.render(ran[0], "json"))}
    for architecture in ("cnn_small", "vit_tiny"):
        for method in ("finetune", "gradient_ascent"):
            row = rows[architecture, "unlearn", method]
            assert 0 <= row["ta"] <= 1
            audited = architecture == "cnn_small" and method == "finetune"
            assert (row["auc_forgotten_vs_never"] is not None) is audited


def test_a_mirrored_model_is_scored_in_mirrored_views(ran: tuple[Store, Grid]) -> None:
    for architecture, kind, method in (
        ("cnn_small", "base", ""),
        ("cnn_small", "unlearn", "finetune"),
        ("vit_tiny", "retrain", ""),
    ):
        folder = score_folder("digits", architecture, kind, method)
        parts = [name for name in ran[0].files("scores") if name.startswith(f"scores/{folder}/")]
        assert parts and all((ran[0].facts(name) or {})["views"] == STRONG[:2] for name in parts)


def test_the_sets_are_those_of_the_chain(ran: tuple[Store, Grid]) -> None:
    """1,437 samples of the pool: ⌈0.15 · 1,437⌉ = 216 to validate, ⌈0.5 · 1,221⌉ = 611 to forget."""
    store = ran[0]
    [design] = {run["design"] for run in store.runs(["track", "kind", "design"]).to_pylist()
                if run["track"] == "main" and run["kind"] == "retrain"}  # fmt: skip
    [row] = [r for r in store.read_table("designs").to_pylist() if r["design"] == design]
    assert (row["n_val"], row["n_forget"], row["n_retain"]) == (216, 611, 610)
