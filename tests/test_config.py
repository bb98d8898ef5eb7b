"""The grid file: every mistake is found, named, and answered with what is allowed; precedence of recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import config
from orchestrator.config import Grid, load
from orchestrator.errors import UserError, nearest
from orchestrator.recipes import RECIPE
from tests.conftest import grid_data

WriteGrid = Callable[..., Path]


def problems(path: Path) -> list[str]:
    """The lines a user sees for a grid file; each starts with the file's name, taken off here."""
    with pytest.raises(UserError) as caught:
        load(str(path))
    for line in caught.value.problems:
        assert line.startswith(str(path.parent)), line
        assert "\n" not in line
    return [line.removeprefix(str(path)).strip(" :") for line in caught.value.problems]


NAN, INF = float("nan"), float("inf")

# what the user wrote -> what the one line must contain: where, the value, what is allowed or nearest
MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"fraction": 1.5}, ("fraction", "unknown key", "val_fraction")),
    ({"seed": 3}, ("seed:", "unknown key", "Did you mean 'seeds'?")),
    (
        {"datasets": ["digit"]},
        ("datasets[0]", "unknown dataset 'digit'", "Did you mean 'digits'?", "lethe list"),
    ),
    ({"datasets": []}, ("datasets", "at least one")),
    ({"datasets": "digits"}, ("datasets", "list", "'digits'")),
    ({"architectures": ["cnn_smal"]}, ("architectures[0]", "unknown architecture", "'cnn_small'")),
    (
        {"methods": ["neggrad+"]},
        ("methods[0]", "unknown method 'neggrad+'", "'neggrad_plus'", "list methods"),
    ),
    ({"methods": ["finetune", "finetune"]}, ("methods", "twice", "finetune")),
    ({"datasets": ["digits", "digits"]}, ("datasets", "twice", "digits")),
    ({"methods": None, "name": "x"}, ("methods", "missing")),
    ({"forget": ["randm"]}, ("forget[0]", "unknown forget recipe 'randm'", "'random'")),
    ({"forget": [{"random": {"fraction": 1.5}}]}, ("forget[0]", "random.fraction", "1.5", "0.0001 to 0.9")),
    ({"forget": [{"random": {"fraction": 0}}]}, ("random.fraction", "0", "out of range")),
    ({"forget": ["random", {"random": {"fraction": 0.1}}]}, ("forget", "twice", "random")),
    ({"forget": [{"random": {}, "other": {}}]}, ("forget[0]", "{name: {parameter: value, …}}")),
    ({"seeds": 0}, ("seeds", "0 is too few", "at least 1")),
    ({"seeds": -2}, ("seeds", "-2 is too few")),
    ({"seeds": True}, ("seeds", "True")),
    ({"seeds": 2.0}, ("seeds", "2.0")),
    ({"seeds": []}, ("seeds", "at least one")),
    ({"seeds": [1, 1]}, ("seeds", "twice", "1")),
    ({"seeds": [-1]}, ("seeds[0]", "-1", "at least 0")),
    ({"seeds": [2**31]}, ("seeds[0]", str(2**31), "out of range")),
    ({"seeds": [True]}, ("seeds[0]", "True")),
    ({"val_fraction": 1.5}, ("val_fraction", "1.5", "less than 1")),
    ({"val_fraction": True}, ("val_fraction", "True")),
    ({"audit": {"pairs": 1}}, ("audit.pairs", "1", "at least 4")),
    ({"audit": {"pairs": 4.0}}, ("audit.pairs", "4.0")),
    ({"audit": {"pair": 4, "pairs": 4}}, ("audit.pair:", "unknown key", "'pairs'", "forget_sets")),
    ({"audit": {"pairs": 4, "forget_sets": 6}}, ("audit.forget_sets", "6", "0.2", "at most 5")),
    ({"audit": {"pairs": 4, "forget_sets": 2, "retrains": 3}}, ("audit.retrains", "3", "forget_sets = 2")),
    ({"audit": {"pairs": 4, "columns": ["entropi"]}}, ("audit.columns[0]", "'entropi'", "'entropy'")),
    (
        {"audit": {"pairs": 4, "forget_sets": 2, "training": {"epoch": 1}}},
        ("audit.training.epoch", "'epochs'"),
    ),
    ({"training": {"cifar100": {"epochs": 1}}}, ("training.cifar100", "no such", "digits/cnn_small")),
    ({"training": {"digit": {"epochs": 1}}}, ("training.digit", "Did you mean 'digits'?")),
    ({"training": {"all": {"epochs": 0}}}, ("training.all.epochs", "0", "at least 1")),
    (
        {"training": {"all": {"optimizer": "sgdd"}}},
        ("training.all.optimizer", "'sgdd'", "'adam'", "mean 'sgd'"),
    ),
    ({"training": {"all": {"learning_rate": INF}}}, ("training.all.learning_rate", "finite", "inf")),
    ({"training": {"all": {"weight_decay": NAN}}}, ("training.all.weight_decay", "nan")),
    ({"training": {"all": {"augment": 1}}}, ("training.all.augment", "1")),
    ({"run": {"time_limit_s": INF}}, ("run.time_limit_s", "inf")),
    ({"run": {"flush_s": 31}}, ("run.flush_s", "31", "at most 30")),
    ({"run": {"max_actor": 3}}, ("run.max_actor", "'max_actors'")),
    ({"tune": {"trials": 0}}, ("tune.trials", "0", "at least 1")),
    ({"methods": [{"finetune": {"epochs": -1}}]}, ("finetune.epochs", "-1", "at least 0")),
    ({"methods": [{"finetune": {"epochs": 2.5}}]}, ("finetune.epochs", "2.5", "int")),
    ({"methods": [{"finetune": {"epochs": True}}]}, ("finetune.epochs", "True", "int")),
    ({"methods": [{"finetune": {"learning_rate": NAN}}]}, ("finetune.learning_rate", "nan", "finite")),
    ({"methods": [{"finetune": {"learning_rate": INF}}]}, ("finetune.learning_rate", "inf", "finite")),
    ({"methods": [{"finetune": {"learning_rate": -0.1}}]}, ("finetune.learning_rate", "-0.1", "at least 0")),
    ({"methods": [{"finetune": {"learning_rate": True}}]}, ("finetune.learning_rate", "True", "float")),
    ({"methods": [{"finetune": {"learning_rate": "big"}}]}, ("finetune.learning_rate", "'big'", "float")),
    ({"methods": [{"finetune": {"batch_size": 100}}]}, ("finetune.batch_size", "100", "64, 128, 256")),
    (
        {"methods": [{"finetune": {"learning_rat": 0.1}}]},
        ("'learning_rat'", "mean 'learning_rate'", "epochs"),
    ),
    ({"methods": [{"finetune": [0.1]}]}, ("methods[0]", "[0.1]")),
    ({"split": "papr"}, ("split", "'papr'", "'default' or 'paper'", "mean 'paper'")),
    ({"split": "paper", "val_fraction": 0.2}, ("val_fraction", "0.2", "0.15", "split: default")),
    ({"training": {"all": {"recipe": "fas"}}}, ("training.all.recipe", "'fas'", "mean 'fast'")),
    ({"training": {"all": {"flip": 1}}}, ("training.all.flip", "1")),
    ({"audit": {"pairs": 4, "only": ["digit"]}}, ("audit.only: digit:", "Did you mean 'digits'?")),
    ({"audit": {"pairs": 4, "only": []}}, ("audit.only", "at least one")),
    ({"audit": {"pairs": 4, "methods": ["scrub"]}}, ("audit.methods: 'scrub'", "of this grid", "finetune")),
    (
        {"audit": {"pairs": 4, "training": {"flip": True}}},
        ("audit.training", "digits/cnn_small", "same flip"),
    ),
    ({"tune": {"seeds": 0}}, ("tune.seeds", "0", "at least 1")),
    ({"tune": {"audit": {"base": 3, "bases": 3, "trials": 1}}}, ("tune.audit.base:", "'bases'", "trials")),
]


@pytest.mark.parametrize(("change", "expected"), MISTAKES, ids=[str(change)[:60] for change, _ in MISTAKES])
def test_a_mistake_is_one_line_with_place_value_and_what_is_allowed(
    write_grid: WriteGrid, change: dict[str, Any], expected: tuple[str, ...]
) -> None:
    (line,) = problems(write_grid(**change))
    for text in expected:
        assert text in line, line


def test_all_mistakes_are_told_at_once(write_grid: WriteGrid) -> None:
    grid = write_grid(
        seeds=0, methods=["neggrad+", "fintune"], fraction=1.5, audit={"pairs": 1}, run={"flush_s": 0}
    )
    lines = problems(grid)
    places = ("methods[0]", "methods[1]", "seeds", "audit.pairs", "run.flush_s", "fraction")
    assert sorted(line.split(":")[0] for line in lines) == sorted(places)


def test_mistakes_that_two_sections_make_together_are_told_together(write_grid: WriteGrid) -> None:
    lines = problems(write_grid(audit={"pairs": 4, "forget_sets": 6, "retrains": 7}, training={"x": {}}))
    assert [line.split(":")[0] for line in lines] == ["audit.forget_sets", "audit.retrains", "training.x"]


def test_the_default_fraction_counts_too(write_grid: WriteGrid) -> None:
    """`random` alone forgets 10 %: eleven disjoint sets do not fit, ten do."""
    (line,) = problems(write_grid(forget=["random"], audit={"pairs": 4, "forget_sets": 11}))
    assert "at most 10" in line
    assert load(str(write_grid(forget=["random"], audit={"pairs": 4, "forget_sets": 10}))).audit is not None


def test_three_tenths_three_times_fit_into_a_whole(write_grid: WriteGrid) -> None:
    """0.1 · 10 and 0.2 · 5 are not above 1, whatever the floating point says."""
    for fraction, sets in ((0.2, 5), (0.1, 10), (0.05, 20)):
        forget, audit = [{"random": {"fraction": fraction}}], {"pairs": 4, "forget_sets": sets}
        assert load(str(write_grid(forget=forget, audit=audit))).audit is not None


# ---- the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "mapping"),
        ("- a\n- b\n", "mapping"),
        ("seeds: [1, 2\nmethods: x\n", "line 2"),
        ("seeds: 1\nseeds: 2\n", "key 'seeds' stands twice"),
        ("audit:\n  pairs: 4\n  pairs: 5\n", "key 'pairs' stands twice"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_grid_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (line,) = problems(path)
    assert expected in line


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\xd8" * 10)
    assert "not readable" in problems(binary)[0]
    assert "no such file" in problems(tmp_path / "missing.yaml")[0]
    (tmp_path / "folder.yaml").mkdir()
    assert "not readable" in problems(tmp_path / "folder.yaml")[0]


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; a hyper-parameter written so must arrive as a number."""
    path = tmp_path / "grid.yaml"
    text = yaml.safe_dump(grid_data(methods=None, audit=None))
    path.write_text(text + "methods: [{finetune: {learning_rate: 1e-3, weight_decay: 5E-4, momentum: 0}}]\n")
    (method,) = load(str(path)).methods
    assert method.parameters == {"learning_rate": 0.001, "weight_decay": 0.0005, "momentum": 0.0}
    assert all(type(value) is float for value in method.parameters.values())


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    text = yaml.safe_dump(grid_data(training=None, audit=None))
    path.write_text(text + "training:\n  all: &all {epochs: 2}\n  digits: {<<: *all, batch_size: 7}\n")
    training = load(str(path)).training["digits"]
    assert (training.epochs, training.batch_size) == (2, 7)


# ---- meaning ---------------------------------------------------------------------------------------------


def test_a_count_of_seeds_is_the_first_seeds(write_grid: WriteGrid) -> None:
    assert load(str(write_grid(seeds=3))).seeds == [0, 1, 2]
    assert load(str(write_grid(seeds=[7, 5]))).seeds == [7, 5]


def test_names_and_names_with_parameters_mean_the_same_choice(write_grid: WriteGrid) -> None:
    grid = load(str(write_grid(methods=["finetune", {"gradient_ascent": None}], forget=[{"random": {}}])))
    assert [(m.name, m.parameters) for m in grid.methods] == [("finetune", {}), ("gradient_ascent", {})]
    assert grid.forget[0].parameters == {}


def test_two_retrains_per_base_unless_there_is_but_one_forget_set(write_grid: WriteGrid) -> None:
    for sets, retrains, expected in ((5, None, 2), (1, None, 1), (5, 4, 4)):
        audit = {"pairs": 4, "forget_sets": sets} | ({"retrains": retrains} if retrains else {})
        found = load(str(write_grid(audit=audit))).audit
        assert found is not None and found.retrains_per_base == expected


PRECEDENCE = ("all", "digits", "cnn_small", "digits/cnn_small")


@pytest.mark.parametrize("count", range(len(PRECEDENCE) + 1))
def test_the_narrowest_override_of_the_training_recipe_wins(count: int) -> None:
    """RECIPE < dataset's own < all < dataset < architecture < dataset/architecture < audit.training."""
    training = {key: {"epochs": 100 + i} for i, key in enumerate(PRECEDENCE[:count])}
    grid = Grid.model_validate(grid_data(training=training, audit={"pairs": 4, "training": {"epochs": 7}}))
    main, audit = (grid.recipe("digits", "cnn_small", track) for track in ("main", "audit"))
    own = config.catalogue.plugins("datasets")["digits"].constants["training"]
    assert own["epochs"] != RECIPE["epochs"]
    assert main["epochs"] == (99 + count if count else own["epochs"])
    assert audit["epochs"] == 7  # the audit's own override is the last word, on the audit track only
    assert main["momentum"] == RECIPE["momentum"]  # nobody overrides it
    assert main["learning_rate"] == own["learning_rate"] != RECIPE["learning_rate"]


def test_an_override_for_another_dataset_or_architecture_does_not_reach_a_model() -> None:
    training = {"resnet18": {"epochs": 3}, "cifar10": {"momentum": 0.5}, "cifar10/cnn_small": {"epochs": 4}}
    changes = {"datasets": ["digits", "cifar10"], "architectures": ["cnn_small", "resnet18"]}
    grid = Grid.model_validate(grid_data(training=training, audit=None, **changes))
    plain = Grid.model_validate(grid_data(training={}, audit=None, **changes))
    assert grid.recipe("digits", "cnn_small", "main") == plain.recipe("digits", "cnn_small", "main")
    assert grid.recipe("digits", "resnet18", "main")["epochs"] == 3
    assert grid.recipe("cifar10", "cnn_small", "main") == {
        **plain.recipe("cifar10", "cnn_small", "main"),
        "momentum": 0.5,
        "epochs": 4,
    }


# ---- a file of hyper-parameters --------------------------------------------------------------------------


def hyper(write_grid: WriteGrid, text: str, **changes: Any) -> Path:
    grid = write_grid(hyperparameters="tuned/mine.yaml", **changes)
    (grid.parent / "tuned").mkdir(exist_ok=True)
    (grid.parent / "tuned" / "mine.yaml").write_text(text)
    return grid


def test_values_of_the_file_are_below_those_of_the_grid(write_grid: WriteGrid) -> None:
    text = "finetune: {learning_rate: 0.5, epochs: 9}\ngradient_ascent: {learning_rate: 1e-4}\n"
    methods = [{"finetune": {"epochs": 3}}, "gradient_ascent", "neggrad_plus"]
    grid = load(str(hyper(write_grid, text, methods=methods)))
    assert {m.name: m.parameters for m in grid.methods} == {
        "finetune": {"learning_rate": 0.5, "epochs": 3},
        "gradient_ascent": {"learning_rate": 1e-4},
        "neggrad_plus": {},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fintune: {epochs: 3}", ["fintune: unknown method. Did you mean 'finetune'?"]),
        ("finetune: {epoch: 3}", ["unknown parameter 'epoch'", "Did you mean 'epochs'?"]),
        ("finetune: {epochs: -3}", ["finetune.epochs: -3"]),
        ("[finetune]", ["{method: {parameter: value}}"]),
        ("finetune: 3", ["{method: {parameter: value}}"]),
    ],
)
def test_mistakes_in_the_file_name_it(write_grid: WriteGrid, text: str, expected: list[str]) -> None:
    (line,) = problems(hyper(write_grid, text))
    assert "mine.yaml" in line
    for part in expected:
        assert part in line


def test_a_missing_file_is_named_and_several_mistakes_are_all_told(write_grid: WriteGrid) -> None:
    (line,) = problems(write_grid(hyperparameters="nowhere.yaml"))
    assert "nowhere.yaml: no such file" in line
    assert len(problems(hyper(write_grid, "fintune: {}\nfinetune: {epoch: 3}\n"))) == 2


def test_nearest_gives_nothing_when_nothing_is_near() -> None:
    assert nearest("zzzzzz", ["finetune"]) == ""
    assert nearest("fintune", ["finetune", "scrub"]) == " Did you mean 'finetune'?"
