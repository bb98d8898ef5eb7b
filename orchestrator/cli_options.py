"""Arguments and options that several commands have, and what they mean."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.config import Grid


def _number_or_auto(given: str | None) -> int | str | None:
    if given is None or given == "auto":
        return given
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"--actors-per-gpu {given}: neither auto nor a number of at least 1.")
    return int(given)


def _device(given: str | None) -> str | None:
    if given not in (None, "auto", "cpu", "gpu"):
        raise UserError(f"--device {given}: unknown. Allowed: auto, cpu, gpu.")
    return given


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
ActorsPerGpu = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", callback=_number_or_auto, help="actors that share one GPU; auto: as many as fit"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|gpu",
        callback=_device,
        help="gpu: wait for nodes with GPUs; auto: GPUs if there are any now",
    ),
]
TimeLimit = Annotated[float | None, typer.Option(min=0.001, help="seconds one task may run")]
OptunaStorage = Annotated[
    str | None,
    typer.Option("--optuna-storage", metavar="URL", help="a database for the studies: postgresql://…"),
]


def limits(
    grid: Grid,
    max_actors: int | None,
    actors_per_gpu: int | str | None,
    time_limit_s: float | None,
    device: str | None,
) -> dict[str, Any]:
    """What the command line says, else what the grid says."""
    given = {"max_actors": max_actors, "actors_per_gpu": actors_per_gpu, "time_limit_s": time_limit_s}
    given |= {"device": device}
    return {name: getattr(grid.run, name) if value is None else value for name, value in given.items()}


SUBMIT = shlex.split("ray job submit --working-dir . -- python -m orchestrator")


def in_job() -> bool:
    """Whether this process is that of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def outside_job(path: str) -> str:
    """A relative path below ~/lethe if this is a Ray job, whose own folder goes with it; else as it is."""
    if not in_job() or "://" in path or Path(path).expanduser().is_absolute():
        return path
    lasting = str(Path.home() / "lethe" / path)
    print(f"{path}: taken as {lasting}, since a Ray job's own folder is temporary.", file=sys.stderr)
    return lasting


def data_folder(data: str) -> str:
    return str(Path(outside_job(data)).expanduser().absolute())
