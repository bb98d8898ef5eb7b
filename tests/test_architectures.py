"""Architectures of timm: TinyViT by value, names in grids, what does not fit, and a run from end to end."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow.dataset import dataset
from torch import nn
from torch.nn.functional import cross_entropy

from orchestrator import architectures
from orchestrator.catalogue import version_of
from orchestrator.config import Grid
from orchestrator.errors import UserError
from orchestrator.plan import make_plan
from orchestrator.report import render
from orchestrator.runner import Ended, Options, run_grid
from orchestrator.store import Store, score_folder
from tests.conftest import ROOT, Lethe, grid_data
from workers.architectures import CannotBuild, architecture, try_out
from workers.run_task import seeded, weights_hash
from workers.train import Recipe, train

pytestmark = pytest.mark.usefixtures("quick_runs")

RECIPE = Recipe("sgd", 0.1, 0.9, 5e-4, "cosine", 1, 8, False, "auto", 1)


def tinyvit(num_classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return architecture("tinyvit11m").build(num_classes, channels, size)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tinyvit()


def of_kind(model: nn.Module, kind: type[nn.Module] | str) -> list[Any]:
    return [m for m in model.modules() if kind in (type(m), type(m).__name__)]


# ---- TinyViT-11M by value (spec of arXiv 2410.01276) ---------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "size", "count"), [(10, 32, 10_552_462), (100, 32, 10_592_872), (5, 224, 10_550_217)]
)
def test_tinyvit_has_the_counts_of_the_reference(num_classes: int, size: int, count: int) -> None:
    found = tinyvit(num_classes, size)
    assert (sum(p.numel() for p in found.parameters()), len(list(found.parameters()))) == (count, 215)
    images = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        assert found.eval()(images).shape == (1, num_classes)


def test_tinyvit_is_made_of_what_the_paper_says(model: nn.Module) -> None:
    convolutions = of_kind(model, nn.Conv2d)
    spatial = [layer.weight.numel() for layer in convolutions if layer.kernel_size != (1, 1)]
    assert len(convolutions) == 27 and sum(layer.weight.numel() for layer in convolutions) == 559_392
    assert len(spatial) == 17 and sum(spatial) == 55_584
    attention = of_kind(model, "Attention")
    windows = [int(layer.attention_biases.shape[1] ** 0.5) for layer in attention]
    assert windows == 2 * [7] + 6 * [14] + 2 * [7]
    assert [layer.attention_biases.shape[0] for layer in attention] == 2 * [4] + 6 * [8] + 2 * [14]
    assert [layer.proj.out_features for layer in attention] == 2 * [128] + 6 * [256] + 2 * [448]
    assert all(m.fc1.out_features == 4 * m.fc1.in_features for m in of_kind(model, "NormMlp"))
    assert [m.conv2.conv.out_channels for m in of_kind(model, "MBConv")] == [256, 256]
    assert {type(m.act3) for m in of_kind(model, "MBConv")} == {nn.GELU}
    assert [m.p for m in of_kind(model, nn.Dropout) if m.p] == []


def test_tinyvit_starts_as_the_paper_says(model: nn.Module) -> None:
    linear = torch.cat([layer.weight.detach().flatten() for layer in of_kind(model, nn.Linear)])
    assert abs(float(linear.std()) - 0.02) < 1e-4 and abs(float(linear.mean())) < 1e-4
    assert all(not layer.bias.any() for layer in of_kind(model, nn.Linear))
    assert all(not layer.attention_biases.any() for layer in of_kind(model, "Attention"))
    zero = [name for name, m in model.named_modules() if type(m) is nn.BatchNorm2d and not m.weight.any()]
    assert zero == ["stages.0.blocks.0.conv3.bn", "stages.0.blocks.1.conv3.bn"]


def test_paths_are_dropped_in_training_up_to_a_tenth_and_by_the_global_generator(model: nn.Module) -> None:
    rates = [m.drop_prob for m in of_kind(model, "DropPath")]
    assert rates == sorted(rates) and len(rates) == 1 + 2 * 10  # none in the first of the twelve blocks
    assert rates[0] == pytest.approx(0.1 / 11) and rates[-1] == pytest.approx(0.1)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def logits(seed: int, training: bool) -> torch.Tensor:
        with seeded(seed, torch.device("cpu")), torch.no_grad():
            return copy.deepcopy(model).train(training)(images)

    assert torch.equal(logits(0, True), logits(0, True)) and not torch.equal(logits(0, True), logits(1, True))
    assert torch.equal(logits(0, False), logits(1, False))


def test_training_tinyvit_is_a_function_of_its_seed() -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    class View:
        def batches(self, batch_size: int) -> list[tuple[torch.Tensor, ...]]:
            return [(images, torch.arange(4), torch.arange(4))]

    def trained(seed: int, draws: int) -> str:
        torch.rand(draws)  # what was drawn before must not matter
        start = tinyvit()
        with seeded(seed, torch.device("cpu")):
            train(start, View(), RECIPE)
        return weights_hash(start, None)

    assert trained(3, 0) == trained(3, 5) != trained(4, 0)


def test_eval_mode_uses_the_biases_of_the_moment_and_gives_them_gradients() -> None:
    """timm keeps them from the first pass on: a second step fails, and changed weights change nothing."""
    model = tinyvit().eval()
    images, labels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(1)
    for _ in range(2):
        cross_entropy(model(images), labels).backward()
    assert all(m.attention_biases.grad.any() for m in of_kind(model, "Attention"))
    with torch.inference_mode():
        before = model(images)
    with torch.no_grad():
        for m in of_kind(model, "Attention"):
            m.attention_biases.add_(torch.linspace(-3, 3, m.attention_biases.shape[1]))
        after = model(images)
    assert not torch.allclose(before, after, atol=1e-4)
    fresh = tinyvit()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(images), after)
    assert copy.deepcopy(model)(images).requires_grad  # a copy can be made after a pass, and be trained


def test_a_window_around_a_small_map_is_zeros(model: nn.Module) -> None:
    """At 32 px the attention of stage 1 sees a map of 4×4 as one window of 7×7 tokens."""
    seen: list[torch.Tensor] = []
    block = of_kind(copy.deepcopy(model), "TinyVitBlock")[0].eval()
    block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(torch.ones(2, 4, 4, 128))
    window = seen[0].view(2, 7, 7, 128)
    assert window[:, :4, :4].eq(1).all() and window.sum() == 2 * 16 * 128


# ---- names in grids ------------------------------------------------------------------------------


def test_the_names_are_timms() -> None:
    import timm

    assert architectures.models("timm") == set(timm.list_models())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet10", "unknown architecture 'timm:resnet10'. Did you mean 'timm:resnet10t'?"),
        ("timm:resnet18.a1_in1k", "names pretrained weights, which are never used. Write timm:resnet18."),
        ("timm:hf-hub:timm/resnet18", "unknown architecture 'timm:hf-hub:timm/resnet18'."),
        ("timm", "timm: which model? Write timm:NAME"),
        ("timm:", "timm: which model? Write timm:NAME"),
        ({"timm": "resnet10t"}, "write timm:resnet10t, without a space"),
        ("cnn_small:large", "unknown architecture 'cnn_small:large'. Did you mean 'cnn_small'?"),
    ],
)
def test_a_wrong_name_is_one_line(name: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Grid.model_validate(grid_data(architectures=[name]))
    lines = [line for line in str(caught.value).splitlines() if "Value error" in line]
    assert len(lines) == 1 and words in lines[0]


def test_without_timm_a_plan_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "find_spec", lambda name: None)
    architectures.models.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"timm is not installed here\. `pip install timm`"):
            architectures.checked("timm:resnet10t")
    finally:
        architectures.models.cache_clear()


@pytest.mark.parametrize("name", ["timm:resnet10t", "tinyvit11m"])
def test_without_timm_building_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CannotBuild, match=r"timm cannot be imported .* `pip install timm`"):
        try_out(name, 10, 3, 32)


def test_nothing_imports_timm_before_a_model_of_it_is_built() -> None:
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "from workers.architectures import architecture, versions\n"
        "print(sum(p.numel() for p in architecture('cnn_small').build(10, 1, 8).parameters()))\n"
        "print(versions('cnn_small'), architecture('timm:resnet10t').model, architecture('tinyvit11m').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["9978", "{}", "resnet10t", "tinyvit11m"], done.stderr


def test_a_plan_with_timm_imports_neither_timm_nor_torch() -> None:
    code = (
        "import sys; from orchestrator.config import Grid; from orchestrator.plan import make_plan\n"
        f"plan = make_plan(Grid.model_validate({grid_data(architectures=['timm:resnet10t'])!r}))\n"
        "print(plan.tasks[0].spec['architecture'], sorted({'timm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'name': 'timm:resnet10t', 'version': 1} []", done.stderr


def test_selectors_name_a_model_of_timm() -> None:
    changes: dict[str, Any] = {"architectures": ["timm:test_resnet", "cnn_small"]}
    changes["training"] = {
        "timm:test_resnet": {"epochs": 3, "batch_size": 32},
        "digits/timm:test_resnet": {"epochs": 4},
    }
    grid = Grid.model_validate(grid_data(**changes))
    recipe = grid.recipe("digits", "timm:test_resnet", "main")
    assert (recipe["epochs"], recipe["batch_size"]) == (4, 32)
    assert grid.recipe("digits", "cnn_small", "main")["epochs"] != 4
    names = {task.columns()["architecture"] for task in make_plan(grid).tasks}
    assert names == {"timm:test_resnet", "cnn_small"}
    assert version_of("architectures", "timm:test_resnet") == version_of("architectures", "timm")


# ---- what does not fit, and what does ------------------------------------------------------------


def test_three_channels_are_made_of_one_where_timm_takes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.architectures import timm

    asked: list[dict[str, Any]] = []

    def colours_only(model: str, **options: Any) -> nn.Module:
        asked.append(options)
        for name in ("img_size", "in_chans"):
            if name in options:
                raise TypeError(f"Net.__init__() got an unexpected keyword argument '{name}'")
        return nn.Conv2d(3, options["num_classes"], 8)

    monkeypatch.setattr(timm, "create", colours_only)
    model = architecture("timm:any").build(10, 1, 8)
    assert [sorted(options) for options in asked][-1] == ["num_classes"] and len(asked) == 3
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10, 1, 1)


def test_the_size_is_given_to_models_that_take_one() -> None:
    model = architecture("timm:test_vit").build(10, 1, 32)
    assert model.patch_embed.img_size == (32, 32) and model.patch_embed.proj.in_channels == 1
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "timm:test_vit",
            "timm:test_vit: cannot take images of 1×8×8 (AssertionError: Input height (8) should",
        ),
        ("timm:nothing", "timm:nothing: timm has no such model."),
        ("timm:hf-hub:timm/resnet18", "timm:hf-hub:timm/resnet18: timm has no such model."),
    ],
)
def test_what_cannot_be_built_is_one_line(name: str, words: str) -> None:
    with pytest.raises(CannotBuild) as caught:
        try_out(name, 10, 1, 8)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def run(results: Path, **changes: Any) -> Ended:
    """`lethe run --inline` of a grid without an audit: one seed, one epoch."""
    training = {"all": {"epochs": 1}}
    grid = Grid.model_validate(grid_data(seeds=1, audit=None, training=training, **changes))
    return run_grid(grid, Options(str(results), str(results.parent / "data"), address=None))


def test_what_does_not_fit_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "results", architectures=["timm:test_resnet", "timm:test_vit", "timm:test_convnext"])
    one, other = caught.value.problems
    assert one.startswith("digits  timm:test_vit: cannot take images of 1×8×8 (")
    assert other.startswith("digits  timm:test_convnext: cannot take images of 1×8×8 (")
    assert not (tmp_path / "results").exists(), "no trace is left"


def test_a_model_of_timm_from_the_grid_to_the_report(tmp_path: Path) -> None:
    ended = run(tmp_path / "results", architectures=["timm:test_efficientnet"])
    assert (ended.total, ended.done, ended.ran) == (3, 3, 3)
    store = Store.open(str(tmp_path / "results"))
    rows = store.runs().to_pylist()
    assert {row["architecture"] for row in rows} == {"timm:test_efficientnet"}
    assert all("timm" in json.loads(row["versions"]) for row in rows)
    folder = score_folder("digits", "timm:test_efficientnet", "base", "")
    assert folder == "dataset=digits/architecture=timm%3Atest_efficientnet/kind=base/method=none"
    assert (tmp_path / "results" / "scores" / folder).is_dir()
    assert not [name for name in store.files("", "") if ":" in name]
    hive = dataset(tmp_path / "results" / "scores", partitioning="hive").to_table(["architecture"])
    assert set(hive["architecture"].to_pylist()) == {"timm:test_efficientnet"}
    assert run(tmp_path / "results", architectures=["timm:test_efficientnet"]).ran == 0, "scores are found"
    found = json.loads(render(store, "json"))
    assert {row["architecture"] for row in found} == {"timm:test_efficientnet"}
    assert "timm:test_efficientnet" in str(render(store, "html"))


@pytest.mark.long
def test_a_model_of_timm_is_audited(lethe: Lethe, write_grid: Any, weird_tmp_path: Path) -> None:
    """Scores are found again under the folder's written name: by the audit, when merged, and as moments."""
    grid = write_grid(architectures=["timm:test_efficientnet"], seeds=1, training={"all": {"epochs": 1}})
    assert lethe("run", grid, "--inline").returncode == 0
    for command in (("store", "compact"), ("store", "verify"), ("store", "suffstats")):
        assert lethe(*command).returncode == 0
    rows = json.loads(lethe("report", "--format", "json").stdout)
    assert {row["architecture"] for row in rows} == {"timm:test_efficientnet"}
    assert all(0 <= row["auc_forgotten_vs_retrained"] <= 1 for row in rows)
