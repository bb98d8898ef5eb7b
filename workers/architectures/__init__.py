"""One file per architecture, discovered by folder; `timm:NAME` is a model of the file timm.py.

A class has `build(num_classes, channels, size)`. `requires` names packages it needs beyond torch and
torchvision; they are imported in `build` and not before, and what they make is tried before a run.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from methods.base import plugin


class CannotBuild(ValueError):
    """An architecture does not fit a dataset, or its package is missing: one line for the user."""


def architecture(name: str) -> Any:
    """The architecture of a name as in grids: a file's, or file:model."""
    file, _, model = name.partition(":")
    found = plugin("workers.architectures", file)
    return found(model) if model else found()


def versions(name: str) -> dict[str, str]:
    """The installed versions of the packages that an architecture requires."""
    try:
        required = getattr(plugin("workers.architectures", name.partition(":")[0]), "requires", ())
        return {package: version(package) for package in required}
    except (ImportError, LookupError):  # the task has failed with the reason
        return {}


def try_out(name: str, num_classes: int, channels: int, size: int) -> None:
    """Build an architecture and pass two black images through it, on the host; CannotBuild if either fails.

    Draws from the global generators.
    """
    images = torch.zeros(2, channels, size, size)
    try:
        model = architecture(name).build(num_classes, channels, size)
        with torch.no_grad():
            shapes = [tuple(model.train(training)(images).shape) for training in (True, False)]
    except (CannotBuild, MemoryError):
        raise
    except Exception as error:  # whatever a foreign model raises, it means that it cannot be used here
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
        raise CannotBuild(_unfit(name, channels, size, reason)) from error
    if set(shapes) != {(2, num_classes)}:
        reason = f"logits of shape {shapes[0]}, not {(2, num_classes)}"
        raise CannotBuild(_unfit(name, channels, size, reason))


def _unfit(name: str, channels: int, size: int, reason: str) -> str:
    shape = f"{channels}×{size}×{size}"
    return f"{name}: cannot take images of {shape} ({reason}). Choose another architecture for them."
