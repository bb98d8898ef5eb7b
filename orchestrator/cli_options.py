"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

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
