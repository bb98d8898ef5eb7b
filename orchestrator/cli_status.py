"""lethe status, doctor: what a look at results or at this machine tells. Parses and prints, nothing else."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import Annotated

import typer

from orchestrator.cli_options import Data, Json, Results
from orchestrator.errors import UserError


def status(
    seconds: Annotated[
        float | None, typer.Argument(min=0.1, help="between two looks of --watch; 2 if left out")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="look again until the run has ended")] = False,
    results: Results = "results",
    as_json: Json = False,
) -> None:
    """How far the runs in a results folder are, and what failed.

    `--watch` redraws until the run has ended, or Ctrl-C; where there is no terminal, and with --json, each
    change is a line.
    """
    from orchestrator.store import Store

    if seconds is not None and not watch:
        raise UserError(f"status {seconds:g}: seconds are for --watch: `lethe status --watch {seconds:g}`.")
    store = Store.open(results)
    if watch:
        from orchestrator import progress

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            progress.watch(store, seconds or 2.0, as_json=as_json)
        return
    from orchestrator import overview

    facts = overview.of_store(store)
    print(json.dumps(facts) if as_json else overview.status_text(facts))


def doctor(results: Results = "results", data: Data = "data", as_json: Json = False) -> None:
    """Check this machine: versions, devices, Ray, clock, disks, the results folder, the datasets.

    Exit code 0: nothing keeps a run from working; 1: something does, and the line says what to do.
    """
    from orchestrator.doctor import checks

    found = []
    for check in checks(results, data):
        found.append(check)
        if not as_json:
            print(f"{check.state:<4}  {check.name:<14} {check.text}", flush=True)
    if as_json:
        print(json.dumps([vars(check) for check in found]))
    raise typer.Exit(1 if any(check.state == "FAIL" for check in found) else 0)
