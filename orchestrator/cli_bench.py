"""lethe bench: what the claims about speed rest on. Parses and prints, nothing else."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestrator.cli_options import Json
from orchestrator.errors import UserError

WHAT = ("driver", "plan", "train", "attack", "store")


def bench(
    what: Annotated[str, typer.Argument(metavar="|".join(WHAT), help="what to measure")],
    as_json: Json = False,
    tasks: Annotated[int, typer.Option(min=20, help="driver, plan: tasks of the large grid")] = 100_000,
    samples: Annotated[
        int | None,
        typer.Option(
            min=40, help="attack, store: of the simulated cell (60,000); train: of the data of CIFAR's shape"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="attack: numpy, or torch on the cpu or on cuda; train: auto, cpu or cuda"),
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="train: some of train, digits, cifar, places, reference, with commas")
    ] = None,
    engine: Annotated[str, typer.Option(help="train: how steps are taken, eager or graphs")] = "eager",
    quick: Annotated[
        bool, typer.Option("--quick", help="train: does it run? The figures mean nothing")
    ] = False,
) -> None:
    """driver: tasks per second as a ratio to bare Ray calls, seconds to resume. plan: seconds to plan large
    grids. train: images per second beside the reference's loop and the arithmetic limit; every method and
    whole packages. attack: speed as a ratio to a plain loop in the same run. store: bytes and seconds of
    stored scores.
    """
    if what not in WHAT:
        raise UserError(f"bench {what}: unknown. Allowed: {', '.join(WHAT)}.")
    if what == "train":
        found, text = _train(device or "auto", quick, parts, samples, engine)
    elif what == "plan":
        from orchestrator import bench_plan

        found = bench_plan.measure(tasks)
        text = bench_plan.as_text(found)
    else:
        found, text = _other(what, tasks, samples or 60_000, device or "numpy")
    print(json.dumps(found) if as_json else text)


def _train(
    device: str, quick: bool, parts: str | None, samples: int | None, engine: str
) -> tuple[dict[str, Any], str]:
    from workers import bench_train

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        parts = parts or ",".join(bench_train.PARTS)
        found = bench_train.run(device, quick, parts, samples, engine, tell)
    except bench_train.CannotMeasure as error:
        raise UserError(str(error)) from None
    return found, bench_train.as_text(found)


def _other(what: str, tasks: int, samples: int, device: str) -> tuple[dict[str, Any], str]:
    if samples < 100:
        raise UserError(f"bench {what} --samples {samples}: too few, at least 100.")
    if what == "driver":
        from orchestrator import bench_driver

        driver = bench_driver.measure(tasks)
        return asdict(driver), bench_driver.as_text(driver)
    if what == "store":
        from orchestrator import bench_store

        store = bench_store.store(samples=samples)
        return asdict(store), bench_store.as_text(store)
    from orchestrator import bench as benches

    attack = benches.attack(samples=samples, device=device)
    return asdict(attack), benches.as_text(attack)
