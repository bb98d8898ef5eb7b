"""Names of architectures in grids: a plug-in file, or `file:NAME` for a model of a package: `timm:resnet10t`.

A package's names are read from its source without importing it, since that would import torch.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import catalogue
from orchestrator.errors import nearest

ENTRY = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)


def shown(plugin: catalogue.Plugin) -> str:
    """How a plug-in is named in grids: `timm:NAME` where it stands for the models of a package."""
    return f"{plugin.name}:NAME" if "names_from" in plugin.constants else plugin.name


def requires(name: str) -> tuple[str, ...]:
    """The packages an architecture needs beyond torch and torchvision."""
    plugin = catalogue.plugins("architectures")[name.partition(":")[0]]
    return tuple(plugin.constants.get("requires", ()))


def plain(value: Any) -> Any:
    """`timm: resnet10t`, which YAML reads as a mapping, is a mistake with an answer of its own."""
    if isinstance(value, dict) and len(value) == 1:
        [(file, model)] = value.items()
        raise ValueError(f"write {file}:{model}, without a space, or in quotes.")
    return value


def checked(name: str) -> str:
    """`name` if there is such an architecture; ValueError with one line if not."""
    found = catalogue.plugins("architectures")
    file, colon, model = name.partition(":")
    package = found[file].constants.get("names_from") if file in found else None
    if package is None:
        if name in found:
            return name
        raise ValueError(
            f"unknown architecture {name!r}.{nearest(name, map(shown, found.values()))}"
            "  `lethe list architectures` shows all."
        )
    known = models(str(package))
    if not known:
        raise ValueError(
            f"{name}: the package {package} is not installed here. `pip install {package}` installs it."
        )
    if not colon or not model:
        raise ValueError(f"{file}: which model? Write {file}:NAME, for instance {file}:resnet10t.")
    if model not in known:
        raise ValueError(_unknown(file, model, known))
    return name


def _unknown(file: str, model: str, known: frozenset[str]) -> str:
    bare, dot, _ = model.partition(".")
    if dot and bare in known:
        return f"{file}:{model} names pretrained weights, which are never used. Write {file}:{bare}."
    close = nearest(f"{file}:{model}", (f"{file}:{name}" for name in sorted(known)))
    return f"unknown architecture '{file}:{model}'.{close}  `{file}.list_models()` in Python shows all."


@cache
def models(package: str) -> frozenset[str]:
    """The names a package registers as models in its folder `models`; none if it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return frozenset()
    sources = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(name for path in sources for name in ENTRY.findall(path.read_text(encoding="utf-8")))
