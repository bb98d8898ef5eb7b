"""What `lethe status --watch` shows: how far the run on a results folder is, looked at again and again.

A look lists two folders and reads the files that were not there at the look before, so that it costs the same
with 100 and with 100,000 tasks. Counts are those of the ledger; total, running and rate those that the driver
wrote with its last flush (events.py).
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from orchestrator import parquet
from orchestrator.events import FOLDER
from orchestrator.lock import NAME
from orchestrator.store import Store

COLUMNS = ("task_id", "attempt", "status")
STALE_S = 120.0  # a driver elsewhere gives a sign of life at least every 30 s
HEARTBEAT_S = 0.05  # more than the writing of one takes
WINDOW_S = 300.0  # the rate is that of the last five minutes


@dataclass
class View:
    """What one look found.

    driver: what the lock says of its owner, {} if nobody runs. run: the last progress line of its events, {}
    if it has written none. rate: tasks per second, None if none has ended. noticed: seconds since the Epoch.
    """

    recorded: int
    done: int
    failed: dict[str, int]
    damaged: list[str]
    driver: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None
    noticed: float = field(default_factory=time.time)

    @property
    def finished(self) -> int:
        return _ended(self.run) if self.run else 0

    @property
    def to_go_s(self) -> float | None:
        """Seconds that are left at this rate, from the last flush on; None if nobody can tell."""
        if not self.rate:
            return None
        left = (int(self.run["total"]) - self.finished) / self.rate
        return max(0.0, left - (self.noticed - float(self.run["at"])))


class Watch:
    """Looks at one results folder; each look reads what is new."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: set[str] = set()  # of `runs` that have been read
        self._tasks: dict[str, tuple[int, str]] = {}  # task id -> its highest attempt and how that ended
        self._events = ""  # the file of events that was read last
        self._points: deque[dict[str, Any]] = deque()  # progress lines of the run, of the last minutes

    def look(self) -> View:
        driver = owner(self._store)
        self._read_ledger()
        self._read_events()
        statuses = Counter(status for _, status in self._tasks.values())
        failed = {status: count for status, count in statuses.most_common() if status != "done"}
        view = View(len(self._tasks), statuses["done"], failed, self._store.damaged, driver)
        if driver and self._points and self._points[-1]["started_at"] >= driver["started_at"] - 1:
            view.run, view.rate = self._points[-1], _rate(self._points)
        return view

    def _read_ledger(self) -> None:
        """Rows of files that are new. One that a compaction made tells nothing new, and is read once."""
        for name in self._store.files("runs"):
            if name in self._files:
                continue
            self._files.add(name)
            table = self._store.read_part(name, parquet.fields("runs", COLUMNS))
            columns = [] if table is None else [table[column].to_pylist() for column in COLUMNS]
            for task, attempt, status in zip(*columns, strict=True):
                if attempt >= self._tasks.get(task, (0, ""))[0]:
                    self._tasks[task] = attempt, status

    def _read_events(self) -> None:
        """The last line of the newest file of events."""
        newest = max(self._store.files(FOLDER, ".jsonl"), default="")
        if newest == self._events:
            return
        self._events = newest
        point = json.loads(self._store.read(newest).splitlines()[-1])
        if self._points and self._points[-1]["started_at"] != point["started_at"]:
            self._points.clear()
        self._points.append(point)
        while len(self._points) > 2 and self._points[1]["at"] < point["at"] - WINDOW_S:
            self._points.popleft()


def _rate(points: deque[dict[str, Any]]) -> float | None:
    """Tasks per second between the oldest and the newest progress line, or since the start of the run."""
    first, last = points[0], points[-1]
    since, before = (first["started_at"], 0) if first is last else (first["at"], _ended(first))
    tasks, seconds = _ended(last) - before, last["at"] - since
    return float(tasks / seconds) if tasks > 0 and seconds > 0 else None


def _ended(point: dict[str, Any]) -> int:
    return int(point["done"]) + int(sum(point["failed"].values()))


def owner(store: Store) -> dict[str, Any]:
    """What the lock says of the driver that runs; {} if none does: no lock, or one whose owner died."""
    if not store.local:  # a claim of each driver, of which one holds the folder; or one file
        claims = [_read(store, name) for name in store.files(NAME, ".json") or [NAME]]
        fresh = [c for c in claims if time.time() - float(c.get("heartbeat_at", 0)) < STALE_S]
        return next((claim for claim in fresh if claim.get("held", True)), {})
    found = _read(store, NAME)
    if not found:  # free, or in the middle of a heartbeat
        time.sleep(HEARTBEAT_S)
        found = _read(store, NAME)
    if found.get("host") == socket.gethostname():
        return found if _alive(int(found.get("pid", 0))) else {}
    return found if time.time() - float(found.get("heartbeat_at", 0)) < STALE_S else {}


def _read(store: Store, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(store.read(name)))
    except (OSError, ValueError, TypeError):
        return {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return pid > 0


# ---- in words --------------------------------------------------------------------------------------------


def as_lines(view: View) -> list[str]:
    """A view as a few lines."""
    failed = "".join(f", {count:,} {kind}" for kind, count in view.failed.items())
    lines = [f"results   {view.recorded:,} tasks recorded: {view.done:,} done{failed}"]
    lines += [f"          {name} cannot be read" for name in view.damaged]
    if not view.driver:
        return [*lines, "driver    none: no run is going on"]
    who = f"process {view.driver.get('pid')} of {view.driver.get('user')} on {view.driver.get('host')}"
    lines.append(f"driver    {who}, for {_duration(view.noticed - float(view.driver['started_at']))}")
    if not view.run:
        return [*lines, "this run  nothing has been written yet"]
    run = view.run
    lines.append(
        f"this run  {_bar(view.finished, run['total'])} {view.finished:,} of {run['total']:,} tasks,"
        f" {run['running']:,} running, {run['retries']:,} retried; {_duration(view.noticed - run['at'])} ago"
    )
    if view.finished == run["total"]:
        return [*lines, "          all tasks have ended; the audit is being made"]
    if view.rate is not None and view.to_go_s is not None:
        lines.append(f"rate      {_per_time(view.rate)}, about {_duration(view.to_go_s)} to go")
    return lines


def as_line(view: View) -> str:
    """A view as one line that changes only when something happened."""
    words = [f"{view.done:,} done", *(f"{count:,} {kind}" for kind, count in view.failed.items())]
    if not view.driver:
        return ", ".join([*words, "no run is going on"])
    if view.run:
        words += [
            f"{view.finished:,} of {view.run['total']:,} in this run",
            f"{view.run['running']:,} running",
        ]
    return ", ".join([*words, *([_per_time(view.rate)] if view.rate else [])])


def as_facts(view: View) -> dict[str, Any]:
    """A view as JSON: what `as_line` tells, and the owner of the lock."""
    facts = {
        "recorded": view.recorded,
        "done": view.done,
        "failed": view.failed,
        "driver": view.driver or None,
    }
    names = ("total", "running", "retries", "started_at")
    facts |= {name: view.run.get(name) for name in names} | {"finished": view.finished if view.run else None}
    return facts | {"tasks_per_s": view.rate, "to_go_s": view.to_go_s, "damaged": view.damaged}


def _bar(done: int, total: int, width: int = 20) -> str:
    full = width * done // max(1, total)
    return "█" * full + "░" * (width - full)


def _per_time(rate: float) -> str:
    return f"{rate:,.1f} tasks per second" if rate >= 1 else f"{rate * 60:,.1f} tasks per minute"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
