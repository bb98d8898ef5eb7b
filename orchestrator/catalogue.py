"""The plug-ins there are, read from their source without importing them.

Methods and architectures import torch, which takes seconds and 600 MB. A plan of 100,000 tasks needs only
names, versions and defaults, and these are literals in the files, so they are read with `ast`. A contract
test keeps the reading equal to what an import gives.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "methods": "methods",
    "datasets": "workers/datasets",
    "architectures": "workers/architectures",
    "forget": "workers/forget",
    "attacks": "attacks",
}


COSTS = ("retain", "forget", "val", "copies")
GIVEN = ("labels", "subclasses", "listed")  # what a forget recipe chooses by, one value per sample
# What the share of a forget recipe may count with, beside its parameters: classes and subclasses of the
# dataset, samples a base is trained on, samples that can be trained on, samples in a list.
SHARE = ("num_classes", "num_subclasses", "members", "pool", "listed")


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: `kind` is 'int', 'float', 'bool', 'str', 'tuple[int, ...]' (a list in grids) or
    'tuple[int | str, ...]' (a list of numbers or names); low and high bound the search.
    """

    name: str
    kind: str
    default: Any
    low: Any = None
    high: Any = None
    log: bool = False
    choices: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Plugin:
    """One plug-in file: its literal constants and, for dataclasses, its parameters."""

    name: str
    folder: str
    summary: str
    constants: dict[str, Any]
    parameters: dict[str, Parameter] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return str(self.constants.get("label", self.name))

    @property
    def paper(self) -> str:
        return str(self.constants.get("paper", ""))

    @property
    def version(self) -> int:
        return int(self.constants["version"])

    # ---- methods and forget recipes -----------------------------------------------------------------------

    @property
    def scope(self) -> str:
        """A method's: which forget sets it is made for. A forget recipe's: what it forgets."""
        return str(self.constants.get("scope", "both"))

    @property
    def audit_sets(self) -> str:
        """Forget sets of a forget recipe per base of the audit: 'many' (as many as the grid says), 'one', or
        'none' if it is of the main track only.
        """
        return str(self.constants.get("audit_sets", "one" if self.scope == "class" else "many"))

    @property
    def training(self) -> str:
        """The training recipe of the bases a method starts from."""
        return str(self.constants.get("training", "plain"))

    @property
    def once(self) -> bool:
        """Whether a method serves a single request: nothing it leaves can be unlearned from again."""
        return bool(self.constants.get("once", False))

    @property
    def access(self) -> str:
        """What a method must be given: full_access (training data), forget_only, zero_data, and
        changed_training where bases have to be trained for it.
        """
        if self.training != "plain":
            return "changed_training"
        read = set(self.constants.get("needs", ())) & {"retain", "forget", "val"}
        return "zero_data" if not read else "forget_only" if read == {"forget"} else "full_access"

    def cost(self, values: Mapping[str, float]) -> dict[str, float]:
        """Passes over retain, forget and val and further copies of the model (COSTS), from a method's
        formulas. values: its hyper-parameters, retain_size, forget_size and val_size.
        """
        formulas = self.constants["cost"]
        return {name: formula(formulas.get(name, "0"), values) for name in COSTS}


@cache
def plugins(kind: str) -> dict[str, Plugin]:
    """Every plug-in of a kind (a key of FOLDERS), by name, in alphabetical order; UserError with a line for
    each declaration that is missing or wrong.
    """
    folder = ROOT / FOLDERS[kind]
    read_in = (read(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_"))
    found = {plugin.name: plugin for plugin in read_in if plugin is not None}
    problems = [
        f"{FOLDERS[kind]}/{plugin.name}.py  {problem}"
        for plugin in found.values()
        for problem in declaration_problems(kind, plugin)
    ]
    if problems:
        raise UserError(*problems)
    return found


def version_of(kind: str, name: str) -> int:
    """The version of the code behind a name, of `file:model` that of the file."""
    return plugins(kind)[name.partition(":")[0]].version


def read(path: Path) -> Plugin | None:
    """The plug-in declared in one file, or None for a helper module (no constant `name`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for body in [node.body for node in tree.body if isinstance(node, ast.ClassDef)] + [tree.body]:
        constants = _constants(body)
        if "name" not in constants:
            continue
        if constants["name"] != path.stem:
            raise ValueError(f"{path}: name = {constants['name']!r} must be the file's name, {path.stem!r}")
        return Plugin(path.stem, path.parent.name, summary, constants, _parameters(body))
    return None


# ---- declarations ----------------------------------------------------------------------------------------

# What plans read of each kind, with an example of what to write.
REQUIRED = {
    "methods": {
        "version": "version = 1",
        "needs": 'needs = ("retain",)',
        "cost": 'cost = {"retain": "epochs"}',
    },
    "datasets": {
        "version": "version = 1",
        "num_classes": "num_classes = 10",
        "pool_size": "pool_size = 50000",
    },
    "architectures": {"version": "version = 1"},
    "forget": {"version": "version = 1", "scope": 'scope = "random"', "share": 'share = "fraction"'},
    "attacks": {"version": "version = 1"},
}


def declaration_problems(kind: str, plugin: Plugin) -> list[str]:
    """What is missing or wrong in what a plug-in declares, a line each."""
    given = plugin.constants
    missing = [
        f"{name}: missing, or not a literal. Write e.g. {example}"
        for name, example in REQUIRED[kind].items()
        if name not in given
    ]
    if missing or kind not in ("methods", "forget"):
        return missing
    problems = []
    scopes = ("random", "class", "both") if kind == "methods" else ("random", "class")
    if plugin.scope not in scopes:
        problems.append(f"scope: {plugin.scope!r} is not one of {', '.join(scopes)}.")
    if plugin.audit_sets not in ("many", "one", "none"):
        problems.append(f"audit_sets: {plugin.audit_sets!r} is not one of many, one, none.")
    if plugin.constants.get("given", "labels") not in GIVEN:
        problems.append(f"given: {plugin.constants['given']!r} is not one of {', '.join(GIVEN)}.")
    if plugin.training not in TRAININGS:
        problems.append(f"training: {plugin.training!r} is not one of {', '.join(TRAININGS)}.")
    sizes = (
        {"retain_size": 3.0, "forget_size": 1.0, "val_size": 1.0}
        if kind == "methods"
        else dict.fromkeys(SHARE, 9.0)
    )
    formulas = given["cost"] if kind == "methods" else {"share": given["share"]}
    if kind == "methods" and not set(formulas) <= set(COSTS):
        problems.append(
            f"cost: {', '.join(sorted(set(formulas) - set(COSTS)))}; allowed are {', '.join(COSTS)}."
        )
    values = {name: _number(p.default) for name, p in plugin.parameters.items()} | sizes
    return problems + [p for name, text in formulas.items() if (p := _formula_problem(name, text, values))]


def _number(default: Any) -> float:
    """A parameter's default in a formula, in which a list stands for its length."""
    return float(len(default)) if isinstance(default, tuple | str) else float(default)


def _formula_problem(name: str, text: str, values: Mapping[str, float]) -> str | None:
    try:
        value = formula(text, values)
    except (ValueError, SyntaxError, ZeroDivisionError, TypeError) as error:
        return f"{name}: {text!r} is no formula of {', '.join(values)} ({' '.join(str(error).split())[:90]})."
    return None if math.isfinite(value) and value >= 0 else f"{name}: {text!r} is {value} at the defaults."


def _constants(body: list[ast.stmt]) -> dict[str, Any]:
    """Names assigned to literals in a class or module body."""
    constants = {}
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # not a literal: not metadata
    return constants


def _parameters(body: list[ast.stmt]) -> dict[str, Parameter]:
    """Fields declared as `name: type = hp(default, low, high, log=…, choices=…)`."""
    parameters = {}
    for node in body:
        match node:
            case ast.AnnAssign(ast.Name(name), annotation, ast.Call(ast.Name("hp"), arguments, keywords)):
                values = [ast.literal_eval(argument) for argument in arguments]
                options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
                parameters[name] = Parameter(name, ast.unparse(annotation), *values, **options)
    return parameters


def with_defaults(kind: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a plug-in: the given values, the others at their defaults; a tuple as a list. Of
    `alternatives` the given ones, else the first: the others are left out.
    """
    declared = dict(plugins(kind)[name].parameters)
    either = plugins(kind)[name].constants.get("alternatives", ())
    used = [key for key in either if key in values] or either[:1]
    for key in set(either) - set(used):
        del declared[key]
    filled = {key: values.get(key, parameter.default) for key, parameter in declared.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in filled.items()}


TRAININGS = {"plain": "train", "mnemonic": "mnemonic"}  # training recipe -> its file in workers/


@cache
def training_version(training: str) -> int:
    """The version of a training recipe's behaviour, part of the id of every model trained by it."""
    return file_version(f"{TRAININGS[training]}.py")


@cache
def file_version(name: str) -> int:
    """The constant `version` of a file in workers/."""
    path = ROOT / "workers" / name
    return int(_constants(ast.parse(path.read_text(encoding="utf-8")).body)["version"])


# ---- formulas --------------------------------------------------------------------------------------------

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "ceil": math.ceil, "floor": math.floor}


def formula(text: str, values: Mapping[str, float]) -> float:
    """The value of an arithmetic formula in named values: + − * /, min, max, ceil, floor, `a if b else c`.

    ValueError for a name that is not given and for anything else Python can say.
    """

    def of(node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as number):
                return float(number)
            case ast.Name(name) if name in values:
                return float(values[name])
            case ast.BinOp(left, kind, right) if type(kind) in _OPERATORS:
                return _OPERATORS[type(kind)](of(left), of(right))
            case ast.IfExp(test, yes, no):
                return of(yes) if of(test) else of(no)
            case ast.Call(ast.Name(name), arguments, []) if name in _FUNCTIONS:
                return float(_FUNCTIONS[name](*map(of, arguments)))
        raise ValueError(f"{text!r}: {ast.unparse(node)!r} is no arithmetic of {', '.join(values)}")

    return of(ast.parse(text, mode="eval").body)
