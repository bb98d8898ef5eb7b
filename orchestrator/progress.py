"""Live progress of a run, by the driver itself (a bar in a terminal, one plain line now and then elsewhere)
and as seen from outside (`lethe status --watch`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from orchestrator import watch as watches
from orchestrator.session import Progress
from orchestrator.store import Store

PLAIN_EVERY_S = 10.0


class Display:
    """Called with a Progress whenever something happened; use as a context."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = _bar(self._console) if self._console.is_terminal else None
        self._task = self._bar.add_task("") if self._bar else None
        self._shown, self._last, self._notes = time.monotonic(), "", 0

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        while self._notes < len(progress.notes):
            self._console.print(progress.notes[self._notes], markup=False)
            self._notes += 1
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, completed=progress.finished, total=progress.total, description=_words(progress)
            )
        elif time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            self._plain(progress)

    def _plain(self, progress: Progress) -> None:
        line = f"{progress.finished}/{progress.total} tasks, {_words(progress)}, {_remaining(progress)}"
        if line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line


def _bar(console: Console) -> Bar:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Bar(*columns, console=console)


def _words(progress: Progress) -> str:
    parts = [f"{progress.running} running"]
    parts += [f"{count} {kind}" for kind, count in sorted(progress.failed.items())]
    parts += [f"{progress.retries} retried"] if progress.retries else []
    return ", ".join(parts)


def _remaining(progress: Progress) -> str:
    elapsed = time.monotonic() - progress.started
    if not progress.finished:
        return f"{elapsed:.0f} s"
    left = elapsed / progress.finished * (progress.total - progress.finished)
    return f"{elapsed:.0f} s, about {left:.0f} s left"


# ---- lethe status --watch --------------------------------------------------------------------------------


def watch(store: Store, every_s: float, *, as_json: bool = False) -> None:
    """Show how far the run on a results folder is until it has ended. A terminal is redrawn; elsewhere, and
    as JSON, each change is a line.
    """
    looking, console = watches.Watch(store), Console(highlight=False)
    if as_json or not console.is_terminal:
        last = ""
        for view in _until_it_ends(looking, every_s):
            line = watches.as_line(view)
            if line != last:
                print(json.dumps(watches.as_facts(view)) if as_json else line, flush=True)
            last = line
        return
    with Live(console=console, auto_refresh=False) as live:
        for view in _until_it_ends(looking, every_s):
            live.update(Text("\n".join(watches.as_lines(view))), refresh=True)


def _until_it_ends(looking: watches.Watch, every_s: float) -> Iterator[watches.View]:
    while (view := looking.look()).driver:
        yield view
        time.sleep(every_s)
    yield view
