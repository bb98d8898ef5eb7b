"""The plug-ins there are, read from their source without importing them.

Methods and architectures import torch, which takes seconds and 600 MB. A plan of 100,000 tasks needs only
names, versions and defaults, and these are literals in the files, so they are read with `ast`. A contract
test keeps the reading equal to what an import gives.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "methods": "methods",
    "datasets": "workers/datasets",
    "architectures": "workers/architectures",
    "forget": "workers/forget",
    "attacks": "attacks",
}


@dataclass(frozen=True)
class Parameter:
    """A declared parameter: `kind` is 'int', 'float', 'bool' or 'str'; low and high bound the search."""

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


@cache
def plugins(kind: str) -> dict[str, Plugin]:
    """Every plug-in of a kind (a key of FOLDERS), by name, in alphabetical order."""
    folder = ROOT / FOLDERS[kind]
    found = (read(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_"))
    return {plugin.name: plugin for plugin in found if plugin is not None}


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


@cache
def training_version() -> int:
    """The version of the training loop's behaviour, part of the id of every trained model."""
    tree = ast.parse((ROOT / "workers" / "train.py").read_text(encoding="utf-8"))
    return int(_constants(tree.body)["version"])
