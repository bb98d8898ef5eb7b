"""Timings of one device that `python -m benchmarks.record train-NAME …` keeps: files train-NAME.json.

{"command": …, "date": …, "commit": …, "versions": {…}, "found": {"device": "Made-up GPU", "versions": {…},
 "tasks": [{"kind": "base", "method": "", "dataset": "cifar10", "architecture": "resnet18", "track": "main",
   "image": [3, 32], "training_images": 85000, "wall_s": 2.5, "evaluate_s": 0.2, "evaluated_images": 120000},
   …]}}

Further files train-NAME-….json of the same device count as parts of it. A task stands there once for each
repeat. `image` is channels and pixels of a side; `evaluated_images` counts
an image once for each view it is scored in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.catalogue import ROOT
from orchestrator.errors import UserError
from orchestrator.paces import Paces, Work
from orchestrator.plan import PLAIN

FOLDER = ROOT / "benchmarks" / "results"  # of the repository; an installed package has none
PREFIX = "train-"
MEASURE = (
    "In a copy of the repository, on that device, `python -m benchmarks.record train-NAME"
    " python -m workers.bench_train --json` measures and keeps it."
)


@dataclass(frozen=True)
class Measurement:
    """What was timed on one device, and how one would repeat it. parts: the other files of the device."""

    file: Path
    device: str
    date: str
    commit: str
    command: str
    versions: dict[str, str]
    runs: list[tuple[Work, float, float]]
    parts: tuple[Path, ...] = ()

    @cached_property
    def paces(self) -> Paces:
        return Paces(self.runs)

    @property
    def facts(self) -> dict[str, Any]:
        """The measurement without its timings, as JSON."""
        names = ("device", "date", "commit", "command", "versions")
        files = {"file": str(self.file), "parts": [str(path) for path in self.parts]}
        return files | {name: getattr(self, name) for name in names}


def named(name: str, folder: Path | None = None) -> Measurement:
    """The measurement whose file is train-NAME.json or, if there is none, whose device has NAME in its own;
    UserError with one line if there is not exactly one.
    """
    folder = FOLDER if folder is None else folder
    paths = {path.stem.removeprefix(PREFIX).lower(): path for path in sorted(folder.glob(f"{PREFIX}*.json"))}
    files = {slug: path for slug, path in paths.items() if not any(slug.startswith(f"{s}-") for s in paths)}
    if name.lower() in files:
        return read(files[name.lower()])
    found: dict[str, Measurement | None] = {slug: _readable(path) for slug, path in files.items()}
    fitting = [m for m in found.values() if m is not None and name.lower() in m.device.lower()]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"{slug} ({m.device if m else 'damaged'})" for slug, m in found.items())
    problem = f"fits {len(fitting)} of what was measured" if fitting else "not measured"
    where = f"{folder}" + ("" if folder.is_dir() else ", which does not exist")
    raise UserError(
        f"--device {name}: {problem}. There are: {there or 'none'}, in {where}"
        f" (--measured FOLDER names another). {MEASURE}"
    )


def _readable(path: Path) -> Measurement | None:
    try:
        return read(path)
    except UserError:
        return None


def read(path: Path) -> Measurement:
    """One file with its parts; UserError with one line if they are no measurements, or not of one device."""
    first = _read(path)
    parts = [_read(part) for part in sorted(path.parent.glob(f"{path.stem}-*.json"))]
    for part in parts:
        if part.device != first.device:
            raise UserError(
                f"{part.file}: timed on {part.device}, and {path.name}, of which its name makes it a part, on"
                f" {first.device}. Give it another name."
            )
    runs = [run for one in (first, *parts) for run in one.runs]
    return replace(first, runs=runs, parts=tuple(part.file for part in parts))


def _read(path: Path) -> Measurement:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["found"]
        runs = [run for row in found["tasks"] for run in _runs(row)]
        versions = {name: str(version) for part in (data, found) for name, version in _versions(part).items()}
        date, commit, command = (str(data.get(name, "")) for name in ("date", "commit", "command"))
        if not runs:
            raise ValueError("no task in it")
        return Measurement(path, str(found["device"]), date, commit, command, versions, runs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (
            f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        )
        raise UserError(f"{path}: no measurement that can be read ({reason}). {MEASURE}") from None


def _versions(part: Mapping[str, Any]) -> dict[str, Any]:
    return dict(part.get("versions") or {})


def _runs(row: Mapping[str, Any]) -> list[tuple[Work, float, float]]:
    """Training or unlearning, and the evaluation, of one task."""
    (channels, size), kind = row["image"], str(row["kind"])
    method = str(row["method"]) if kind == "unlearn" else str(row.get("training") or PLAIN)
    work = Work(
        kind,
        "" if method == PLAIN else method,
        str(row["architecture"]),
        (int(channels), int(size)),
        str(row["dataset"]),
        str(row["track"]),
    )
    runs = [(work, _number(row, "training_images") or 1.0, _number(row, "wall_s"))]
    if row.get("evaluate_s") is not None:
        units = _number(row, "evaluated_images")
        if not units:
            raise ValueError("evaluated_images is 0 where evaluate_s is given")
        runs.append((work.evaluation, units, _number(row, "evaluate_s")))
    return runs


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row[name]
    if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value!r}, no finite number of at least 0")
    return float(value)
