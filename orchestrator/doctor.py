"""`lethe doctor`: what works on this machine and what does not."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator import __version__, catalogue
from orchestrator.errors import UserError
from orchestrator.provenance import commit
from orchestrator.store import Store

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "ray",
    "optuna",
    "pyarrow",
    "pandas",
    "numpy",
    "scipy",
    "sklearn",
    "plotly",
)


def checks(results: str, data: str) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is good, what was found) one after the other."""
    yield "lethe", True, f"{__version__}, code {commit()}"
    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()}, at least 3.11 is needed"
    for name in PACKAGES:
        yield name, *_version(name)
    yield "device", *_device()
    yield "cores", True, f"{os.cpu_count()}"
    yield "results", *_results(results)
    for name in catalogue.plugins("datasets"):
        yield name, *_dataset(name, data)


def _version(package: str) -> tuple[bool, str]:
    try:
        return True, str(importlib.import_module(package).__version__)
    except (ImportError, RuntimeError) as error:
        return False, f"cannot be imported: {error}"


def _device() -> tuple[bool, str]:
    import torch

    if not torch.cuda.is_available():
        return True, "no GPU; runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return True, ", ".join(names)


def _results(uri: str) -> tuple[bool, str]:
    try:
        store = Store.open_if_any(uri)
    except UserError as error:
        return False, error.problems[0]
    return (
        (True, f"{uri}: {store.runs(['status']).num_rows} tasks recorded")
        if store
        else (True, f"{uri}: none yet")
    )


def _dataset(name: str, data: str) -> tuple[bool, str]:
    """A missing dataset is no fault: it is fetched when it is wanted. A damaged one is."""
    from methods.base import plugin
    from workers.files import Damaged, what_to_run

    try:
        arrays = plugin("workers.datasets", name)().load(Path(data))
    except Damaged as error:
        return False, str(error)
    except FileNotFoundError:
        return True, f"not in {data}. {what_to_run(name, Path(data))}"
    return True, f"{len(arrays.pool_labels)} + {len(arrays.test_labels)} samples"
