"""Poisoned training data: the noise, the wrong labels, what models remember of them; from plan to report."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.base import Diverged, plugin
from orchestrator.config import Grid, load
from orchestrator.errors import UserError
from orchestrator.plan import Plan, Task, make_plan
from orchestrator.report import render
from orchestrator.runner import Options, run_grid
from orchestrator.store import Store
from tests.conftest import grid_data
from workers.data import Arrays, DeviceDataset, UnlearnData, View
from workers.datasets.digits import Digits
from workers.engine import placed
from workers.evaluate import evaluate
from workers.poison import Poisoned, draw, remembered
from workers.run_task import build, generator, index_hash, seeded, unlearn, weights_hash
from workers.task_design import Design
from workers.train import Recipe, train
from workers.worker import Worker

pytestmark = pytest.mark.usefixtures("quick_runs")

CPU = torch.device("cpu")
NOISE = {"poisoned": {"fraction": 0.2, "noise": 1.0}}
FLIPS = {"poisoned": {"fraction": 0.2, "noise": 0, "flip_labels": True}}
RANDOM = {"random": {"fraction": 0.2}}


class Toy:
    name, num_classes = "toy", 4
    mean, std = (0.2, 0.5), (0.25, 0.5)
    augment_pad, augment_flip = 0, True


def toy() -> DeviceDataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(1, 256, (60, 2, 6, 6)).astype(np.uint8), rng.integers(0, 4, 60)
    return DeviceDataset(Toy, Arrays(images[:50], labels[:50], images[50:], labels[50:]), CPU)


@cache
def digits() -> DeviceDataset:
    return DeviceDataset(Digits, Digits().load(Path()), CPU)


INDEX = np.arange(20, 29)


def poisoned(noise: float = 0.7, flip_labels: bool = False, seed: int = 5) -> Poisoned:
    return Poisoned(toy(), INDEX, seed, noise, flip_labels)


# ---- the draws -------------------------------------------------------------------------------------------


def test_the_noise_of_a_sample_is_the_same_in_every_process() -> None:
    noise, step = draw(2**62 + 3, 41, (1, 8, 8), 10)
    content = noise.astype("<f4").tobytes() + bytes([step])
    assert hashlib.sha256(content).hexdigest()[:16] == "c2c52edf5d6a65a3"


def test_noise_is_standard_normal_and_independent_of_sample_and_seed() -> None:
    def column(seed: int) -> np.ndarray:
        return np.stack([draw(seed, i, (40,), 10)[0] for i in range(500)])

    one, other = column(1), column(2)
    assert stats.kstest(one.ravel(), "norm").pvalue > 1e-3
    for left, right in ((one, other), (one[:-1], one[1:])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / math.sqrt(left.size)


def test_labels_move_to_each_other_class_equally_often() -> None:
    steps = np.bincount([draw(0, i, (1,), 5)[1] for i in range(4000)], minlength=5)
    assert steps[0] == 0 and stats.chisquare(steps[1:]).pvalue > 1e-3


# ---- what training sees ----------------------------------------------------------------------------------


def test_poisoned_samples_have_noise_in_units_of_the_normalised_input_and_the_others_none() -> None:
    clean, seen, everyone = toy(), poisoned(), torch.arange(60)
    images, labels = seen.gather(everyone)
    added = (clean.normalised(images) - clean.normalised(clean.images)).numpy()
    expected = np.stack([0.7 * draw(5, i, (2, 6, 6), 4)[0] for i in INDEX])
    np.testing.assert_allclose(added[INDEX], expected, atol=2e-6)
    others = np.setdiff1d(np.arange(60), INDEX)
    assert np.all(added[others] == 0) and torch.equal(labels, clean.labels)
    assert images[20:29].min() < 0, "not clamped"


def test_flips_change_the_labels_of_the_poisoned_samples_alone() -> None:
    clean, seen = toy(), poisoned(0.0, True)
    images, labels = seen.gather(torch.arange(60))
    moved = torch.from_numpy(np.isin(np.arange(60), INDEX))
    assert torch.equal(labels != clean.labels, moved) and torch.equal(images, clean.images.float())
    assert np.array_equal(seen.labels_of, labels[moved].numpy())


def test_noise_is_the_same_with_and_without_flips_and_whoever_else_is_poisoned() -> None:
    alone = Poisoned(toy(), INDEX[3:4], 5, 0.7, True)
    np.testing.assert_array_equal(alone.noise[0], poisoned().noise[3])
    assert not np.array_equal(poisoned().noise, poisoned(seed=6).noise)


def test_noise_moves_with_an_image_that_is_mirrored() -> None:
    seen = poisoned()
    whole = seen.normalised(seen.gather(torch.arange(60))[0])
    mirrored = 0
    for images, _, ids in View(seen, INDEX, generator(0, CPU), augment=True).batches(4):
        for image, i in zip(images, ids, strict=True):
            turned = not torch.equal(image, whole[i])
            mirrored += turned
            assert not turned or torch.equal(image, whole[i].flip(-1))
    assert 0 < mirrored < len(INDEX)


def test_methods_see_what_the_base_was_trained_on() -> None:
    seen, sets = poisoned(), {"retain": np.arange(20), "forget": INDEX, "val": np.arange(30, 45)}
    data = UnlearnData(seen, sets, ("retain", "forget", "val"), generator(0, CPU), augment=False)

    def images_of(batches: Any) -> set[bytes]:
        return {image.numpy().tobytes() for batch in batches for image in batch[0]}

    def expected(index: np.ndarray, source: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in seen.normalised(source[torch.from_numpy(index)])}

    noisy, clean = seen.gather(torch.arange(60))[0], toy().images
    assert images_of(data.forget(4)) == expected(INDEX, noisy)
    assert images_of(data.retain(4)) == expected(sets["retain"], clean)
    assert images_of(data.val(4)) == expected(sets["val"], clean)
    assert images_of(data.union(4)) == expected(INDEX, noisy) | expected(sets["retain"], clean)
    assert not images_of(data.forget(4)) & expected(INDEX, clean)


def test_the_hash_of_the_training_data_tells_poison_from_none_and_from_other_poison() -> None:
    others = np.arange(20)
    hashes = [index_hash(data, INDEX) for data in (toy(), poisoned(), poisoned(seed=6), poisoned(0.8))]
    hashes.append(index_hash(poisoned(flip_labels=True), INDEX))
    assert len(set(hashes)) == 5 and hashes[1] == index_hash(poisoned(), INDEX)
    assert index_hash(poisoned(), others) == index_hash(toy(), others)


# ---- what is remembered ----------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        weights = np.random.default_rng(3).normal(0, scale, (4, 72)).astype(np.float32)
        self.weight = nn.Parameter(torch.from_numpy(weights))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("flip_labels", [False, True])
def test_the_score_of_a_linear_model_is_the_hand_formula(scale: float, flip_labels: bool) -> None:
    """I = −⟨g, ξ⟩/(ε‖g‖), g = Wᵀ(p − e_y), in float64. At scale 30 float32 has p_y = 1 in most samples."""
    data, model = poisoned(flip_labels=flip_labels), Linear(scale)
    found = remembered(model, data, INDEX)
    w, statistics = model.weight.detach().numpy().astype(np.float64), []
    for i in INDEX:
        x = data.normalised(data.clean.images[i : i + 1]).numpy().astype(np.float64).ravel()
        others = np.delete(w @ x, data.labels[i])
        share = np.exp(others - others.max()) / np.exp(others - others.max()).sum()
        g = share @ np.delete(w, data.labels[i], axis=0) - w[data.labels[i]]  # p_c − [c = y], over 1 − p_y
        xi = 0.7 * draw(5, int(i), (72,), 4)[0].astype(np.float64)
        statistics.append(-(g @ xi) / (0.7 * np.linalg.norm(g)))
    assert found["gus"] == pytest.approx(np.mean(statistics), abs=1e-5)
    assert found["gus_p"] == pytest.approx(stats.norm.sf(math.sqrt(9) * np.mean(statistics)), abs=1e-5)
    assert (found["gus_samples"], found["gus_without_gradient"]) == (9, 0)


def test_a_model_that_knows_nothing_of_the_noise_scores_by_chance() -> None:
    data = Poisoned(digits(), np.arange(1000), 1, 1.0, False)
    found = remembered(fresh(), data, data.index)
    assert abs(found["gus"] or 9) < 4 / math.sqrt(1000)
    assert abs((found["gus_tpr_at_1pct"] or 0) - 0.01) < 4 * math.sqrt(0.0099 / 1000)


def test_samples_without_a_gradient_are_counted_and_a_gradient_that_is_not_finite_is_divergence() -> None:
    found = remembered(Linear(0.0), poisoned(), INDEX)
    assert found == {"gus_samples": 0, "gus_without_gradient": 9}
    broken = Linear(1.0)
    with torch.no_grad():
        broken.weight[:, 0] = math.inf
    with pytest.raises(Diverged, match="of 9 poisoned samples is not finite"):
        remembered(broken, poisoned(), INDEX)


def fresh() -> nn.Module:
    with seeded(0, CPU):
        return build({"architecture": {"name": "cnn_small"}}, digits())


def trained(data: Any, index: np.ndarray, epochs: int) -> nn.Module:
    recipe = Recipe("sgd", 0.1, 0.9, 0.0, "cosine", epochs, 32, False, "float32", 1)
    model = fresh()
    train(model, View(data, index, generator(0, CPU), augment=False), recipe)
    return model.eval()


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(digits().normalised(images)), labels))


def test_a_base_remembers_its_noise_and_a_retrain_does_not() -> None:
    """200 noisy of 400 samples. The base knows the very noise: other noise of that size costs it more."""
    gone, data = np.arange(200), Poisoned(digits(), np.arange(200), 1, 1.0, False)
    base, retrain = trained(data, np.arange(400), 15), trained(data, np.arange(200, 400), 15)
    scores = [remembered(model, data, gone) for model in (base, retrain)]
    assert scores[0]["gus_p"] < 1e-3 and abs(scores[1]["gus"]) < 4 / math.sqrt(200)  # type: ignore[operator,arg-type]
    ids, other = torch.from_numpy(gone), Poisoned(digits(), gone, 2, 1.0, False)
    own = loss(base, *data.gather(ids))
    assert own < 0.1 * loss(base, *other.gather(ids))
    assert loss(retrain, *data.gather(ids)) > 0.7 * loss(retrain, *other.gather(ids))


def test_a_base_learns_wrong_labels_and_a_retrain_does_not() -> None:
    gone = np.arange(60)
    data = Poisoned(digits(), gone, 1, 0.0, True)
    base, retrain = trained(data, np.arange(300), 50), trained(data, np.arange(60, 300), 15)
    knows, knows_not = (remembered(model, data, gone) for model in (base, retrain))
    assert set(knows) == {"fa_flipped"}, "no noise, no score of it"
    assert knows["fa_flipped"] > 0.5 and knows_not["fa_flipped"] < 0.1  # type: ignore[operator]


# ---- the plan --------------------------------------------------------------------------------------------


def plan_of(**changes: Any) -> Plan:
    return make_plan(Grid.model_validate(grid_data(**changes)))


def of(plan: Plan, kind: str, track: str = "main", seed: int | None = None) -> list[Task]:
    return [
        task
        for task in plan.tasks
        if (task.kind, task.columns()["track"]) == (kind, track) and seed in (None, task.spec["seed"])
    ]


def test_a_poisoned_cell_has_bases_of_its_own_and_leaves_other_cells_alone() -> None:
    plain, both = plan_of(forget=[RANDOM]), plan_of(forget=[RANDOM, NOISE, FLIPS])
    assert plain.by_id.keys() < both.by_id.keys()
    assert len(of(both, "base")) == 3 * len(of(plain, "base"))
    assert len(of(both, "base", "audit")) == 3 * len(of(plain, "base", "audit"))
    assert not any("poison" in json.dumps(task.spec) for task in plain.tasks)


def test_a_poisoned_base_differs_from_the_plain_one_in_its_poison_alone() -> None:
    plain, noisy = (of(plan_of(forget=[forget]), "base", "audit", 3)[0] for forget in (RANDOM, NOISE))
    recipe = noisy.spec["poisoned"]
    assert recipe["parameters"] == {"fraction": 0.2, "noise": 1.0, "flip_labels": False}
    assert recipe["draw"] == {"of": 2}
    rest = {key: value for key, value in noisy.spec.items() if key != "poisoned"}
    seeds = {key: value for key, value in rest["seeds"].items() if key != "poison"}
    assert rest | {"seeds": seeds} == plain.spec
    assert noisy.columns()["forget"] == "poisoned(flip_labels=False, fraction=0.2, noise=1.0)"


def test_all_that_starts_from_a_base_has_its_poison_and_other_bases_have_other_poison() -> None:
    plan = plan_of(forget=[NOISE])
    seeds: dict[tuple[str, int], set[int]] = {}
    for task in plan.tasks:
        place = (task.spec["members"]["track"], task.spec["seed"])
        seeds.setdefault(place, set()).add(task.spec["seeds"]["poison"])
    assert len(seeds) == 2 + 8 and all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 10
    assert all(
        plan.by_id[str(task.base)].spec["seed"] == task.spec["seed"] for task in of(plan, "unlearn", "audit")
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": 0}, "forget.poisoned: noise 0.0 and flip_labels false poison nothing. Set one of them"),
        ({"noise": -1.0}, "poisoned.noise: -1.0 is not a finite number of at least 0."),
        ({"noise": 1e4}, "is out of range, 0 to 100 are allowed."),
        ({"flip_labels": 1}, "poisoned.flip_labels: 1 is not of type bool."),
        ({"epsilon": 1}, "unknown parameter 'epsilon' of poisoned."),
    ],
)
def test_bad_poison_gets_one_clear_line(
    values: dict[str, Any], message: str, write_grid: Callable[..., Path]
) -> None:
    with pytest.raises(UserError) as caught:
        load(str(write_grid(forget=[{"poisoned": values}])))
    (line,) = caught.value.problems
    assert message in line and "grid.yaml" in line


# ---- a run -----------------------------------------------------------------------------------------------

GRID = grid_data(
    forget=[NOISE, {"poisoned": {"fraction": 0.1, "flip_labels": True}}, RANDOM],
    methods=[{"finetune": {"epochs": 1, "batch_size": 256}}],
    training={"all": {"epochs": 1, "batch_size": 256}},
    audit=None,
)
AUDITED = grid_data(
    forget=[NOISE],
    methods=[{"finetune": {"epochs": 1, "batch_size": 256}}],
    seeds=1,
    training={"all": {"epochs": 1, "batch_size": 256}},
    audit={"pairs": 4, "forget_sets": 2, "retrains": 1},
)


def run(grid: dict[str, Any], folder: Path, **options: Any) -> Any:
    return run_grid(Grid.model_validate(grid), Options(str(folder), "data", address=None, **options))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped once: half of its bases come back from their files."""
    folder = tmp_path_factory.mktemp("poison") / "results"
    assert run(GRID, folder, limit=5).ran == 5
    ended = run(GRID, folder)
    assert ended.failures == [] and ended.done == ended.total == 3 * 2 * 3
    return folder


def rows(results: Path) -> dict[str, dict[str, Any]]:
    return {row["task_id"]: row for row in Store.open(str(results)).runs().to_pylist()}


def test_each_model_of_a_noisy_cell_has_a_score_and_the_others_have_none(results: Path) -> None:
    plan, found = make_plan(Grid.model_validate(GRID)), rows(results)
    for cell, size in zip(plan.cells, (244, 122, None), strict=True):
        tasks = [*cell.bases.values(), *cell.retrains.values(), *cell.variants[0].tasks.values()]
        for row in (found[task] for task in tasks):
            assert row["gus_samples"] == size and (row["gus"] is None) == (size is None)
            assert (row["fa_flipped"] is not None) == (size == 122)
            assert size is None or row["gus_p"] == pytest.approx(stats.norm.sf(math.sqrt(size) * row["gus"]))


def test_only_models_that_saw_poison_say_so_in_the_hash_of_their_data(results: Path) -> None:
    plan, found = make_plan(Grid.model_validate(GRID)), rows(results)
    noisy, _, plain = plan.cells
    key = ("main", 0, 0)

    def data_of(task: str) -> str:
        return str(found[task]["members_sha256"])

    assert data_of(noisy.bases[key]) == data_of(noisy.variants[0].tasks[key]) != data_of(plain.bases[key])
    assert data_of(noisy.bases["main", 1, 0]) != data_of(noisy.bases[key]), "noise of its own"
    assert data_of(noisy.retrains["main", 1, 0]) == data_of(noisy.retrains[key]), "the same clean samples"


def test_running_again_runs_nothing(results: Path) -> None:
    assert run(GRID, results).ran == 0


def test_the_report_has_the_scores_where_there_are_some_and_says_what_they_mean(results: Path) -> None:
    store, found = Store.open(str(results)), rows(results)
    by_cell: dict[str, dict[str, Any]] = {}
    for row in json.loads(render(store, "json")):
        by_cell.setdefault(row["forget"], {})[row["method"]] = row
    plan = make_plan(Grid.model_validate(GRID))
    noisy = by_cell[plan.cells[0].forget]
    for method, tasks in (
        ("base", plan.cells[0].bases),
        ("retrain", plan.cells[0].retrains),
        ("finetune", plan.cells[0].variants[0].tasks),
    ):
        values = [found[task]["gus"] for task in tasks.values()]
        assert noisy[method]["gus"] == pytest.approx(np.mean(values)) and len(set(values)) == 2
        assert noisy[method]["gus_low"] < noisy[method]["gus"] < noisy[method]["gus_high"]
    assert by_cell[plan.cells[2].forget]["base"]["gus"] is None
    text = render(store, "md")
    assert isinstance(text, str)
    parts = {part.splitlines()[0].replace("\\", ""): part for part in text.split("\n## ")}
    noise, flips, plain = (
        next(part for head, part in parts.items() if cell.forget in head) for cell in plan.cells
    )
    assert "| GUS |" in noise and "1.645/√p = 0.105" in noise and "FA, flipped" not in noise
    assert "| FA, flipped |" in flips and "has a low FA" in flips and "1.645/√p = 0.149" in flips
    assert "GUS" not in plain.split("Audit card")[0]


def test_a_base_of_other_poison_is_refused() -> None:
    plan, worker = plan_of(forget=[NOISE], methods=[{"finetune": {"epochs": 1}}]), Worker("data")
    unlearn = of(plan, "unlearn")[0]
    base = plan.by_id[str(unlearn.base)]
    worker.run({"id": base.id, "spec": base.spec})
    other = unlearn.spec | {"seeds": unlearn.spec["seeds"] | {"poison": 1}}
    assert worker.run({"id": "right", "spec": unlearn.spec}).status == "done"
    ended = worker.run({"id": "wrong", "spec": other})
    assert ended.status == "bug" and "was trained on other samples" in ended.reason


def test_a_worker_trains_and_unlearns_on_poisoned_data_and_evaluates_on_clean() -> None:
    """The same steps by hand give the same weights and scores."""
    plan, worker = plan_of(forget=[NOISE], methods=[{"gradient_ascent": {"epochs": 1}}]), Worker("data")
    task = of(plan, "unlearn")[0]
    spec = plan.by_id[str(task.base)].spec
    weights = worker.run({"id": task.base, "spec": spec}).row["weights_sha256"]
    design = Design(digits(), task.spec)
    with seeded(spec["seeds"]["init"], CPU):
        model = placed(build(spec, digits()), CPU)
        order = generator(spec["seeds"]["order"], CPU)
        train(model, View(design.seen, design.members, order, augment=True), Recipe(**spec["training"]))
    assert weights_hash(model, None) == weights
    index = {"retain": design.retain, "forget": design.forget, "val": design.val}
    rng, seed = generator(task.spec["seeds"]["unlearn"], CPU), task.spec["seeds"]["unlearn"]
    method = plugin("methods", "gradient_ascent")(**task.spec["method"]["hyperparameters"])
    with seeded(seed, CPU):
        data = UnlearnData(design.seen, index, method.needs, rng, augment=True)
        model, _ = unlearn(method, model, data)
    scores = worker.run({"id": task.id, "spec": task.spec}).scores
    assert scores is not None and np.array_equal(scores.phi, evaluate(model, digits()).phi)


def test_an_audit_of_a_poisoned_cell(tmp_path: Path) -> None:
    """A base poisons all its audited members; a retrain is without one forget set, the rest is poisoned."""
    ended = run(AUDITED, tmp_path / "r")
    assert ended.failures == [] and ended.done == ended.total
    found, plan = rows(tmp_path / "r"), make_plan(Grid.model_validate(AUDITED))
    for base in of(plan, "base", "audit"):
        methods = [task for task in of(plan, "unlearn", "audit") if task.base == base.id]
        forgotten = [found[task.id]["gus_samples"] for task in methods]
        assert len(forgotten) == 2 and found[base.id]["gus_samples"] == sum(forgotten)
    for task in of(plan, "retrain", "audit"):
        design = Design(digits(), task.spec)
        assert found[task.id]["members_sha256"] == index_hash(design.seen, design.retain)
        assert found[task.id]["members_sha256"] != index_hash(digits(), design.retain)
        assert isinstance(design.seen, Poisoned) and len(np.setdiff1d(design.forget, design.seen.index)) == 0
    for row in json.loads(render(Store.open(str(tmp_path / "r")), "json")):
        assert row["auc_forgotten_vs_retrained"] is not None and row["gus"] is not None
