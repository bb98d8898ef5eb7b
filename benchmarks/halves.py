"""The estimate of what is left against what it took: python -m benchmarks.halves GRID --results DIR

Takes the finished tasks of a grid in the order in which they ended. From the first half of them it estimates
the seconds of the second, and from every other task those of the rest, which a machine that becomes slower in
the meantime does not disturb. The last line printed is JSON, for both:

    timed, estimated        tasks
    seconds, low, high      estimated, with the 95 % interval
    measured_s              what they took
    borrowed                works of the second part that the first did not time
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from orchestrator.config import Grid, load
from orchestrator.cost import Works, added, loads, timed_paces
from orchestrator.errors import UserError
from orchestrator.overview import ledger
from orchestrator.store import Store
from orchestrator.tuned_plan import plan_of

Row = dict[str, Any]


def compare(grid: Grid, results: str) -> dict[str, Any]:
    """The estimates and the measured seconds, of halves and of every other task."""
    store = Store.open(results)
    plan, works = plan_of(grid, store), Works(grid)
    ended = {row["task_id"]: row["finished_at"] for row in store.runs(["task_id", "finished_at"]).to_pylist()}
    done = [row for row in ledger(plan, store) if row["status"] == "done" and row["task_id"] in plan.by_id]
    done.sort(key=lambda row: ended[row["task_id"]])

    def of(timed: list[Row], others: list[Row]) -> dict[str, Any]:
        tasks = [plan.by_id[row["task_id"]] for row in others]
        found = timed_paces(timed, works).estimate(added(loads(tasks, works).values()))
        return {
            "timed": len(timed),
            "estimated": len(others),
            "seconds": None if found.missing else found.seconds,
            "low": found.low,
            "high": found.high,
            "measured_s": sum((row["wall_s"] or 0) + (row["evaluate_s"] or 0) for row in others),
            "borrowed": len(found.borrowed),
        }

    half = len(done) // 2
    return {"halves": of(done[:half], done[half:]), "every_other": of(done[::2], done[1::2])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("grid")
    parser.add_argument("--results", default="results")
    given = parser.parse_args()
    try:
        print(json.dumps(compare(load(given.grid), given.results)))
    except UserError as error:
        parser.error(str(error))
