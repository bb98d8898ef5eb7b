"""Arguments and options that several commands have, and what they mean."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.config import Grid

GridFile = Annotated[str, typer.Argument(metavar="GRID", help="the grid, a YAML file")]
Results = Annotated[
    str, typer.Option("--results", metavar="URI", help="results folder: a path, s3:// or gs://")
]
Json = Annotated[bool, typer.Option("--json", help="print one line of JSON")]
Data = Annotated[str, typer.Option("--data", metavar="DIR", help="folder of the datasets")]
Address = Annotated[str, typer.Option(help="Ray: local, auto (the cluster this runs on) or a host")]
Inline = Annotated[bool, typer.Option("--inline", help="in this process, without Ray")]
Retry = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="run these failures again: oom, diverged, …, failed"),
]
KeepModels = Annotated[bool, typer.Option("--keep-models", help="keep the weights of all bases")]
MaxActors = Annotated[int | None, typer.Option(min=1, help="at most this many Ray actors")]
ActorsPerGpu = Annotated[int | None, typer.Option(min=1, help="actors that share one GPU")]
TimeLimit = Annotated[float | None, typer.Option(min=0.001, help="seconds one task may run")]
OptunaStorage = Annotated[
    str | None,
    typer.Option("--optuna-storage", metavar="URL", help="a database for the studies: postgresql://…"),
]


def limits(
    grid: Grid, max_actors: int | None, actors_per_gpu: int | None, time_limit_s: float | None
) -> dict[str, Any]:
    """What the command line says, else what the grid says."""
    given = {"max_actors": max_actors, "actors_per_gpu": actors_per_gpu, "time_limit_s": time_limit_s}
    return {name: getattr(grid.run, name) if value is None else value for name, value in given.items()}


def outside_job(path: str) -> str:
    """A relative path below ~/lethe if this is a Ray job, whose own folder goes with it; else as it is."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not in_job or "://" in path or Path(path).expanduser().is_absolute():
        return path
    lasting = str(Path.home() / "lethe" / path)
    print(f"{path}: taken as {lasting}, since a Ray job's own folder is temporary.", file=sys.stderr)
    return lasting


def data_folder(data: str) -> str:
    return str(Path(outside_job(data)).expanduser().absolute())
