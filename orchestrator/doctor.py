"""`lethe doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
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
PYTHON = (3, 11)
SHOWN = 8  # packages of another version that are named
PINS = catalogue.ROOT / "constraints.txt"
INSTALL = "`pip install -c constraints.txt -e .` puts this right."


@dataclass(frozen=True)
class Check:
    """What was looked at, 'ok', 'warn' (works, though not at its best) or 'FAIL', and what was found."""

    name: str
    state: str
    text: str


def checks(results: str, data: str) -> Iterator[Check]:
    """One check after the other. A FAIL says what to do."""
    from orchestrator import doctor_folders, doctor_machine

    yield Check("lethe", "ok", f"{__version__}, code {commit()}")
    good = sys.version_info >= PYTHON
    yield Check("python", "ok" if good else "FAIL", f"{platform.python_version()}, at least 3.11 is needed")
    pins = pinned(PINS)
    for name in PACKAGES:
        yield package(name, pins)
    yield constraints(pins)
    yield from doctor_machine.checks()
    yield (found := _results(results))
    if found.state == "ok":
        yield from doctor_folders.results(results)
    yield from doctor_folders.data(data)
    for name in catalogue.plugins("datasets"):
        yield _dataset(name, data)


# ---- packages --------------------------------------------------------------------------------------------


def pinned(file: Path) -> dict[str, str]:
    """The versions tested together, by package; {} where the file is not there."""
    if not file.is_file():
        return {}
    return dict(re.findall(r"^([\w.-]+)==(\S+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE))


def package(name: str, pins: dict[str, str]) -> Check:
    """Whether a package can be imported. Of Ray every node needs the same version: the one tested."""
    try:
        version = str(importlib.import_module(name).__version__)
    except (ImportError, RuntimeError, OSError) as error:
        return Check(name, "FAIL", f"cannot be imported: {error}. {INSTALL}")
    if name == "ray" and version != pins.get("ray", version):
        text = f"{version}; tested with {pins['ray']}, and all nodes of a cluster need the same. {INSTALL}"
        return Check(name, "warn", text)
    return Check(name, "ok", version)


def constraints(pins: dict[str, str]) -> Check:
    """Which installed packages are of another version than those tested together."""
    if not pins:
        return Check("constraints", "ok", f"no {PINS}: versions are not compared")
    installed = {name: version for name in pins if (version := _installed(name)) is not None}
    others = [f"{n} {v} (tested: {pins[n]})" for n, v in installed.items() if v != pins[n]]
    if not others:
        return Check("constraints", "ok", f"{len(installed)} packages as in {PINS.name}")
    named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
    return Check("constraints", "warn", f"{len(others)} of {len(installed)} differ: {named}. {INSTALL}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]  # 2.14.1+cpu is 2.14.1
    except metadata.PackageNotFoundError:
        return None


# ---- results and datasets --------------------------------------------------------------------------------


def _results(uri: str) -> Check:
    try:
        store = Store.open_if_any(uri)
        found = f"{store.runs(['status']).num_rows} tasks recorded" if store else "none yet"
    except UserError as error:
        return Check("results", "FAIL", error.problems[0])
    except OSError as error:
        return Check("results", "FAIL", f"{uri}: cannot be read ({first_line(error)}).")
    return Check("results", "ok", f"{uri}: {found}")


def _dataset(name: str, data: str) -> Check:
    """A missing dataset is no fault: it is fetched when it is wanted. A damaged one is."""
    from methods.base import plugin
    from workers.files import Damaged, what_to_run

    try:
        arrays = plugin("workers.datasets", name)().load(Path(data))
    except Damaged as error:
        return Check(name, "FAIL", str(error))
    except FileNotFoundError:
        return Check(name, "ok", f"not in {data}. {what_to_run(name, Path(data))}")
    return Check(name, "ok", f"{len(arrays.pool_labels)} + {len(arrays.test_labels)} samples")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
