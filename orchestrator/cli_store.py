"""lethe store: compact, verify, suffstats. Parses and prints, nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli_options import Results
from orchestrator.errors import UserError, nearest

store_app = typer.Typer(no_args_is_help=True, help="Look after a results folder.")


@store_app.command()
def compact(
    results: Results = "results",
    precision: Annotated[
        str, typer.Option(metavar="float32|float16", help="of φ; float16 is an archive: it rounds for good")
    ] = "float32",
) -> None:
    """Merge the many small files of a results folder and write manifest.json. Calling it again finishes.

    Scores become sample-major: one chunk of samples of all models is read without the others.
    """
    from orchestrator import compact as compaction
    from orchestrator.lock import Lock
    from orchestrator.parquet import PRECISIONS
    from orchestrator.store import Store

    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS)
        raise UserError(f"--precision {precision}: unknown.{hint} Allowed: {', '.join(PRECISIONS)}.")
    opened = Store.open(results)
    with Lock(opened) as lock:
        done = compaction.compact(opened, precision, lock.beat)
    print(compaction.as_text(done))


@store_app.command()
def verify(results: Results = "results") -> None:
    """Compare the files of the last compaction with manifest.json. Exit code 1: some differ or are gone."""
    from orchestrator import compact as compaction
    from orchestrator.store import Store

    count, problems = compaction.verify(Store.open(results))
    print("\n".join([*problems, f"{count - len(problems):,} of {count:,} files are as they were written."]))
    raise typer.Exit(1 if problems else 0)


@store_app.command()
def suffstats(results: Results = "results") -> None:
    """Write the table suffstats: count, mean and moments of φ per sample and world, for attacks elsewhere."""
    from orchestrator import suffstats as statistics
    from orchestrator.lock import Lock
    from orchestrator.store import Store

    opened = Store.open(results)
    with Lock(opened) as lock:
        print(statistics.as_text(statistics.write(opened, lock.beat)))
