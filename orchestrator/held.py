"""Tasks held back until others are done: those whose forget set is computed from scores of other tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.plan import Task


@dataclass
class _Group:
    """Tasks that wait for the same others."""

    missing: set[str]
    tasks: list[Task]


class Held:
    """The tasks with `after` among those to run; each waits for these, and for the base it starts from."""

    def __init__(self, tasks: Iterable[Task], to_run: Collection[str], statuses: Mapping[str, str]) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}
        for task in tasks:
            if task.after and task.id in to_run:
                parents = parents_of(task)
                self._groups.setdefault(parents, _Group(set(parents), [])).tasks.append(task)
        self._awaited: dict[str, list[_Group]] = {}  # id -> the groups that wait for it
        for group in self._groups.values():
            for name in group.missing:
                self._awaited.setdefault(name, []).append(group)
        self._known = {name: statuses.get(name, "missing") for name in self._awaited if name not in to_run}

    def tasks(self) -> list[Task]:
        """The tasks that are held back."""
        return [task for group in self._groups.values() for task in group.tasks]

    def ended(self, statuses: Mapping[str, str]) -> tuple[list[Task], list[tuple[Task, str]]]:
        """Note how tasks ended; returns the tasks that nothing holds back any more, and those that cannot
        run, with the reason.
        """
        free: list[Task] = []
        lost: list[tuple[Task, str]] = []
        ends = [*self._known.items(), *statuses.items()]
        self._known = {}
        for name, status in ends:  # which grows: what cannot run ends as skipped
            for group in self._awaited.pop(name, ()):
                group.missing.discard(name)
                if status != "done":
                    lost += [(task, f"its base {name} is {status}") for task in group.tasks]
                    ends += [(task.id, "skipped") for task in group.tasks]
                    group.tasks = []
                elif not group.missing:
                    free += group.tasks
                    group.tasks = []
        return free, lost


def parents_of(task: Task) -> tuple[str, ...]:
    """The ids of all tasks that must be done before this one."""
    return task.after if task.base is None else (*task.after, task.base)
