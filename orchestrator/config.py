"""The grid file: strict models, every mistake at once, the nearest name suggested, nothing run.

name: digits
datasets: [digits]
architectures: [cnn_small]
forget: [{random: {fraction: 0.2}}]
methods: [finetune, {gradient_ascent: {learning_rate: 0.001}}]
seeds: 3
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from orchestrator import architectures, catalogue, datasets, forget_recipes, requests, tune_space
from orchestrator.errors import UserError, nearest
from orchestrator.grid_errors import lines
from orchestrator.parameters import check_parameters, poison_problems
from orchestrator.recipes import resolve
from orchestrator.strict import Strict
from orchestrator.strict_yaml import read_yaml

MAX_SEEDS, VAL_FRACTION = 100_000, 0.15
MAX_SEEDS_OF_PHASE = 1000


class Choice(Strict):
    """A plug-in with the parameters the grid sets; the others keep their defaults."""

    name: str
    parameters: dict[str, Any] = {}
    ids: tuple[int, ...] | None = Field(None, exclude=True, repr=False)  # what a file of sample ids holds


class Training(Strict):
    """Overrides of the training recipe. What is left out comes from the named recipe, the dataset, RECIPE."""

    recipe: Literal["paper", "fast"] | None = None
    optimizer: Literal["sgd", "adam"] | None = None
    learning_rate: float | None = Field(None, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0)
    schedule: Literal["cosine", "constant", "one_cycle"] | None = None
    epochs: int | None = Field(None, ge=1, le=100_000)
    batch_size: int | None = Field(None, ge=1, le=1_000_000)
    augment: bool | None = None
    flip: bool | None = None  # whether augmentation mirrors images; the dataset's habit if left out
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    t_mix: float | None = Field(None, ge=0, le=1)  # share of samples replaced by codes in mnemonic training


class Audit(Strict):
    """The audit track: complementary pairs of bases, each base's members partitioned into forget sets."""

    pairs: int = Field(ge=4, le=10_000)
    forget_sets: int = Field(5, ge=1, le=1000)
    retrains: int | None = Field(None, ge=1, le=1000)  # per base, of its first forget sets
    views: Literal["strong"] | None = None  # each sample also scored moved by a pixel
    columns: list[Literal["entropy", "modified_entropy"]] = []  # scores stored beside φ
    # What is audited: selectors as in `training`, and methods of the grid; everything if left out.
    only: list[str] | None = Field(None, min_length=1)
    methods: list[str] | None = Field(None, min_length=1)
    training: Training = Training()

    @property
    def retrains_per_base(self) -> int:
        """By default two: the retrain row needs one model to attack and one to compare it with."""
        return self.retrains if self.retrains is not None else min(2, self.forget_sets)


class AuditSearch(Strict):
    """A search on bases of the audit track, as in arXiv 2410.01276. `lethe plan` counts it beside its own
    runs; it is never run: what is tuned on a base must not attack that base.
    """

    bases: int = Field(ge=1, le=1_000_000)
    trials: int = Field(ge=1, le=1_000_000)


class Tune(Strict):
    """The budget of the search: `trials` on each of `seeds` bases per (method, dataset, architecture, forget
    recipe).
    """

    trials: int = Field(20, ge=1, le=1_000_000)
    seeds: int = Field(1, ge=1, le=MAX_SEEDS)
    audit: AuditSearch | None = None
    sampler: Literal["tpe", "nsga3", "random", "qmc"] = "tpe"
    objective: Literal["retrain_distance", "paper"] = "retrain_distance"
    time: bool = False  # seconds are an objective too
    pruner: Literal["median", "none"] = "median"
    finalists: int = Field(3, ge=1, le=1000)  # best trials that run again on fresh seeds
    confirm_seeds: int = Field(3, ge=1, le=MAX_SEEDS_OF_PHASE)
    evaluate_seeds: int = Field(5, ge=2, le=MAX_SEEDS_OF_PHASE)
    parallel: int = Field(2, ge=1, le=1000)  # trials of one study at once
    space: dict[str, dict[str, list[Any]]] = {}  # method or all -> parameter -> [low, high] or choices


class Run(Strict):
    """How to run; none of this changes a result or an id."""

    time_limit_s: float = Field(3600.0, gt=0)
    actors_per_gpu: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    max_actors: int | None = Field(None, ge=1)
    flush_s: float = Field(30.0, gt=0, le=30)  # finished tasks wait at most this long to become durable


def _check_name(kind: str, singular: str, name: str) -> str:
    found = catalogue.plugins(kind)
    if name not in found:
        raise ValueError(
            f"unknown {singular} {name!r}.{nearest(name, found)}  `lethe list {kind}` shows all."
        )
    return name


def _dataset(value: Any) -> str:
    """A built-in dataset, or the name of a folder of pictures with its entry."""
    if type(value) is str and value != datasets.NAME:
        return _check_name("datasets", "dataset", value)
    return datasets.folder(value)


def _known(kind: str, singular: str) -> AfterValidator:
    return AfterValidator(lambda name: _check_name(kind, singular, name))


def _choice(value: Any) -> Any:
    """`name` and `{name: {parameter: value}}` both name a plug-in."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        [(name, parameters)] = value.items()
        if not isinstance(parameters, (dict, type(None))):
            raise ValueError(f"write {{{name}: {{parameter: value, …}}}}, not {{{name}: {parameters!r}}}.")
        return {"name": str(name), "parameters": parameters or {}}
    raise ValueError("write a name or {name: {parameter: value, …}}")


def _checked(kind: str, singular: str) -> AfterValidator:
    def check(choice: Choice) -> Choice:
        _check_name(kind, singular, choice.name)
        declared = catalogue.plugins(kind)[choice.name].parameters
        values = check_parameters(choice.name, choice.parameters, declared, bounded=kind == "forget")
        return Choice(name=choice.name, parameters=values)

    return AfterValidator(check)


def _unique(values: list[Any]) -> list[Any]:
    names = [value.name if isinstance(value, Choice) else value for value in values]
    twice = sorted(str(name) for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}.")
    return values


def _different(recipes: list[Choice]) -> list[Choice]:
    """The forget recipes; ValueError when two of them are the same with their defaults filled in."""
    filled = [
        (recipe.name, catalogue.with_defaults("forget", recipe.name, recipe.parameters)) for recipe in recipes
    ]
    twice = sorted({name for name, values in filled if filled.count((name, values)) > 1})
    if twice:
        raise ValueError(f"named twice with the same parameters: {', '.join(twice)}.")
    return recipes


def _seeds(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, list)):
        raise ValueError(f"{value!r} is neither a count nor a list of seeds.")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is too few, at least 1.")
    if isinstance(value, int) and value > MAX_SEEDS:
        raise ValueError(f"{value} is too many, at most {MAX_SEEDS:,}.")
    return list(range(value)) if isinstance(value, int) else value


Dataset = Annotated[str, PlainValidator(_dataset), PlainSerializer(datasets.as_entry)]
Architecture = Annotated[str, BeforeValidator(architectures.plain), AfterValidator(architectures.checked)]
MethodChoice = Annotated[Choice, BeforeValidator(_choice), _checked("methods", "method")]
ForgetChoice = Annotated[Choice, BeforeValidator(_choice), _checked("forget", "forget recipe")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Grid(Strict):
    """A benchmark: the product of datasets, architectures, forget recipes, methods and seeds."""

    name: str = ""
    datasets: Annotated[
        list[Dataset], Field(min_length=1), AfterValidator(_unique), AfterValidator(datasets.different)
    ]
    architectures: Annotated[list[Architecture], Field(min_length=1), AfterValidator(_unique)]
    forget: Annotated[list[ForgetChoice], Field(min_length=1), AfterValidator(_different)]
    methods: Annotated[list[MethodChoice], AfterValidator(_unique)]
    seeds: Annotated[list[Seed], BeforeValidator(_seeds), Field(min_length=1), AfterValidator(_unique)]
    split: Literal["default", "paper"] = "default"
    requests: int = Field(1, ge=1, le=1000)  # deletions in turn that a forget set is split into
    val_fraction: float = Field(VAL_FRACTION, gt=0, lt=1)
    hyperparameters: str = "default"
    augment_unlearning: bool = True  # unlearning runs augment as training does; false: never
    training: dict[str, Training] = {}
    audit: Audit | None = None
    tune: Tune | None = None
    run: Run = Run()

    @model_validator(mode="after")
    def _fits_together(self) -> Grid:
        problems = [*self._class_problems(), *self._audit_problems(), *self._selector_problems()]
        if self.split == "paper" and self.val_fraction != VAL_FRACTION:
            problems.append(
                f"val_fraction: {self.val_fraction} with split: paper, whose validation set is {VAL_FRACTION}"
                " of the pool. Leave it out, or write split: default."
            )
        sizes = self._filled(), self.datasets, self.val_fraction, self.audit is not None
        problems += requests.problems(self.requests, *sizes)
        problems += forget_recipes.problems(self)
        problems += [problem for name, values in self._filled() for problem in poison_problems(name, values)]
        problems += tune_space.problems(self.tune.space, [m.name for m in self.methods]) if self.tune else []
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _filled(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and all parameters of each forget recipe."""
        return [(c.name, catalogue.with_defaults("forget", c.name, c.parameters)) for c in self.forget]

    def _class_problems(self) -> list[str]:
        """Forget recipes that name a class which a dataset does not have, or all classes of one."""
        problems = []
        for dataset in self.datasets:
            count = int(datasets.plugin(dataset).constants["num_classes"])
            for name, values in self._filled():
                classes = values.get("classes", [])
                problems += [
                    f"forget.{name}.classes: {dataset} has no class {number}, only 0 to {count - 1}."
                    for number in classes
                    if number >= count
                ]
                if set(classes) == set(range(count)):
                    problems.append(f"forget.{name}.classes: all {count} classes of {dataset}; none is left.")
        return problems

    def _audit_problems(self) -> list[str]:
        if self.audit is None:
            return []
        problems = [*self._audited_problems(self.audit), *self._flip_problems()]
        problems += [
            f"audit.forget_sets: {self.audit.forget_sets} disjoint sets of fraction {fraction} do not fit"
            f" into one base; at most {int(1 / fraction + 1e-9)}."
            for fraction in (values.get("fraction") for _, values in self._filled())
            if fraction and fraction * self.audit.forget_sets > 1 + 1e-9
        ]
        if self.audit.retrains is not None and self.audit.retrains > self.audit.forget_sets:
            problems.append(
                f"audit.retrains: {self.audit.retrains} per base is too many, at most forget_sets ="
                f" {self.audit.forget_sets}."
            )
        return problems

    def _audited_problems(self, audit: Audit) -> list[str]:
        """What `audit.only` and `audit.methods` name that the grid does not have."""
        known = [choice.name for choice in self.methods]
        return [
            *self._unknown_selectors("audit.only: ", audit.only or []),
            *(
                f"audit.methods: {name!r} is no method of this grid.{nearest(name, known)}"
                f" Allowed: {', '.join(known) or 'none'}."
                for name in audit.methods or []
                if name not in known
            ),
        ]

    def _flip_problems(self) -> list[str]:
        """Models whose images are mirrored on one track alone: their scores would not have the same views."""
        return [
            f"audit.training: {dataset}/{architecture} would be mirrored on one track and not on the other."
            " Set the same flip, or the same recipe, in training and audit.training."
            for dataset in self.datasets
            for architecture in self.architectures
            if len({self.recipe(dataset, architecture, t).get("flip") for t in ("main", "audit")}) > 1
        ]

    def _selector_problems(self) -> list[str]:
        return [p for key in self.training for p in self._unknown_selectors("training.", [key])]

    def _unknown_selectors(self, where: str, selectors: list[str]) -> list[str]:
        allowed = ["all", *self.datasets, *self.architectures]
        allowed += [f"{d}/{a}" for d in self.datasets for a in self.architectures]
        return [
            f"{where}{key}: no such dataset or architecture in this grid.{nearest(key, allowed)}"
            f" Allowed: {', '.join(allowed)}."
            for key in selectors
            if key not in allowed
        ]

    def audits(self, dataset: str, architecture: str) -> bool:
        """Whether the models of a dataset and an architecture have an audit track."""
        names = {"all", dataset, architecture, f"{dataset}/{architecture}"}
        return self.audit is not None and (self.audit.only is None or not names.isdisjoint(self.audit.only))

    def recipe(self, dataset: str, architecture: str, track: str, training: str = "plain") -> dict[str, Any]:
        """The training recipe of a model, as orchestrator/recipes.py puts it together.

        training: 'plain', or 'mnemonic' for training with codes, which adds a key of that name.
        """
        selectors = ("all", dataset, architecture, f"{dataset}/{architecture}")
        overrides = [self.training[selector] for selector in selectors if selector in self.training]
        if track == "audit" and self.audit is not None and self.audits(dataset, architecture):
            overrides.append(self.audit.training)
        given = (override.model_dump(exclude_none=True) for override in overrides)
        named = next((name for name in self.datasets if name == dataset), dataset)
        recipe = resolve(datasets.plugin(named), given)
        t_mix = recipe.pop("t_mix")
        recipe["version"] = catalogue.training_version("plain")
        if training == "mnemonic":
            recipe["mnemonic"] = {"t_mix": t_mix, "version": catalogue.training_version("mnemonic")}
        return recipe


def load(path: str) -> Grid:
    """The grid in a YAML file with its hyper-parameters resolved; UserError with one line per mistake."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a grid is a mapping of keys to values. README.md shows one.")
    try:
        grid = Grid.model_validate(data)
    except ValidationError as error:
        raise UserError(*lines(Grid, path, error), *_hidden(path, data, error)) from None
    return forget_recipes.with_lists(path, _with_hyperparameters(path, grid))


def _hidden(path: str, data: dict[str, Any], error: ValidationError) -> list[str]:
    """Mistakes across keys, which show only when the keys that are wrong by themselves are replaced."""
    neutral = {"methods": [], "seeds": 1, "training": {}, "audit": None, "tune": None, "run": {}, "name": ""}
    neutral |= {"split": "default", "hyperparameters": "default", "augment_unlearning": True}
    neutral |= {"val_fraction": VAL_FRACTION, "requests": 1}
    wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    if not wrong or wrong & {"datasets", "architectures", "forget"}:
        return []
    try:
        Grid.model_validate(
            {key: value for key, value in data.items() if key not in wrong}
            | {key: neutral[key] for key in wrong & neutral.keys()}
        )
    except ValidationError as more:
        return lines(Grid, path, more)
    return []


def _with_hyperparameters(path: str, grid: Grid) -> Grid:
    """The grid with the values of a hyper-parameter file below those the grid sets itself."""
    if grid.hyperparameters in ("default", "tuned"):  # tuned: by cell, once winners are known
        return grid
    source = str(Path(path).parent / grid.hyperparameters)
    values = read_yaml(source) or {}
    if not isinstance(values, dict) or not all(
        isinstance(given, (dict, type(None))) for given in values.values()
    ):
        raise UserError(f"{source}: write {{method: {{parameter: value}}}}.")
    problems, methods = _unknown_methods(source, values), []
    for choice in grid.methods:
        declared = catalogue.plugins("methods")[choice.name].parameters
        try:
            given = check_parameters(choice.name, values.get(choice.name) or {}, declared)
            methods.append(Choice(name=choice.name, parameters={**given, **choice.parameters}))
        except ValueError as error:
            problems.append(f"{source}  {choice.name}: {error}")
    if problems:
        raise UserError(*problems)
    return grid.model_copy(update={"methods": methods})


def _unknown_methods(source: str, values: dict[Any, Any]) -> list[str]:
    known = catalogue.plugins("methods")
    return [
        f"{source}  {name}: unknown method.{nearest(str(name), known)}"
        for name in values
        if name not in known
    ]
