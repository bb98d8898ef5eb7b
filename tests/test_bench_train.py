"""`lethe bench train` counts what it says. Of what is timed only that a figure is there is tested."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from benchmarks import record
from methods.base import plugin
from methods.finetune import Finetune
from orchestrator import cli_bench
from orchestrator.cost import images
from orchestrator.errors import UserError
from tests.conftest import ROOT
from tests.test_plan import plan_of
from workers import bench_tasks, bench_train
from workers.bench_machine import Region
from workers.bench_reference import flops_per_image, rate
from workers.bench_sizes import QUICK
from workers.bench_tasks import (
    Package,
    Runs,
    by_loader,
    cifar,
    delivered,
    digits,
    run_package,
    why_not,
    worker_for,
)
from workers.engine import Stepper

CPU = torch.device("cpu")
TINY = dataclasses.replace(QUICK, train={"cnn_small": (21, 8)}, small={"cnn_small": (20, 8)})


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What is measured at sizes that mean nothing: loops on both shapes, a package of the digits' shape."""
    return bench_train.measure("cpu", TINY, ("train", "digits"))


def rows(found: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["what"] == what]


def test_places_are_bases_of_each_architecture_and_shape_timed_thrice() -> None:
    sizes = dataclasses.replace(
        TINY, repeats=3, places={("cnn_small", 1, 16): (8, 4), ("cnn_small", 3, 8): (12, 4)}
    )
    found = bench_train.measure("cpu", sizes, ("places",))
    assert found["rows"] == [] and found["left_out"] == []
    counts = Counter((task["kind"], *task["image"], task["training_images"]) for task in found["tasks"])
    trained = {8: 7, 12: 10}  # of the pool, 15 % of which are for validation
    assert counts == {("base", 1, 16, trained[8]): 3, ("base", 3, 8, trained[12]): 3}
    assert {task["evaluated_images"] for task in found["tasks"]} == {10, 30}  # in colour mirrored too
    assert all(task["wall_s"] > 0 and task["evaluate_s"] > 0 for task in found["tasks"])


# ---- what is counted -------------------------------------------------------------------------------------


def test_both_loops_see_the_same_samples(found: dict[str, Any]) -> None:
    assert [(row["images"], row["reference_images"]) for row in rows(found, "train")] == [(21, 21), (20, 20)]
    shapes = {row["dataset"]: row for row in rows(found, "evaluate")}
    assert shapes["cifar10_shape"]["images"] == 2 * 21  # mirrored too, as training mirrors
    assert shapes["digits_shape"]["images"] == 20
    assert [row["reference_images"] for row in shapes.values()] == [21, 20]
    bases = [task for task in found["tasks"] if task["training_images"] in (21, 20)]  # one pass each
    assert [(base["image"], base["evaluated_images"]) for base in bases] == [([3, 32], 42), ([1, 8], 20)]
    assert [base["wall_s"] for base in bases] == [row["seconds"] for row in rows(found, "train")]
    assert [base["evaluate_s"] for base in bases] == [row["seconds"] for row in rows(found, "evaluate")]


def test_flops_of_a_small_net_by_hand() -> None:
    """Forward: each output of a layer is as many multiply-adds as it has inputs. Backward: as much for the
    weights and, but for the first layer, as much for the inputs.
    """
    first, second, last = 64 * 16 * 9, 64 * 32 * 9 * 16, 10 * 32 * 16
    model = plugin("workers.architectures", "cnn_small")().build(10, 1, 8)
    assert flops_per_image(model, 1, 8, train=False) == 2 * (first + second + last)
    assert flops_per_image(model, 1, 8) == 2 * (2 * first + 3 * second + 3 * last)
    assert flops_per_image(model, 1, 8, batch=5) == flops_per_image(model, 1, 8)


def test_flops_of_a_grouped_convolution_by_hand() -> None:
    """Each channel by itself: torch's own formula counts the gradient of the weights once per group."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 1, bias=False),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    point, each, last = 64 * 32, 64 * 32 * 9, 2048 * 10
    assert flops_per_image(model, 1, 8) == 2 * (2 * point + 3 * each + 3 * last)


def test_the_limit_is_arithmetic(found: dict[str, Any]) -> None:
    for row in rows(found, "train") + rows(found, "evaluate"):
        assert 0 < row["limit_fraction"] < 1.5
        assert row["limit_fraction"] == pytest.approx(
            row["images"] / row["seconds"] * row["flops_per_image"] / found["flop_per_s"]["float32"]
        )
        assert row["ratio"] == pytest.approx(
            row["images"] / row["seconds"] / (row["reference_images"] / row["reference_seconds"])
        )


def test_the_rate_of_products_leaves_settings_alone() -> None:
    before = torch.get_float32_matmul_precision()
    assert rate(CPU, "float32", (64,)) > 0 and rate(CPU, "bfloat16", (64,)) > 0
    assert torch.get_float32_matmul_precision() == before


def test_training_images_of_methods_by_hand_and_as_declared() -> None:
    """1,437 digits: 216 to validate; of 1,221 members 122 are forgotten. Two epochs; batches of 256."""
    package = Package(digits(), "cnn_small", 2, 64, 1)
    runs = Runs(worker_for(CPU, [package.dataset]), package, lambda line: None)
    base = runs.base_and_retrain(0)
    names = ("finetune", "neggrad_plus", "gradient_ascent")
    for name in names:
        runs.method(plugin("methods", name), base, 0)
    counted = {task["method"] or task["kind"]: task["training_images"] for task in runs.tasks}
    assert counted == {
        "base": 2 * 1221,
        "retrain": 2 * 1099,
        "finetune": 5 * 1099,
        "neggrad_plus": 10 * (1099 + 5 * 122),  # for each of five retain batches the whole forget set
        "gradient_ascent": 10 * 122,
    }
    plan = plan_of(forget=[{"random": {"fraction": 0.1}}], methods=list(names), audit=None, seeds=1)
    declared = {task.spec.get("method", {}).get("name", task.kind): images(task.spec) for task in plan.tasks}
    assert counted == pytest.approx(declared, rel=0.002)  # sizes are whole numbers here
    assert all(task["evaluated_images"] == 1797 and task["image"] == [1, 8] for task in runs.tasks)


def test_only_what_batches_deliver_is_counted() -> None:
    dataset = worker_for(CPU, [digits(80, 20)]).dataset("digits_shape")
    view = bench_tasks.View(dataset, torch.arange(50).numpy(), torch.Generator().manual_seed(0), augment=True)
    plain = bench_tasks.View.batches
    with pytest.raises(KeyError), delivered() as count:
        batches = view.batches(16)
        next(batches), next(batches)
        assert count == [32]
        list(view.batches(64, limit=10))
        raise KeyError
    assert count == [42] and bench_tasks.View.batches is plain


# ---- packages --------------------------------------------------------------------------------------------


def test_a_package_has_every_method_of_the_main_study(found: dict[str, Any]) -> None:
    paper = yaml.safe_load((ROOT / "grids" / "paper.yaml").read_text())["methods"]
    timed = {row["method"] for row in rows(found, "unlearn")}
    assert len(paper) == 18 and set(paper) <= timed and "mnemonic_code" in timed
    (package,) = rows(found, "package")
    in_it = [m for m in bench_tasks.all_methods() if m.training == "plain"]
    assert package["models"] == 2 + len(in_it) and found["left_out"] == []
    tasks = {(task["kind"], task["method"] or task["training"]) for task in found["tasks"]}
    trained = {(kind, training) for kind in ("base", "retrain") for training in ("plain", "mnemonic")}
    assert tasks == trained | {("unlearn", name) for name in timed}


def test_each_repeat_of_each_task_is_kept() -> None:
    package = Package(digits(80, 20), "cnn_small", 1, 16, 2, dropped=1)
    few = [plugin("methods", name) for name in ("gradient_ascent", "mnemonic_code")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_tasks, "all_methods", lambda: few)
        runs = run_package(worker_for(CPU, [package.dataset]), package, lambda line: None)
    plain = (("base", ""), ("retrain", ""))  # twice: the second method has bases of its own
    assert [(t["kind"], t["method"], t["repeat"]) for t in runs.tasks] == [
        (*task, repeat)
        for repeat in (0, 1)
        for task in (*plain, ("unlearn", few[0].name), *plain, ("unlearn", few[1].name))
    ]
    assert runs.reference == {}
    assert all(task["wall_s"] > 0 < task["evaluate_s"] for task in runs.tasks)
    assert runs.found("retrain")["repeats"] == 2


def test_the_reference_feeds_a_method_the_same_number_of_images() -> None:
    """Sixty less nine to validate, five of the rest to forget."""
    package = Package(cifar(60, 20), "cnn_small", 1, 16, 1)
    runs = Runs(worker_for(CPU, [package.dataset]), package, lambda line: None)
    base = runs.base_and_retrain(0)
    for name in ("gradient_ascent", "influence_unlearning"):
        method = plugin("methods", name)
        runs.method(method, base, 0)
        runs.fed_by_the_reference(method, base)
    ours = {task["method"]: task["training_images"] for task in runs.tasks if task["kind"] == "unlearn"}
    theirs = {name: ran.entry["training_images"] for name, ran in runs.reference.items()}
    assert ours == theirs == {"gradient_ascent": 10 * 5, "influence_unlearning": 46 + 5 + 46}
    assert [task["repeat"] for task in runs.tasks] == [0] * 4  # the reference's are no tasks


def test_the_reference_makes_the_same_images() -> None:
    """Through PIL and torchvision or on the device: without augmentation the pixels are equal."""
    plugin_ = cifar(20, 5)
    dataset = worker_for(CPU, [plugin_]).dataset(plugin_.name)
    view = bench_tasks.View(dataset, np.arange(3, 17), torch.Generator().manual_seed(0), augment=False)
    mine = {int(i): (x, int(y)) for x, y, i in zip(*next(iter(view.batches(14))), strict=True)}
    with by_loader(plugin_, dataset):
        images, labels, ids = next(iter(view.batches(14)))
    assert sorted(ids.tolist()) == list(range(3, 17))
    for image, label, i in zip(images, labels, ids, strict=True):
        torch.testing.assert_close(image, mine[int(i)][0])
        assert int(label) == mine[int(i)][1]


def test_a_package_is_the_sum_of_its_tasks_and_slow_ones_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_tasks, "ONCE_ABOVE_S", 0.0)
    monkeypatch.setattr(bench_tasks, "all_methods", lambda: [Finetune])
    monkeypatch.setattr(bench_train, "all_methods", lambda: [Finetune])
    sizes = dataclasses.replace(TINY, packages=(2, 1))
    found = bench_train.measure("cpu", sizes, ("digits",))
    counts = Counter(task["kind"] for task in found["tasks"])
    assert counts == {"base": 2, "retrain": 2, "unlearn": 1}
    (package,) = rows(found, "package")
    parts = {kind: [t for t in found["tasks"] if t["kind"] == kind] for kind in counts}
    known = sum(median(t["wall_s"] + t["evaluate_s"] for t in tasks) for tasks in parts.values())
    assert known < package["seconds"] < known + 5 and package["models"] == 3
    assert package["images"] == sum(tasks[0]["training_images"] for tasks in parts.values())
    longer = median(t["wall_s"] for t in parts["base"]) + median(t["wall_s"] for t in parts["retrain"])
    assert package["recipe_seconds"] == pytest.approx(package["seconds"] + 19 * longer)  # one of 20


def test_a_method_that_diverges_is_timed_at_tiny_rates() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wild(Finetune):
        learning_rate: float = 1e30

    package = Package(digits(80, 20), "cnn_small", 1, 16, 1)
    runs = Runs(worker_for(CPU, [package.dataset]), package, lambda line: None)
    runs.method(Wild, runs.base_and_retrain(0), 0)
    assert "diverged" in runs.notes["finetune"] and runs.left_out == {}
    assert runs.tasks[-1]["method"] == "finetune" and runs.tasks[-1]["training_images"] == 5 * 61


def test_what_cannot_be_run_has_a_reason() -> None:
    def method(**declared: str) -> Any:
        return type("Method", (), {"training": "plain", "scope": "both"} | declared)

    assert why_not(method()) == "" and why_not(method(training="mnemonic", scope="class")) == ""
    assert "'sharded'" in why_not(method(training="sharded"))
    assert "whole classes" in why_not(method(scope="class"))


# ---- what it prints --------------------------------------------------------------------------------------


def test_the_docstring_names_what_there_is(found: dict[str, Any]) -> None:
    told = str(bench_train.__doc__)
    assert all(key in told for key in (*found, *bench_train.KEYS, *bench_train.TASK_KEYS))
    assert all(set(row) == set(bench_train.KEYS) for row in found["rows"])
    assert all(tuple(task) == bench_train.TASK_KEYS for task in found["tasks"])
    assert found["threads"] == 1 and torch.__version__.startswith(found["versions"]["torch"])
    text = bench_train.as_text(found).splitlines()
    assert len(text) == 2 + len(found["rows"]) and len({len(line) for line in text[2:]}) <= 3


def test_the_command_prints_json_last(capsys: pytest.CaptureFixture[str]) -> None:
    cli_bench.bench("train", as_json=True, quick=True, parts="digits", device="cpu")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["device"].startswith("cpu") and rows(found, "package")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        cli_bench.bench("train", device="gpu")
    assert error.value.problems == ["bench --device gpu: unknown. Allowed: auto, cpu, cuda."]
    assert bench_train.main(["--parts", "train,x"]) == 2
    allowed = "train, digits, cifar, places, reference"
    assert capsys.readouterr().err == f"bench --parts x: unknown. Allowed: {allowed}.\n"
    assert bench_train.main(["--parts", "reference"]) == 2
    assert "needs digits or cifar too" in capsys.readouterr().err


def test_a_machine_without_a_card_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_train.main(["--device", "cuda"]) == 2
    told = capsys.readouterr().err
    assert told == f"bench --device cuda: torch {torch.__version__} sees no card. Here: cpu.\n"


def test_an_unknown_engine_is_told() -> None:
    with pytest.raises(bench_train.CannotMeasure, match=r"--engine warp: unknown\. Allowed: eager"):
        bench_train.measure("cpu", TINY, engine="warp")


def test_an_engine_reaches_the_loops_and_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of training, and of a method whose loss is pure, is taken by the engine's stepper."""
    steps: list[int] = []
    plain = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda self, b: (steps.append(len(b[1])), plain(self, b))[1])
    monkeypatch.setattr(bench_tasks, "all_methods", lambda: [Finetune])
    monkeypatch.setattr(bench_train, "all_methods", lambda: [Finetune])
    found = bench_train.measure("cpu", TINY, ("train", "digits"), "graphs")
    counted = sum(task["training_images"] for task in found["tasks"])
    assert sum(steps) > counted  # what was run to warm up too
    assert {row["engine"] for row in found["rows"]} == {"graphs"}


def test_memory_of_a_block_is_its_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux starts the count of peak memory anew")
    with Region(CPU) as large:
        block = torch.ones(100 * 2**18)  # 100 MiB
    del block
    with Region(CPU) as small:
        pass
    assert large.peak_memory_mib is not None and small.peak_memory_mib is not None
    assert large.peak_memory_mib - small.peak_memory_mib > 90


# ---- where little is installed ---------------------------------------------------------------------------

WITHOUT = """
import json, sys
class Without:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            return None
        return next(filter(None, (f.find_spec(name, path, target) for f in self.finders)), None)
sys.meta_path[:] = [Without(list(sys.meta_path))]
from dataclasses import replace
from workers import bench_train
from workers.bench_sizes import QUICK
sizes = replace(QUICK, train={{"cnn_small": (9, 4), "tinyvit11m": (4, 4)}}, small={{}}, warm=2)
found = bench_train.measure("cpu", sizes, {parts!r})
print(json.dumps([[row["what"] for row in found["rows"]], found["left_out"]]))
"""
ORCHESTRATION = ("ray", "optuna", "pydantic", "typer", "rich", "yaml", "pyarrow", "pandas", "orchestrator")


def alone(absent: tuple[str, ...], parts: tuple[str, ...]) -> tuple[list[str], list[dict[str, str]]]:
    """What is measured, and what is not, where the `absent` packages are not installed."""
    script = WITHOUT.format(absent=absent, parts=parts)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured, left_out = json.loads(done.stdout.splitlines()[-1])
    return measured, left_out


def test_it_runs_without_the_orchestrator_and_its_packages() -> None:
    measured, left_out = alone((*ORCHESTRATION, "sklearn"), ("digits",))
    assert left_out == [] and measured.count("package") == 1 and measured.count("unlearn") >= 19


def test_torch_torchvision_and_numpy_will_do_for_the_loops() -> None:
    absent = (*ORCHESTRATION, "sklearn", "scipy", "safetensors", "timm")
    measured, left_out = alone(absent, ("train", "digits"))
    assert measured == ["train", "evaluate"]
    reasons = {of["what"]: of["reason"] for of in left_out}
    assert reasons.keys() == {"train tinyvit11m", "digits_shape × cnn_small"}
    assert "timm" in reasons["train tinyvit11m"] and "is not installed" in reasons["digits_shape × cnn_small"]


def test_a_record_names_the_versions_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "no-such-package"))
    assert record.provenance(["true"])["versions"].keys() == {"python", "numpy"}


@pytest.mark.parametrize(("command", "told"), [("false", "ended with 1"), ("echo hi", "'hi'")])
def test_a_record_is_kept_of_a_command_that_ends_well_with_json(
    command: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=f"^record some: .*{told}.* Nothing is kept"):
        record.main("some", *command.split())
    assert not list(tmp_path.iterdir())
    record.main("some", "echo", "[7]")
    assert json.loads((tmp_path / "some.json").read_text())["found"] == [7]
