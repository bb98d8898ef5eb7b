"""What happens to tasks and actors in a run, as lines of JSON: logs/driver/<start>-<number>.jsonl.

One file for each flush of the session that has news, never one for an event: an object store takes about a
file for every 256 tasks or 30 s. docs/monitoring.md tells the fields.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.plan import Task
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.session import Progress

FOLDER = "logs/driver"
OF_TASK = ("task_id", "kind", "method", "dataset", "architecture")
OF_ROW = ("status", "reason", "attempt", "retries", "wall_s", "host", "log")
ENDED = ("finished", "failed", "skipped")
REASON = 2000  # characters of a reason that are kept

Event = dict[str, Any]
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each line


class Events:
    """The events of one run; those since the last flush wait in memory."""

    def __init__(self, store: Store) -> None:
        self._store, self._started, self._number = store, time.time(), 0
        self._waiting: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._given: dict[str, tuple[str, float]] = {}  # task id -> the actor that has it, since when
        self._places: dict[str, dict[str, str]] = {}  # actor -> its host and node
        self._troubles: dict[str, list[Event]] = {}  # task id -> how it was lost or started again

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with each event from now on, and with those that wait for a flush."""
        self._listeners.append(listener)
        for event in self._waiting:
            listener(event)

    # ---- what happens -------------------------------------------------------------------------------------

    def given(self, task: Task, actor: str) -> None:
        """An actor was given a task; it starts once the actor is through with what it had."""
        self._given[task.id] = actor, time.time()
        self._add({"event": "given", **_names(task), "actor": actor})

    def trouble(self, event: str, task: Task, status: str, reason: str) -> None:
        """event: 'lost' with its worker, or 'retried': it waits to be given again."""
        facts = {"event": event, **_names(task), "actor": self._given.get(task.id, ("",))[0]}
        line = self._add({**facts, "status": status, "reason": reason[:REASON]})
        self._troubles.setdefault(task.id, []).append(line)

    def actor(self, event: str, actor: str, **facts: str) -> None:
        """event: 'actor_started', with its host and node, or 'actor_gone'."""
        if event == "actor_started":
            self._places[actor] = facts
        self._add({"event": event, "actor": actor, **facts})

    def ended(self, row: dict[str, Any]) -> None:
        """A task has its row of the table runs."""
        event = {"done": "finished", "skipped": "skipped"}.get(row["status"], "failed")
        actor, since = self._given.pop(row["task_id"], ("", None))
        self._troubles.pop(row["task_id"], None)
        began = row.get("started_at") or since  # of a lost task only the driver knows
        seconds = None if began is None else round(row["finished_at"] - began, 3)
        what = {"event": event, **_of(row, OF_TASK), "actor": actor, "seconds": seconds}
        self._add(what | _of(row, OF_ROW))

    def _add(self, facts: Event) -> Event:
        line: Event = {"at": round(time.time(), 3)}
        if host := self._places.get(facts["actor"], {}).get("host"):
            line["host"] = host
        line |= {name: value for name, value in facts.items() if value is not None and value != ""}
        self._waiting.append(line)
        for listener in self._listeners:
            listener(line)
        return line

    def story(self, task: Task) -> str:
        """What happened to a task until now, a line each: for the log of one whose worker cannot tell."""
        events = list(self._troubles.get(task.id, []))
        if not events or events[-1]["event"] == "retried":  # nobody has told yet of the actor that has it now
            actor, since = self._given.get(task.id, ("none", time.time()))
            events.append({"at": since, "event": "given", "actor": actor})
        return "\n".join(_told(event | self._places.get(event.get("actor", ""), {})) for event in events)

    # ---- writing ------------------------------------------------------------------------------------------

    def flush(self, progress: Progress) -> None:
        """Write what has waited and how far the run is; nothing before the first task is given, so that a run
        that cannot start leaves no trace.
        """
        if not any("task_id" in event for event in self._waiting):
            return
        self._number += 1
        start = datetime.fromtimestamp(self._started, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        lines = [*self._waiting, self._how_far(progress)]
        text = "".join(f"{_ENCODE(line)}\n" for line in lines)
        self._store.write(f"{FOLDER}/{start}-{self._number:06d}.jsonl", text.encode())
        self._waiting = []

    def _how_far(self, progress: Progress) -> Event:
        now = {"at": round(time.time(), 3), "event": "progress", "started_at": self._started}
        counts = {"total": progress.total, "done": progress.done, "failed": dict(progress.failed)}
        return now | counts | {"running": progress.running, "retries": progress.retries}


def _of(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row.get(name) for name in names}


def _names(task: Task) -> dict[str, str]:
    """What `OF_TASK` names, of a task that has no row yet."""
    spec = task.spec
    return {
        "task_id": task.id,
        "kind": spec["kind"],
        "method": spec["method"]["name"] if "method" in spec else "",
        "dataset": task.dataset or spec["dataset"]["name"],
        "architecture": spec["architecture"]["name"],
    }


def _told(event: Event) -> str:
    moment = datetime.fromtimestamp(event["at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    place = " ".join(f"{name} {event[name]}" for name in ("actor", "host", "node") if name in event)
    reason = f"\n    {event['status']}: {event['reason']}" if "reason" in event else ""
    return f"{moment}  {event['event']}  {place}{reason}"
