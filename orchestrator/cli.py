"""lethe: plan, run, tune, status, dashboard, report, list, audit, store, prepare, bench, doctor. Parses and
prints, nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli_bench import bench
from orchestrator.cli_options import (
    SUBMIT,
    ActorsPerGpu,
    Address,
    Data,
    Device,
    GridFile,
    Inline,
    Json,
    KeepModels,
    MaxActors,
    OptunaStorage,
    Results,
    Retry,
    TimeLimit,
    data_folder,
    in_job,
    limits,
    outside_job,
)
from orchestrator.cli_status import doctor, status
from orchestrator.cli_store import store_app
from orchestrator.errors import UserError, nearest, without_keys

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Machine-unlearning benchmarks: one grid file in, one audited table out.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_app, name="store")
app.command()(status)
app.command()(doctor)
app.command()(bench)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        print(f"lethe {__version__}")
        raise typer.Exit


@app.command()
def plan(
    grid: GridFile,
    results: Results = "results",
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="say what it costs on a device that was timed, as h200 or cpu"),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="where the timings are; else benchmarks/results of the repository"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a grid asks for, what is done already, what sharing saves and what it costs. Runs nothing."""
    from orchestrator import measured as timings
    from orchestrator import overview
    from orchestrator.config import load
    from orchestrator.store import Store
    from orchestrator.tuned_plan import first, plan_of

    if measured is not None and device is None:
        raise UserError("--measured: name the device too, --device NAME.")
    timed = None if device is None else timings.named(device, measured)
    loaded, store = load(grid), Store.open_if_any(results)
    facts = overview.of_plan(plan_of(loaded, store), store, timed) | {"studies_first": first(loaded, store)}
    print(json.dumps(facts) if as_json else overview.plan_text(facts))


@app.command()
def run(
    grid: GridFile,
    results: Results = "results",
    data: Data = "data",
    optuna_storage: OptunaStorage = None,
    address: Address = "local",
    inline: Inline = False,
    retry: Retry = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="run at most N tasks")] = None,
    keep_models: KeepModels = False,
    max_actors: MaxActors = None,
    actors_per_gpu: ActorsPerGpu = None,
    time_limit_s: TimeLimit = None,
    device: Device = None,
) -> None:
    """Run a grid, or what is left of it. Running again resumes. With `hyperparameters: tuned` it is tuned
    before, where no winners are known.

    Exit code 0: all tasks are done; 1: some did not finish; 2: bad input, or files that cannot be written;
    130: interrupted.
    """
    from orchestrator.config import load
    from orchestrator.session import retry_kinds

    loaded, kinds = load(grid), retry_kinds(retry or ())
    if optuna_storage is not None and loaded.hyperparameters != "tuned":
        raise UserError(f"--optuna-storage: {grid} is not tuned. Write hyperparameters: tuned in it.")
    from orchestrator import overview  # what follows takes a second: not before the input is known good
    from orchestrator.runner import Options, run_grid

    options = Options(
        results=outside_job(results),
        data=data_folder(data),
        address=None if inline else address,
        retry=frozenset(kinds),
        limit=limit,
        keep_models=keep_models,
        **limits(loaded, max_actors, actors_per_gpu, time_limit_s, device),
    )
    with _interruptible():
        if loaded.hyperparameters == "tuned":
            from orchestrator import tune_runner

            if (before := tune_runner.tune_first(loaded, options, optuna_storage)) is not None:
                print(tune_runner.text(before, _again(), options.results))
        ended = run_grid(loaded, options)
    print(overview.run_text(ended, _again(), options.results))
    raise typer.Exit(1 if ended.failures else 0)


@app.command()
def tune(
    grid: GridFile,
    results: Results = "results",
    data: Data = "data",
    optuna_storage: OptunaStorage = None,
    address: Address = "local",
    inline: Inline = False,
    retry: Retry = None,
    keep_models: KeepModels = False,
    max_actors: MaxActors = None,
    actors_per_gpu: ActorsPerGpu = None,
    time_limit_s: TimeLimit = None,
    device: Device = None,
) -> None:
    """Search hyper-parameters for every method of a grid that has no winner in the results yet. Running
    again resumes.

    Exit code 0: every study has a winner; 1: some have none; 2: bad input; 130: interrupted.
    """
    from orchestrator.config import load
    from orchestrator.session import retry_kinds

    loaded, kinds = load(grid), retry_kinds(retry or ())
    from orchestrator import tune_runner
    from orchestrator.runner import Options

    options = Options(
        results=outside_job(results),
        data=data_folder(data),
        address=None if inline else address,
        retry=frozenset(kinds),
        keep_models=keep_models,
        **limits(loaded, max_actors, actors_per_gpu, time_limit_s, device),
    )
    with _interruptible():
        ended = tune_runner.tune_grid(loaded, options, optuna_storage)
    print(tune_runner.text(ended, _again(), options.results))
    raise typer.Exit(1 if ended.failed else 0)


def _again() -> str:
    """The command line as it was given, less --retry and --limit, to be pasted into a shell; of a Ray job the
    one that submits it again.
    """
    words = sys.argv[1:]
    for option in ("--retry", "--limit"):
        while option in words:
            place = words.index(option)
            del words[place : place + 2]
        words = [word for word in words if not word.startswith(f"{option}=")]
    return shlex.join([*(SUBMIT if in_job() else ["lethe"]), *words])


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run with a line that says how to go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        text = f"\nInterrupted. What had finished is recorded; `{_again()}` goes on from there."
        print(text, file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def dashboard(
    results: Results = "results",
    optuna_storage: OptunaStorage = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8080,
    host: Annotated[str, typer.Option(help="the address to listen on; 0.0.0.0: all, without a password")] = (
        "127.0.0.1"
    ),
) -> None:
    """Look at the studies of tuning in a browser, also while a run is going on. Changes nothing."""
    from orchestrator import dashboard as dashboards

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with dashboards.server(dashboards.opened(results, optuna_storage), host, port) as serving:
            print(f"{dashboards.address(serving, host)}  Ctrl-C ends it.", flush=True)
            serving.serve_forever()
    except KeyboardInterrupt:
        print()


@app.command()
def report(
    results: Results = "results",
    format: Annotated[
        str,
        typer.Option(
            metavar="html|md|csv|latex|json|parquet|card",
            help="form of the report; card: the audit cards alone, as JSON",
        ),
    ] = "html",
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="file to write; - for standard output")
    ] = None,
) -> None:
    """Compare every method with retraining, with intervals, one table per cell."""
    from orchestrator import report as reports
    from orchestrator.store import Store

    if format not in reports.FORMATS:
        raise UserError(
            f"--format {format}: unknown.{nearest(format, reports.FORMATS)}"
            f" Allowed: {', '.join(reports.FORMATS)}."
        )
    target = out or ("report.html" if format == "html" else "-")
    if target == "-" and format == "parquet" and sys.stdout.isatty():
        raise UserError("--format parquet: binary, not for a terminal. Name a file with --out FILE.")
    content = reports.render(Store.open(results), format)
    data = content if isinstance(content, bytes) else content.encode()
    if target == "-":
        sys.stdout.buffer.write(data if isinstance(content, bytes) else data + b"\n")
        sys.stdout.buffer.flush()
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(data)
    print(f"Wrote {target}.")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="methods|datasets|architectures|attacks|forget|columns")],
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="methods only: a Markdown table")] = False,
) -> None:
    """The plug-ins there are, or the columns of the result tables."""
    from orchestrator import overview

    if markdown and kind != "methods":
        raise UserError(f"list {kind}: --markdown is for methods.")
    facts = overview.of_kind(kind)
    if markdown:
        print(overview.methods_markdown(facts))
    else:
        print(json.dumps(facts) if as_json else overview.list_text(kind, facts))


@app.command()
def audit(
    scores: Annotated[
        str,
        typer.Option("--scores", metavar="FILE", help="an .npz file of φ; docs/audit.md tells its arrays"),
    ],
    as_json: Json = False,
) -> None:
    """U-LiRA on scores from elsewhere: φ (pairs, samples) per world, NaN where missing.

    Row p of `forgotten`: models that forgot the sample; of `never`: the same method's models that never saw
    it; of `retrained`: retrained models that never saw it. Pair p is left out when its scores are judged.
    Runs of Lethe are audited by `lethe run`.
    """
    from orchestrator import audit_file

    found = audit_file.rows(scores)
    print(json.dumps(found) if as_json else audit_file.as_text(found))


@app.command()
def prepare(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET… | image_folder PATH")],
    data: Data = "data",
    size: Annotated[
        int | None, typer.Option(min=8, max=1024, metavar="N", help="image_folder: pixels of a side")
    ] = None,
    channels: Annotated[int, typer.Option(metavar="3|1", help="image_folder: 3 for colour, 1 for grey")] = 3,
    name: Annotated[
        str | None, typer.Option(help="image_folder: its name in grids; else the folder's")
    ] = None,
) -> None:
    """Download and verify datasets. The only command that needs the internet.

    `utkface` is fetched by hand; this says where to put it and verifies it. `image_folder PATH --size N`
    reads a folder of pictures, FOLDER/CLASS/picture.jpg, with or without train and test above the classes, or
    a zip of it, and prints its entry for a grid.
    """
    from orchestrator import describe, fetch

    data = outside_job(data)
    if describe.is_folder(datasets, size, channels, name):
        entry, notes = describe.entry_of(datasets[1], data, size or 0, channels, name)
        print("\n".join(notes), file=sys.stderr)
        print(entry, end="")
        return
    for line in fetch.prepared(datasets, data):
        print(line)


@app.command("duplicates")
def duplicates_(dataset: str, data: Data = "data", as_json: Json = False) -> None:
    """List the exact and near-duplicates of a dataset, pool and test set together, by sample id."""
    from orchestrator import duplicates

    found = duplicates.listing(dataset, Path(data))
    print(json.dumps(found) if as_json else duplicates.as_text(dataset, found))


def main() -> None:
    """Run the command line; a user's mistake is one clear line each and exit code 2."""
    # A plan is 100,000s of objects that stay: looking for garbage among them took a seventh of `lethe plan`.
    gc.set_threshold(100_000, 50, 100)
    try:
        app()
    except UserError as error:
        for problem in error.problems:
            print(without_keys(problem), file=sys.stderr)
        count = len(error.problems)
        if count > 1:
            print(f"{count} problems, nothing was run.", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # no space, no permission, not a folder, …
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(
            f"{without_keys(what)}. Results recorded before are safe; put this right and run again.",
            file=sys.stderr,
        )
        sys.exit(2)
